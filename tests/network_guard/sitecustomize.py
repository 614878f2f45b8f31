"""
Refuses every connection to another machine, and writes it down, in this process and in those that it starts.

`tests/conftest.py` puts this folder on PYTHONPATH, so Python imports the file at the start of each process. It listens
to Python's audit events, which no library can bypass from Python. Libraries often swallow the error, so the attempt is
also written to the file named by ADAPTOR_TEST_NETWORK_LOG: the test during which it grows fails.
"""

import os
import socket
import sys

LOCAL_NAMES = {"", "localhost", "localhost.localdomain", "ip6-localhost", "::1", "::", "0.0.0.0"}
OWN_NAMES = {socket.gethostname()}


def is_local(host: object) -> bool:
    """Whether a name or address is this machine's."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name is None or name in LOCAL_NAMES:
        return True
    return isinstance(name, str) and (name.startswith("127.") or name in OWN_NAMES)


def host_of(event: str, arguments: tuple) -> object:
    """The other side of an audited call; None where there is none or it is no internet address."""
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return arguments[0]
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        return address[0] if isinstance(address, tuple) and arguments[0].family != socket.AF_UNIX else None
    return None


def refuse(event: str, arguments: tuple) -> None:
    host = host_of(event, arguments)
    if is_local(host):
        return
    log = os.environ.get("ADAPTOR_TEST_NETWORK_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{event} {host} by {' '.join(sys.argv[:3])}\n")
    raise ConnectionRefusedError(f"a test tried to reach {host!r}: tests need no network")


sys.addaudithook(refuse)
