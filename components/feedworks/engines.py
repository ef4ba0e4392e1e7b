"""Where the heavy pass over a table runs: in this process, or as tasks of Ray Data. The results are the same.

A pass is a function of some row groups that yields batches and knows nothing of other row groups. Whoever
joins the batches gets them in the order of the table, whatever ran where, so that what is written does not
depend on the engine. Memory: here one batch; on Ray one for each task, and Ray's own object store.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from feedworks.errors import ConfigError, FeedworksError

Pass = Callable[[Sequence[int]], Iterator[pa.RecordBatch]]
# Rows of one task, as far as row groups are not larger: some seconds of work against 10 ms for a task.
TASK_ROWS = 2_097_152
CONNECT_S, ANSWER_S = 5.0, 60.0
SHOWN = 300  # letters of what Ray says
# `ray.init` takes minutes for a server that is none, and then ends the process: another one tries first.
_TRY = "import ray; ray.init(address='auto', log_to_driver=False); ray.shutdown()"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Where the heavy pass of preparation runs.

    Ray Data has its driver on a machine of the cluster, so that a step that takes a cluster is started there.

    Attributes:
        engine: `local` is this process, `ray` takes Ray Data.
        address: of the Ray cluster: `local` starts one on this machine for the time of the pass, `auto` takes
            the one that this machine belongs to, or that RAY_ADDRESS names. All its nodes must see the data
            folder under the same path.
        done_in: a folder that the step wrote before, on a cluster of Ray for example, from the same data with
            the same settings: its result is taken instead of made again.
    """

    engine: Literal["local", "ray"] = "local"
    address: str = "local"
    done_in: str = ""

    def __post_init__(self) -> None:
        if self.address not in ("local", "auto"):
            raise ConfigError(
                f"prepare.address={self.address!r}: expected local or auto; a cluster is not reached from "
                "outside: start this step on one of its machines with prepare.address=auto, by a RayJob "
                "(manifests/README.md) or by `ray job submit`"
            )


def over_row_groups(
    function: Pass, group_rows: Sequence[int], cfg: PrepareConfig
) -> Iterator[pa.RecordBatch]:
    """Yield what `function` yields for all row groups of a table, in their order.

    Args:
        function: the pass; on Ray it travels to the workers, so what it holds must be small.
        group_rows: rows of each row group.
        cfg: the engine.

    Raises:
        FeedworksError: what the pass raises.
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    if cfg.engine == "local":
        yield from function(range(len(group_rows)))
        return
    with _cluster(cfg.address):
        yield from _on_ray(function, _tasks(group_rows))


def _tasks(group_rows: Sequence[int]) -> list[list[int]]:
    tasks: list[list[int]] = [[]]
    num_rows = 0
    for group, rows in enumerate(group_rows):
        if tasks[-1] and num_rows + rows > TASK_ROWS:
            tasks.append([])
            num_rows = 0
        tasks[-1].append(group)
        num_rows += rows
    return tasks


def _on_ray(function: Pass, tasks: list[list[int]]) -> Iterator[pa.RecordBatch]:
    import ray
    import ray.data

    def run(task: pa.Table) -> Iterator[pa.Table]:
        for batch in function(task["groups"][0].as_py()):
            yield pa.Table.from_batches([batch])

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"groups": groups} for groups in tasks]
    found: Any = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        run, batch_size=1, batch_format="pyarrow"
    )
    try:
        for table in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            yield from table.to_batches()
    except ray.exceptions.RayError as error:
        raise _of_the_pass(error) from None


def _of_the_pass(error: BaseException) -> FeedworksError:
    """What the pass raised in a worker, or what happened to Ray itself."""
    from ray.exceptions import RayError

    inner: BaseException | None = error
    while inner is not None:
        # Ray's copy of an error is of its class, too, and has a trace for a text.
        if isinstance(inner, FeedworksError) and not isinstance(inner, RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return FeedworksError(f"prepare.engine=ray: the pass broke off ({type(error).__name__}: {_short(error)})")


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ConfigError(
            "prepare.engine=ray: ray is not installed; pip install 'feedworks[ray]', or set "
            "prepare.engine=local"
        ) from None
    if ray.is_initialized():  # by the caller, whose cluster it is
        yield
        return
    if address == "auto":
        _require_cluster()
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address == "auto":
            raise _no_cluster(str(error)) from None
        raise FeedworksError(f"prepare.address=local: Ray does not start here ({_short(error)})") from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_cluster() -> None:
    named = os.environ.get("RAY_ADDRESS", "")
    if "://" in named:
        raise _no_cluster("not a machine of it, and Ray Data does not run from outside")
    host, _, port = named.rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise _no_cluster(str(error)) from None
    command = [sys.executable, "-c", _TRY]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise _no_cluster(f"no answer within {ANSWER_S:g} s") from None
    if done.returncode:
        raise _no_cluster(_reason(done.stderr))


def _reason(trace: str) -> str:
    """The last line of a trace that names an error; Ray's own code prints its frames below."""
    lines = trace.strip().splitlines() or ["no reason given"]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1])


def _no_cluster(reason: str) -> ConfigError:
    named = os.environ.get("RAY_ADDRESS")
    where = f" at RAY_ADDRESS={named}" if named else " on this machine"
    return ConfigError(
        f"prepare.address=auto: no Ray cluster answers{where} ({_short(reason)}); start the "
        "step on a machine of a cluster, or set prepare.address=local"
    )


def _short(reason: object) -> str:
    """The end of a text in one line: Ray says there what happened."""
    text = " ".join(str(reason).split())
    return text if len(text) <= SHOWN else "..." + text[-SHOWN:]
