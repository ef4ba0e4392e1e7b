"""A Kubeflow pipeline on this machine: kfp.local with a subprocess or a container for each task."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedworks import images
from feedworks.cli.docker_tasks import docker_runner
from feedworks.cli.pipelines import load_pipeline
from feedworks.cli.processes import end_children
from feedworks.errors import FeedworksError
from feedworks.progress import Relay, say
from feedworks.results import publish
from feedworks.task_resources import THREADS

if TYPE_CHECKING:
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

_COLOUR = re.compile(r"\x1b\[\d+m")
_TASK = re.compile(
    r"\d\d:\d\d:\d\d\.\d+ - [A-Z]+ - (Executing task|Task) '([^']+)'(?: finished with status (\w+))?"
)
_TASK_INDENT = "    "
_ERROR = re.compile(r"(?:[\w.]+\.)?(\w+(?:Error|Exception|Interrupt)): (.*)")


def run_pipeline(
    name: str,
    *,
    source: str,
    preset: str,
    overrides: Sequence[str],
    out: Path,
    containers: bool = False,
    image: str = images.CPU,
) -> None:
    """Run pipelines/<name>.py here and bring its metrics.json, report.html and model/ to `out`.

    Args:
        name: of the paper and its pipeline.
        source: a folder of data, or `synthetic`.
        preset: name of a preset of the paper.
        overrides: `key=value` settings.
        out: the tasks' own outputs and log stay under its work/kfp.
        containers: run each task in a container of this machine's Docker engine.
        image: of these containers.

    Raises:
        FeedworksError: a task failed; earlier results in `out` stay.
    """
    root = out / "work" / "kfp"
    if containers and ":" in str(root.resolve()):
        raise FeedworksError(f"Docker mounts no folder with a colon in its name: {out}; give another --out")
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    source = str(Path(source).resolve()) if Path(source).is_dir() else source
    arguments: dict[str, object] = {"source": source, "preset": preset, "overrides": list(overrides)}
    runner = docker_runner(source, image) if containers else _subprocesses()
    log = TaskLog(root / "tasks.log")
    try:
        with runner as started, redirect_stdout(log):
            _run_tasks(name, arguments, root, started, image if containers else None)
    except KeyboardInterrupt:
        end_children()
        raise
    except RuntimeError as error:
        raise FeedworksError(_reason(log, root, error)) from error
    finally:
        log.close()
    evaluation, model = (
        next(root.glob(f"*/{task}"), None) for task in ("evaluate/evaluation", "package/model")
    )
    if evaluation is None:
        raise FeedworksError(f"the pipeline wrote no evaluation; see {root / 'tasks.log'}")
    publish(evaluation, model, out)


@contextmanager
def _subprocesses() -> Iterator[Any]:
    from kfp import local

    yield local.SubprocessRunner(use_venv=False)


def _run_tasks(name: str, arguments: dict[str, object], root: Path, runner: Any, image: str | None) -> None:
    from kfp import local

    # A task's lines come through a pipe, which Python would otherwise fill before it passes any on.
    os.environ["PYTHONUNBUFFERED"] = "1"
    with warnings.catch_warnings():
        # Resource requests are for the cluster; kfp says of each task that they do nothing here.
        warnings.filterwarnings("ignore", "Task .* have no effect in the current local runner")
        local.init(runner, pipeline_root=str(root.resolve()))
        pipeline = load_pipeline(name)
        if image:
            _set_image(pipeline.pipeline_spec, image)
        _drop_retries(pipeline.pipeline_spec)
        _drop_threads(pipeline.pipeline_spec)
        pipeline(**arguments)


def _drop_retries(spec: PipelineSpec) -> None:
    # They are for machines that go away; here a task that failed once fails again, after minutes of waiting.
    for dag in [spec.root.dag, *(component.dag for component in spec.components.values())]:
        for task in dag.tasks.values():
            task.ClearField("retry_policy")


def _drop_threads(spec: PipelineSpec) -> None:
    # Their number is that of a pod's cores; here the caller's environment says it, or the machine.
    for executor in spec.deployment_spec["executors"].values():
        container = executor["container"]
        if "env" in container:
            container["env"] = [each for each in container["env"] if each["name"] != THREADS]


def _set_image(spec: PipelineSpec, image: str) -> None:
    for executor in spec.deployment_spec["executors"].values():
        executor["container"]["image"] = image


def _reason(log: TaskLog, root: Path, error: RuntimeError) -> str:
    if log.error is None:
        return f"{_COLOUR.sub('', str(error))} See {root / 'tasks.log'}"
    kind, message = log.error
    known = {each.__name__ for each in FeedworksError.__subclasses__()}
    return message if kind in known else f"{kind}: {message}; the trace is in {root / 'tasks.log'}"


class TaskLog(io.TextIOBase):
    """Stands in for stdout while kfp runs: shows what the tasks say, keeps everything in a file.

    kfp prints each task's input as 50 lines of JSON, and an error as a trace of its own frames. Both go
    to the file only; the last error is kept for the one line that the user sees.

    Args:
        path: of the file that gets every line.
    """

    def __init__(self, path: Path) -> None:
        self.error: tuple[str, str] | None = None
        self._file = path.open("w")
        self._rest = ""
        self._inside = False
        self._half_said = False
        self._hidden_until: str | None = None
        self._start_s = 0.0
        self._relay = Relay(indent="  ")

    def write(self, text: str) -> int:
        """Take text from kfp; whole lines go on."""
        self._file.write(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(_COLOUR.sub("", line))
        return len(text)

    def close(self) -> None:
        """Close the file, and the bar that a task left."""
        self._relay.close()
        self._file.close()
        super().close()

    def _line(self, line: str) -> None:
        if task := _TASK.match(line):
            self._task(*task.groups())
        elif self._inside and line.startswith(_TASK_INDENT) and line.strip():
            self._task_line(line.removeprefix(_TASK_INDENT))

    def _task(self, event: str, name: str, status: str | None) -> None:
        # Between the end of a task and the next one kfp lists outputs, indented like a task's own lines.
        self._inside, self._hidden_until = event == "Executing task", None
        self._relay.close()
        if self._inside:
            self._start_s = time.monotonic()
            say(f"[{name}]")
        elif status:
            say(f"[{name}] {status.lower()} in {time.monotonic() - self._start_s:.1f} s")

    def _task_line(self, line: str) -> None:
        if line.startswith("[KFP Executor"):
            self._hidden_until = "}" if line.endswith("Got executor_input:") else None
            self._half_said = line.endswith((":", "->"))
        elif line.startswith("Traceback (most recent call last)"):
            self._hidden_until = "the end"
        elif self._hidden_until is None and self._half_said:
            # The second line of a library's log message.
            self._half_said = False
        elif self._hidden_until is None:
            self._relay.show(line)
        elif error := _ERROR.match(line):
            self.error = (error.group(1), error.group(2))
        elif line == self._hidden_until:
            self._hidden_until, self._half_said = None, False
