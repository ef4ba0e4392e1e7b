"""How long a service's container takes from `docker run` to its first answer.

Use: cold_start.py NAME=OUT... [--image IMAGE] [--times N], such as recochain=out/demo, where
`feedworks demo NAME --out OUT` made OUT/model and OUT/work/data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

from feedworks import images
from feedworks.papers import PAPERS
from feedworks.serving.server import free_port, post_json

LIMIT_S = 300.0
LIKE_A_CLUSTER = ["--read-only", "--tmpfs", "/tmp:rw,exec,mode=1777", "--cap-drop=ALL"]


def post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Ask until the service listens: a refused connection is no answer."""
    end_s = time.monotonic() + LIMIT_S
    while True:
        try:
            return post_json(f"{address}{path}", body)
        except (urllib.error.URLError, ConnectionError) as error:
            if (isinstance(error, urllib.error.HTTPError) and error.code != 503) or time.monotonic() > end_s:
                raise
            time.sleep(0.05)


def cold_start(paper: str, out: Path, image: str, docker: str) -> dict[str, Any]:
    """Seconds from the start of the container until it lives and until it has answered; its memory then."""
    port = free_port()
    start_s = time.monotonic()
    words = ["-p", f"127.0.0.1:{port}:3000", "-v", f"{(out / 'model').resolve()}:/models/{paper}:ro"]
    served = [paper, "--model", f"/models/{paper}", "--host", "0.0.0.0", "--port", "3000"]
    command = [docker, "run", "-d", *LIKE_A_CLUSTER, *words, image, *served]
    container = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        address = f"http://127.0.0.1:{port}"
        while not _alive(address):
            if time.monotonic() > start_s + LIMIT_S or not _runs(docker, container):
                raise SystemExit(f"{paper}: its container does not serve: {_last_line(docker, container)}")
            time.sleep(0.02)
        alive_s = time.monotonic() - start_s
        PAPERS[paper].part("demo").ask(partial(post, address), out / "work" / "data")
        answered_s = time.monotonic() - start_s
        stats = [docker, "stats", "--no-stream", "--format", "{{.MemUsage}}", container]
        memory = (
            subprocess.run(stats, capture_output=True, text=True, check=True).stdout.split("/")[0].strip()
        )
    finally:
        subprocess.run([docker, "rm", "-f", container], capture_output=True, check=False)
    return {"alive_s": alive_s, "answered_s": answered_s, "memory": memory}


def _runs(docker: str, container: str) -> bool:
    asked = [docker, "inspect", "-f", "{{.State.Running}}", container]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == "true"


def _last_line(docker: str, container: str) -> str:
    said = subprocess.run([docker, "logs", container], capture_output=True, text=True, check=False)
    return next(reversed((said.stdout + said.stderr).strip().splitlines()), "it said nothing")


def _alive(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/livez", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def main() -> None:
    """Print a row of JSON for each service."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=OUT")
    parser.add_argument("--image", default=images.CPU_SERVE)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--docker", default="docker")
    words = parser.parse_args()
    for run in words.runs:
        paper, _, out = run.partition("=")
        if paper not in PAPERS or not (Path(out) / "model").is_dir():
            sys.exit(f"{run}: give NAME=OUT, a paper of {', '.join(PAPERS)} and the folder of its run")
        found = [cold_start(paper, Path(out), words.image, words.docker) for _ in range(words.times)]
        row = {"service": paper, "times": words.times, "memory": found[-1]["memory"]}
        row |= {
            name: round(statistics.median(each[name] for each in found), 2)
            for name in ("alive_s", "answered_s")
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
