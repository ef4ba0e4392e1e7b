"""The part of the Kubeflow Pipelines API (v2beta1) that `feedworks submit` speaks, on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/apis/v2beta1"


class KfpStub:
    """Keeps what was sent: `packages` (version name, bytes), `experiments`, `runs`; `refuse` answers 403.

    A `page` stands for a server of another kind, which answers it to everything with `status`.
    """

    def __init__(self) -> None:
        self.packages: list[tuple[str, bytes]] = []
        self.experiments: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.refuse = False
        self.page: str | None = None
        self.status = 200
        self.address = ""

    def get(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        wanted = [p["stringValue"] for p in json.loads(query.get("filter", ["{}"])[0]).get("predicates", [])]
        if path.endswith("/versions"):
            names = [name for name, _ in reversed(self.packages) if not wanted or name in wanted]
            return {"pipeline_versions": [self._version(name) for name in names]}
        if path == f"{API}/pipelines":
            return {"pipelines": [{"pipeline_id": "p1", "display_name": wanted[0]}]} if self.packages else {}
        if path == f"{API}/experiments":
            names = [name for name in self.experiments if name in wanted]
            return {"experiments": [self._experiment(name) for name in names]} if names else {}
        return {"multi_user": False}

    def post(self, path: str, query: dict[str, list[str]], content_type: str, body: bytes) -> dict[str, Any]:
        if "/pipelines/upload" in path:
            self.packages.append((query["name"][0], _file_of_form(content_type, body)))
            version = self._version(query["name"][0])
            return version if path.endswith("upload_version") else {"pipeline_id": "p1"}
        sent = json.loads(body)
        if path == f"{API}/experiments":
            self.experiments.append(sent["display_name"])
            return self._experiment(sent["display_name"])
        self.runs.append(sent)
        return {"run_id": f"run-{len(self.runs)}", "display_name": sent["display_name"]}

    @staticmethod
    def _version(name: str) -> dict[str, Any]:
        return {"pipeline_id": "p1", "pipeline_version_id": f"v-{name}", "display_name": name}

    @staticmethod
    def _experiment(name: str) -> dict[str, Any]:
        return {"experiment_id": f"e-{name}", "display_name": name}


def _file_of_form(content_type: str, body: bytes) -> bytes:
    form = message_from_bytes(f"Content-Type: {content_type}\n\n".encode() + body)
    files = [part for part in form.walk() if part.get_filename()]
    assert len(files) == 1
    content = files[0].get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


@contextmanager
def kfp_stub() -> Iterator[KfpStub]:
    stub = KfpStub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            self._answer(stub.get(url.path, parse_qs(url.query)))

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            content_type = self.headers["Content-Type"]
            self._answer(stub.post(url.path, parse_qs(url.query), content_type, body))

        def _answer(self, content: dict[str, Any]) -> None:
            body = json.dumps({"error": "no right to do this"} if stub.refuse else content).encode()
            body = body if stub.page is None else stub.page.encode()
            self.send_response(403 if stub.refuse else stub.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
