"""A small Kubernetes API on loopback: TrainJobs, pods and their logs in memory, as the real one answers.

`Api.step` stands for the controller: it is called before every answer and may change jobs and pods.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

NAMESPACE = "feedworks"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Api:
    """The server and what it holds.

    Attributes:
        jobs: TrainJobs by name.
        pods: pods by name.
        logs: lines that each pod has printed.
        refusals: (method, path's end) -> (code, message, reason) to answer instead.
        deleted: names of deleted jobs, in order.
        asked: method and path of every request.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.refusals: dict[tuple[str, str], tuple[int, str, str]] = {}
        self.deleted: list[str] = []
        self.asked: list[str] = []
        self.step: Callable[[], None] = lambda: None
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"api": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def kubeconfig(self, folder: Path) -> Path:
        host, port = self.server.server_address[:2]
        path = folder / "kubeconfig"
        path.write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": f"http://{host!s}:{port}"}}],
                    "users": [{"name": "u", "user": {"token": "none"}}],
                    "contexts": [
                        {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}
                    ],
                    "current-context": "x",
                }
            )
        )
        return path

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def add_pods(self, job: str, phase: str = "Running", count: int = 2, attempt: str = "a") -> list[str]:
        """Make a pod for each node, as JobSet names and labels them."""
        names = [f"{job}-node-0-{index}-{attempt}" for index in range(count)]
        for index, name in enumerate(names):
            labels = {
                "jobset.sigs.k8s.io/jobset-name": job,
                "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(index),
            }
            metadata = {"name": name, "labels": labels, "creationTimestamp": now()}
            self.pods[name] = {"metadata": metadata, "status": {"phase": phase}}
            self.logs.setdefault(name, [])
        return names

    def say(self, pod: str, *lines: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        held = self.logs[pod]
        held.extend(f"{stamp}.{len(held) + number:09d}Z {line}" for number, line in enumerate(lines))

    def end(self, pod: str, code: int, reason: str = "Error", at: str | None = None) -> None:
        """End the container of a pod."""
        ended = {"exitCode": code, "reason": reason, "finishedAt": at or now()}
        self.pods[pod]["status"] = {
            "phase": "Failed" if code else "Succeeded",
            "containerStatuses": [_container({"terminated": ended})],
        }

    def hold(self, pod: str, reason: str, message: str) -> None:
        """Let the container of a pod wait."""
        waiting = {"waiting": {"reason": reason, "message": message}}
        self.pods[pod]["status"] = {"phase": "Pending", "containerStatuses": [_container(waiting)]}

    def finish(self, job: str, kind: str, reason: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        self.jobs[job]["status"] = {"conditions": [condition | {"lastTransitionTime": now()}]}


def _container(state: dict[str, Any]) -> dict[str, Any]:
    found = {"name": "node", "image": "feedworks/python-cpu:0.1.0", "imageID": "", "ready": False}
    return found | {"restartCount": 0, "state": state}


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        with self.api.lock:
            self.api.asked.append(f"{method} {url.path}")
            for (refused, end), (code, message, reason) in self.api.refusals.items():
                if refused == method and url.path.endswith(end):
                    self._send(code, _status(code, message, reason))
                    return
            if method != "POST":
                self.api.step()
            self._send(*self._found(method, url.path, query, body))

    def _found(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        api, name = self.api, path.rsplit("/", 1)[-1]
        if path == JOBS and method == "GET":
            wanted = query["fieldSelector"].removeprefix("metadata.name=")
            return 200, {"items": [job for key, job in api.jobs.items() if key == wanted]}
        if path == JOBS:
            job = json.loads(body)
            name = job["metadata"]["name"]
            if name in api.jobs:
                return 409, _status(409, f'trainjobs "{name}" already exists', "AlreadyExists")
            api.jobs[name] = job
            return 201, job
        if path.startswith(JOBS) and method == "DELETE":
            if api.jobs.pop(name, None) is None:
                return 404, _status(404, f'trainjobs "{name}" not found', "NotFound")
            api.deleted.append(name)
            return 200, _status(200, "", "")
        if path == PODS and "fieldSelector" in query:
            pod = api.pods.get(query["fieldSelector"].removeprefix("metadata.name="))
            return 200, {"apiVersion": "v1", "kind": "PodList", "items": [pod] if pod else []}
        if path == PODS:
            wanted = dict(each.split("=") for each in query["labelSelector"].split(","))
            found = [pod for pod in api.pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
            return 200, {"apiVersion": "v1", "kind": "PodList", "items": found}
        if path.endswith("/log"):
            pod = path.split("/")[-2]
            if pod not in api.pods:
                return 404, _status(404, f'pods "{pod}" not found', "NotFound")
            lines = api.logs[pod]
            kept = lines[-int(query.get("tailLines", len(lines) + 1)) :]
            return 200, "".join(f"{line}\n" for line in kept)
        return 404, "404 page not found"

    def _send(self, code: int, value: Any) -> None:
        text = value if isinstance(value, str) else json.dumps(value)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(value, str) else "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


def _status(code: int, message: str, reason: str) -> dict[str, Any]:
    kind = {"kind": "Status", "apiVersion": "v1", "status": "Success" if code < 300 else "Failure"}
    return kind | {"message": message, "reason": reason, "code": code}
