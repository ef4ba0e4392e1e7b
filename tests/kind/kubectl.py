"""kubectl as the tests use it: JSON in and out, a limit on every call, and what failing pods say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

Object = dict[str, Any]
Found = TypeVar("Found")

CALL_S = 90.0
_LAST_LINES = 30


class ClusterError(AssertionError):
    """What a cluster did not do, with what its pods said."""


def program() -> str:
    """Path of kubectl."""
    found = shutil.which("kubectl")
    if found is None:
        raise ClusterError("KUBECONFIG is set, but there is no kubectl on the PATH")
    return found


def kubectl(
    *words: str, namespace: str = "", stdin: str | None = None, check: bool = True, within_s: float = CALL_S
) -> subprocess.CompletedProcess[str]:
    """Run kubectl to its end.

    Raises:
        ClusterError: it failed or took too long.
    """
    command = [program(), *(["-n", namespace] if namespace else []), *words]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, check=False, timeout=within_s
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"kubectl {' '.join(words)[:200]}: no answer in {within_s:.0f} s") from None
    if check and done.returncode:
        raise ClusterError(f"kubectl {' '.join(words)[:200]}: {done.stderr.strip()}")
    return done


def get(*words: str, namespace: str = "") -> Object:
    """The objects that `kubectl get` finds, as JSON."""
    found: Object = json.loads(kubectl("get", *words, "-o", "json", namespace=namespace).stdout)
    return found


def items(*words: str, namespace: str = "") -> list[Object]:
    """The items of a list."""
    found: list[Object] = get(*words, namespace=namespace)["items"]
    return found


def raw(path: str, body: Object | None = None) -> Object:
    """GET a path of the API server, or POST JSON to it."""
    words = ["create", "-f", "-"] if body is not None else ["get"]
    stdin = None if body is None else json.dumps(body)
    found: Object = json.loads(kubectl(*words, "--raw", path, stdin=stdin).stdout)
    return found


def apply(objects: Sequence[Object]) -> str:
    """Apply objects as they are; return what kubectl said, warnings included."""
    every = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    done = kubectl("apply", "-f", "-", stdin=json.dumps(every))
    return done.stdout + done.stderr


def remove(kind: str, *names: str, namespace: str = "", within_s: float = 180.0) -> None:
    """Delete objects and wait until they are gone; none is no error."""
    words = ["delete", kind, *names, "--ignore-not-found", f"--timeout={within_s:.0f}s"]
    kubectl(*words, namespace=namespace, within_s=within_s + 30)


def wait_for(
    look: Callable[[], Found | None], what: str, *, within_s: float, namespace: str, selector: str = ""
) -> Found:
    """Look again and again until something is found.

    Raises:
        ClusterError: nothing was found in time; it tells what the pods say.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        if (found := look()) is not None:
            return found
        if time.monotonic() > deadline_s:
            raise ClusterError(f"{what}: not in {within_s:.0f} s\n{explain(namespace, selector)}")
        time.sleep(0.5)


def explain(namespace: str, selector: str = "") -> str:
    """What is known of some pods: their state, events and last lines."""
    chosen = ["-l", selector] if selector else []
    said = [kubectl("describe", "pods", *chosen, namespace=namespace, check=False).stdout]
    for pod in items("pods", *chosen, namespace=namespace):
        name = pod["metadata"]["name"]
        for which in ([], ["--previous"]):
            words = ["logs", name, "--all-containers", f"--tail={_LAST_LINES}", *which]
            if text := kubectl(*words, namespace=namespace, check=False).stdout:
                said.append(f"--- {' '.join(words)}\n{text}")
    return "\n".join(said)


@contextmanager
def forwarded(namespace: str, target: str, port: int) -> Iterator[str]:
    """Forward a free port of loopback to a service or pod; yield its address."""
    command = [program(), "-n", namespace, "port-forward", "--address=127.0.0.1", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"Forwarding from (127\.0\.0\.1:\d+)", line)
            if found is None:
                raise ClusterError(f"port-forward to {target}: {line}{explain(namespace)}")
            yield f"http://{found.group(1)}"
        finally:
            process.terminate()
