"""The guard of the suite catches what it should, and an offline run never tries the network."""

import os
import socket
import subprocess
import sys

import pytest
from network_guard import attempts


def run(code: str, **variables) -> subprocess.CompletedProcess:
    environment = os.environ | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: socket.create_connection(("192.0.2.1", 443), timeout=1),
        lambda: socket.getaddrinfo("huggingface.co", 443),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM).connect(("2001:db8::1", 443)),
    ],
)
def test_an_attempt_is_refused_and_written_down(attempt):
    with pytest.raises(ConnectionRefusedError, match="tests need no network"):
        attempt()
    assert len(attempts()) == 1


def test_an_attempt_of_a_child_that_swallows_the_error_is_written_down():
    code = "import socket, contextlib\nwith contextlib.suppress(OSError): socket.create_connection(('192.0.2.7', 80))"
    assert run(code).returncode == 0
    (line,) = attempts()
    assert "192.0.2.7" in line


def test_a_library_that_goes_to_the_hub_is_caught():
    code = "import huggingface_hub\ntry: huggingface_hub.HfApi().model_info('owner/name')\nexcept Exception: pass"
    run(code, HF_HUB_OFFLINE="0")
    assert any("huggingface.co" in line for line in attempts())


def test_local_sockets_work():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    one, other = socket.socketpair()
    one.close()
    other.close()
    socket.getaddrinfo(socket.gethostname(), None)
    assert attempts() == []
