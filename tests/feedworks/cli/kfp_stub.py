"""The part of the Kubeflow Pipelines API (v2beta1) that `feedworks submit` speaks, on loopback."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

API = "/apis/v2beta1"


class KfpStub:
    """Keeps what was sent: `packages` (version name, bytes), `experiments`, `runs`, `schedules`, `tokens`.

    A `page` stands for a server of another kind, which answers it to everything with `status`. `wrong` maps a
    part of "METHOD PATH" to the status and body to answer instead, `slow_s` to the time before an answer.
    `cut` takes so many bytes off the end of each answer, and `elsewhere` sends the caller to another address.
    `run` and `workflow` are lists of answers for a run that is followed, the last of which stays.
    """

    def __init__(self) -> None:
        self.packages: list[tuple[str, bytes]] = []
        self.experiments: list[str] = []
        self.runs: list[dict[str, Any]] = []
        self.schedules: dict[str, dict[str, Any]] = {}
        self.tokens: set[str | None] = set()
        self.wrong: dict[str, tuple[int, str]] = {}
        self.slow_s: dict[str, float] = {}
        self.run: list[dict[str, Any]] = []
        self.workflow: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.looks, self.late = 0, 0
        self._ids = itertools.count(1)
        self.page: str | None = None
        self.cut, self.elsewhere = 0, ""
        self.status = 200
        self.address = ""

    def get(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        wanted = [p["stringValue"] for p in json.loads(query.get("filter", ["{}"])[0]).get("predicates", [])]
        if path.endswith("/versions"):
            names = [name for name, _ in reversed(self.packages) if not wanted or name in wanted]
            return {"pipeline_versions": [self._version(name) for name in names]}
        if path == f"{API}/pipelines":
            self.looks += 1
            if self.looks <= self.late:  # another submit is about to upload it
                return {}
            return {"pipelines": [{"pipeline_id": "p1", "display_name": wanted[0]}]} if self.packages else {}
        if path == f"{API}/experiments":
            names = [name for name in self.experiments if name in wanted]
            return {"experiments": [self._experiment(name) for name in names]} if names else {}
        if path == f"{API}/recurringruns":
            found = [each for each in self.schedules.values() if each["display_name"] in wanted]
            return {"recurringRuns": found} if found else {}
        if path.startswith(f"{API}/runs/"):
            return self.run.pop(0) if len(self.run) > 1 else self.run[0]
        if path.startswith("/apis/v1beta1/runs/") and self.workflow:
            workflow = self.workflow.pop(0) if len(self.workflow) > 1 else self.workflow[0]
            return {"run": {}, "pipeline_runtime": {"workflow_manifest": json.dumps(workflow)}}
        return {"multi_user": False}

    def post(self, path: str, query: dict[str, list[str]], content_type: str, body: bytes) -> dict[str, Any]:
        if "/pipelines/upload" in path:
            self.packages.append((query["name"][0], _file_of_form(content_type, body)))
            version = self._version(query["name"][0])
            return version if path.endswith("upload_version") else {"pipeline_id": "p1"}
        sent = json.loads(body)
        if path == f"{API}/recurringruns":
            schedule = {"recurring_run_id": f"s{next(self._ids)}", **sent}
            self.schedules[schedule["recurring_run_id"]] = schedule
            return schedule
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
            pod = url.path.removesuffix("/log").rpartition("/")[2]
            if url.path.endswith("/log"):
                self._answer(lambda: stub.logs.get(pod, '{"error_message": "no such pod"}'))
            else:
                self._answer(lambda: stub.get(url.path, parse_qs(url.query)))

        def do_POST(self) -> None:
            url = urlsplit(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            content_type = self.headers["Content-Type"]
            self._answer(lambda: stub.post(url.path, parse_qs(url.query), content_type, body))

        def do_DELETE(self) -> None:
            self._answer(lambda: stub.schedules.pop(urlsplit(self.path).path.rpartition("/")[2]))

        def _answer(self, make: Callable[[], dict[str, Any] | str]) -> None:
            stub.tokens.add(self.headers["Authorization"])
            asked = f"{self.command} {urlsplit(self.path).path}"
            time.sleep(next((slow_s for part, slow_s in stub.slow_s.items() if part in asked), 0))
            wrong = next((answer for part, answer in stub.wrong.items() if part in asked), None)
            if stub.page is not None:
                wrong = stub.status, stub.page
            status, body = wrong or (200, make())
            content = (body if isinstance(body, str) else json.dumps(body)).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # it did not wait for us
                self.send_response(302 if stub.elsewhere else status)
                if stub.elsewhere:
                    self.send_header("Location", stub.elsewhere)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - stub.cut])

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
