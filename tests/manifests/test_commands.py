"""The commands of the feature store's objects, run here as the cluster would: Redis, build, apply, serve.

Their folders lie below a temporary one, their addresses on loopback; else all is as rendered.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from feedworks.features.reading import MISSING, open_source
from feedworks.features.schema import ServiceSchema
from feedworks.serving.server import free_port

from .rendered import ROOT, Object, Template, name_of, of_kind, overlay, templates

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on the PATH"),
]
PASSWORD = "0123456789abcdef"
WITHIN_S = 120.0


class Node:
    """A folder and free ports in place of a cluster's paths and addresses."""

    def __init__(self, folder: Path, objects: list[Object]) -> None:
        self.folder = folder
        self.templates = {each.owner: each for each in templates(objects)}
        self.maps = {name_of(each): each["data"] for each in of_kind(objects, "ConfigMap")}
        self.ports = {port: free_port() for port in ("6379", "6566")}

    def here(self, text: str) -> str:
        """Text with this node's places."""
        for path in ("/features", "/etc/feedworks", "/etc/redis", "/run/secrets/redis", "/data"):
            text = re.sub(rf"(?<![\w/.]){path}\b", f"{self.folder}{path}", text)
        text = text.replace("redis:6379", f"127.0.0.1:{self.ports['6379']}").replace("0.0.0.0", "127.0.0.1")
        for port, free in self.ports.items():
            text = re.sub(rf"(?<![\d.:])\b{port}\b", str(free), text)
        return re.sub(r"bind \* -::\*", "bind 127.0.0.1", text)

    def mount(self, template: Template) -> None:
        """Make the folders and files that a pod's containers mount."""
        sources = {volume["name"]: volume for volume in template.spec["volumes"]}
        for container in template.containers:
            for mounted in container["volumeMounts"]:
                folder = Path(f"{self.folder}{mounted['mountPath']}")
                folder.mkdir(parents=True, exist_ok=True)
                volume = sources[mounted["name"]]
                if "configMap" in volume:
                    for name, text in self.maps[f"ConfigMap/{volume['configMap']['name']}"].items():
                        (folder / name).write_text(self.here(text))
                if "secret" in volume:
                    (folder / "password").write_text(PASSWORD)

    def command(self, owner: str, container: str) -> tuple[list[str], dict[str, str]]:
        """Words and environment of a container."""
        template = self.templates[owner]
        self.mount(template)
        (found,) = [each for each in template.containers if each["name"] == container]
        environment: dict[str, str] = {}
        for variable in found.get("env", []):
            value = variable.get("value", PASSWORD)
            environment[variable["name"]] = self.here(_expanded(value, environment))
        # Feast shows its metrics on all addresses, at a port that this machine may not have free.
        words = [*found.get("command", []), *(word for word in found.get("args", []) if word != "--metrics")]
        return [self.here(_expanded(word, environment)) for word in words], environment

    def run(self, owner: str, container: str) -> str:
        """Run a container of a job to its end; return what it said."""
        words, environment = self.command(owner, container)
        done = subprocess.run(
            words, env=_environment(environment), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def running(self, owner: str, container: str) -> Iterator[subprocess.Popen[bytes]]:
        """A container that runs for ever."""
        words, environment = self.command(owner, container)
        with (self.folder / f"{container}.log").open("wb") as log:
            process = subprocess.Popen(words, env=_environment(environment), stdout=log, stderr=log)
            try:
                yield process
            finally:
                process.terminate()
                process.wait(30)


def _expanded(text: str, environment: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match.group(1), match.group()), text)


def _environment(more: dict[str, str]) -> dict[str, str]:
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    return {**os.environ, "PATH": programs, "PYTHONPATH": sources, "PYTHONWARNINGS": "", **more}


def _answer(port: int, path: str, body: object = None) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as response:
        content: bytes = response.read()
    return content


def _wait(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline_s, "it does not answer"
        try:
            _answer(port, path)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)


def _probe(node: Node, owner: str, probe: str) -> subprocess.CompletedProcess[str]:
    container: Any = node.templates[owner].containers[0]
    words = [node.here(word) for word in container[probe]["exec"]["command"]]
    words[-1] = words[-1].replace("redis-cli", f"redis-cli -p {node.ports['6379']}")
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_feature_store_from_events_to_an_answer(tmp_path: Path) -> None:
    node = Node(tmp_path, overlay("kind"))
    assert _probe(node, "StatefulSet/redis", "readinessProbe").returncode != 0
    with node.running("StatefulSet/redis", "redis") as redis:
        deadline_s = time.monotonic() + WITHIN_S
        while _probe(node, "StatefulSet/redis", "readinessProbe").returncode != 0:
            assert redis.poll() is None, (tmp_path / "redis.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert PASSWORD not in Path(f"/proc/{redis.pid}/cmdline").read_text()

        assert "wrote" in node.run("CronJob/features-build", "build")
        assert "Created feature view user_profile" in node.run("CronJob/features-materialize", "apply")
        said = node.run("CronJob/features-materialize", "materialize")
        rows = dict(re.findall(r"^(\w+): (\d+) rows", said, flags=re.MULTILINE))
        assert int(rows["user_profile"]) > 0

        _, environment = node.command("Deployment/feedworks-ocarm", "service")
        assert asyncio.run(_fresh_or_stale(environment["FEEDWORKS_FEATURE_STORE"])) > 0

        assert node.run("Deployment/features", "registry") == ""
        with node.running("Deployment/features", "server") as server:
            _wait(server, node.ports["6566"], "/health")
            query = {"features": _features(), "entities": {"user_id": [0, 1]}}
            answer = json.loads(_answer(node.ports["6566"], "/get-online-features", query))
            assert any(value is not None for each in answer["results"][1:] for value in each["values"])


async def _fresh_or_stale(address: str) -> int:
    """How many of some users have a row of user_profile at an address of the online store."""
    schema = ServiceSchema.of("ocarm_student_v1")
    source = open_source(address, schema, timeout_s=5.0)
    rows = await source.read(list(range(100)), time.time_ns() // 1000)
    await source.close()
    return int((rows.status["user_profile"] != MISSING).sum())


def _features() -> list[str]:
    """Two features of the view of users, by the contracts."""
    from feedworks.contracts.features import USER_PROFILE

    return [f"user_profile:{column.name}" for column in USER_PROFILE.features][:2]
