"""A compiled pipeline whose tasks run as Jobs: kfp.local walks the graph, a Job is the subprocess."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from kfp import components, local
from kfp.local import status, subprocess_task_handler, task_handler_interface

from feedworks import images

from .jobs import Workplace
from .kubectl import ClusterError
from .server import has_image

ROOT = Path(__file__).resolve().parents[2]
TASK_S = 900.0


class Task(NamedTuple):
    """A task that ran: its name, image and command, its output artifacts by name, and how long it took."""

    name: str
    image: str
    command: list[str]
    environment: dict[str, str]
    outputs: dict[str, Path]
    seconds: float


def image_for(image: str) -> str:
    """The image that a task runs in: the CPU's where the one with CUDA is not loaded."""
    return images.CPU if image == images.GPU and not has_image(images.GPU) else image


def run_pipeline(work: Workplace, paper: str, arguments: dict[str, object]) -> list[Task]:
    """Run pipelines/compiled/PAPER.yaml and return the tasks that ran.

    Raises:
        ClusterError: a task failed, or an output is not on the claim.
    """
    root = work.path / paper
    root.mkdir()
    pipeline = components.load_component_from_file(str(ROOT / "pipelines" / "compiled" / f"{paper}.yaml"))
    dags = [
        pipeline.pipeline_spec.root.dag,
        *(each.dag for each in pipeline.pipeline_spec.components.values()),
    ]
    for dag in dags:
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    with _as_jobs(work, paper) as ran, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Task .* have no effect in the current local runner")
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
        pipeline(**arguments)
    return ran


@contextmanager
def _as_jobs(work: Workplace, paper: str) -> Iterator[list[Task]]:
    ran: list[Task] = []
    errors: list[ClusterError] = []
    turn = threading.Lock()  # kfp runs the turns of a loop side by side

    class Handler(task_handler_interface.ITaskHandler):
        """One task."""

        def __init__(self, image: str, full_command: list[str], *_: Any, **others: Any) -> None:
            self._image, self._command = image_for(image), full_command
            self._environment: dict[str, str] = others.get("env_vars") or {}

        def run(self) -> status.Status:
            with turn:
                try:
                    ran.append(
                        _run(work, f"{paper}-{len(ran)}", self._image, self._command, self._environment)
                    )
                except ClusterError as error:
                    errors.append(error)
                    return status.Status.FAILURE
            return status.Status.SUCCESS

    usual = subprocess_task_handler.SubprocessTaskHandler
    subprocess_task_handler.SubprocessTaskHandler = Handler
    try:
        yield ran
    except RuntimeError as error:
        raise (errors[0] if errors else error) from None
    finally:
        subprocess_task_handler.SubprocessTaskHandler = usual


def executor_input(command: list[str]) -> dict[str, Any]:
    """What kfp's executor in the container is told."""
    found: dict[str, Any] = json.loads(command[command.index("--executor_input") + 1])
    return found


def changed(task: Task, out: Path, overrides: list[str]) -> list[str]:
    """The command of a task with other settings, that writes below another folder."""
    told = executor_input(task.command)
    told["inputs"]["parameterValues"]["overrides"] = overrides
    told["outputs"]["outputFile"] = str(out / "executor_output.json")
    for name, found in told["outputs"].get("artifacts", {}).items():
        found["artifacts"][0]["uri"] = str(out / name)
    place = task.command.index("--executor_input") + 1
    return [*task.command[:place], json.dumps(told), *task.command[place + 1 :]]


def _run(work: Workplace, job: str, image: str, command: list[str], environment: dict[str, str]) -> Task:
    """Run a task as a Job; its executor's output comes to the same path here, where kfp reads it."""
    outputs = executor_input(command)["outputs"]
    told = Path(outputs["outputFile"])
    name = told.parent.name
    start_s = time.monotonic()
    work.run(f"{job}-{name}", image, command, within_s=TASK_S, environment=environment)
    seconds = time.monotonic() - start_s
    told.parent.mkdir(parents=True, exist_ok=True)
    artifacts = {
        key: Path(found["artifacts"][0]["uri"])
        for key, found in outputs.get("artifacts", {}).items()
        # The numbers of a system.Metrics are in the executor's output; it has no file.
        if found["artifacts"][0]["type"]["schemaTitle"] != "system.Metrics"
    }
    if text := work.sh(f"cat {told}", check=False):
        told.write_text(text)
    looks = [f'[ -n "$(find {path} -type f -size +0)" ] || echo {path}' for path in artifacts.values()]
    if nothing := work.sh("; ".join(looks or [":"])):
        raise ClusterError(f"task {name} left nothing at {nothing}")
    return Task(name, image, command, environment, artifacts, seconds)
