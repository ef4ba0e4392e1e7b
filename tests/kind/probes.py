"""Pods that open connections to each other."""

from __future__ import annotations

from feedworks import images

from .jobs import NOBODY
from .kubectl import Object, apply, items, kubectl

PORT = 8080
LISTEN = f"import http.server as h; h.HTTPServer(('', {PORT}), h.SimpleHTTPRequestHandler).serve_forever()"
LISTENS = {"listens": "yes"}
CONNECT = "import socket; socket.create_connection(('{}', {}), 4).close(); print('connected')"


def start(
    name: str, namespace: str, labels: dict[str, str], code: str = "import time; time.sleep(1e6)"
) -> None:
    """Start a pod that runs some Python, and wait until it runs."""
    container = {
        "name": "main",
        "image": images.CPU,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", code],
        "workingDir": "/tmp",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec: Object = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "securityContext": dict(NOBODY),
        "containers": [container],
    }
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
    words = ["wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s"]
    kubectl(*words, namespace=namespace, within_s=120)


def connects(namespace: str, pod: str, address: str, port: int) -> bool:
    """Whether a pod can open a connection."""
    code = CONNECT.format(address, port)
    said = kubectl("exec", pod, "--", "python3", "-c", code, namespace=namespace, check=False)
    return "connected" in said.stdout


def address_of(namespace: str, selector: str) -> str:
    """Of the only pod with some labels."""
    (pod,) = items("pods", "-l", selector, "--field-selector=status.phase=Running", namespace=namespace)
    return str(pod["status"]["podIP"])
