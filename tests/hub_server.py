"""A Hub on this machine: what is pushed goes over HTTP, as to the real one, and is kept as it came."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from unittest import mock

import huggingface_hub


class LocalHub(ThreadingHTTPServer):
    """
    Answers what `huggingface_hub` asks for when it makes a repository and commits files to it.

    Attributes:
        created: bodies of the requests that made repositories.
        files: content of each pushed file by its path.
        received: all bytes of all requests, for what must be in none.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.created: list[dict] = []
        self.files: dict[str, bytes] = {}
        self.received = b""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._answer({"id": "owner/name", "private": True, "siblings": [], "sha": "0" * 40})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self._body()
        self.server.received += self.path.encode() + body
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            name = json.loads(body)["name"]
            self._answer({"url": f"{self.server.address}/owner/{name}", "name": f"owner/{name}"})
        elif "/preupload/" in self.path:
            # All files in the commit itself, the large ones too: nothing goes another way.
            files = [one["path"] for one in json.loads(body)["files"]]
            answer = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": path, **answer} for path in files]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
                    self.server.received += content
            self._answer({"commitUrl": f"{self.server.address}/owner/name/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self._answer({"type": "model", "valid": True})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: dict, status: int = 200, headers: dict | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (
            {"Content-Type": "application/json", "Content-Length": str(len(data))} | (headers or {})
        ).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Within the block, the Hub is this one."""
    with LocalHub() as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        constants = huggingface_hub.constants
        with (
            mock.patch.object(constants, "ENDPOINT", hub.address),
            mock.patch.object(constants, "HF_HUB_OFFLINE", False),
            mock.patch.object(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
            ),
            mock.patch("transformers.utils.hub._hf_api", None),
            mock.patch.dict("os.environ", {"HF_TOKEN": "hf_of_nobody"}),
        ):
            huggingface_hub.close_session()
            yield hub
        huggingface_hub.close_session()
        hub.shutdown()
