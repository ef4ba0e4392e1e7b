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
# `ray.init` takes minutes for a server that is none, and then ends the process: another one tries first.
_TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False); ray.shutdown()"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Where the heavy pass of preparation runs.

    Attributes:
        engine: `local` is this process, `ray` takes Ray Data.
        address: of the Ray cluster: `local` starts one on this machine for the time of the pass, `auto` takes
            the one that this machine belongs to, `host:port` that of a head node. All its nodes must see the
            data folder under the same path.
    """

    engine: Literal["local", "ray"] = "local"
    address: str = "local"


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
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, FeedworksError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    reason = " ".join(str(error).split())[-300:]
    return FeedworksError(f"prepare.engine=ray: the pass broke off ({type(error).__name__}: {reason})")


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
    if address not in ("local", "auto"):
        _require_cluster(address)
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise _no_cluster(address, str(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def _require_cluster(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"prepare.address={address!r}: expected local, auto or host:port of a head node")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise _no_cluster(address, str(error)) from None
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY, address],
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _no_cluster(address, f"no answer within {ANSWER_S:g} s") from None
    if done.returncode:
        raise _no_cluster(address, done.stderr)


def _no_cluster(address: str, reason: str) -> ConfigError:
    lines = reason.strip().splitlines() or ["no reason given"]
    return ConfigError(
        f"prepare.address={address}: no Ray cluster answers there ({lines[-1][:200]}); start one, correct "
        "the address or set prepare.address=local"
    )
