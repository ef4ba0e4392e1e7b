"""The whole round on a GPU in one call under nine minutes: checks, ceilings, timings, table last.

    python kernels/bench/gpu_round.py            # results in $OUT, or out/gpu_round
    python kernels/bench/gpu_round.py --device cpu --quick    # proves that the round runs

Each section is one or several processes of `run.py` with a time box of its own: one that fails or hangs takes
no other with it, and what it has written stays. Checks come first and in parallel, since compilation, which
they pay, needs processors and no GPU; the caches of Triton and torch.compile then serve the timings, which
run alone. The exit code is 1 if any section fails. What the sections print stands in round.log.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import exactness, results

ROOT = Path(__file__).resolve().parents[2]
_RUN = str(Path(__file__).with_name("run.py"))
_OPS = ("summary_attention", "summary_decode", "residual_quantize", "beam_step", "user_item_linear")
# Of each operator's timings, in seconds; the first compiles most.
_SHARE = (120, 30, 35, 25, 25)
_MOST_PRINTED = 11_000
# A process ends itself this long before its box does.
_MARGIN_S = 12


class Section(NamedTuple):
    """Processes that run at the same time, for at most so many seconds."""

    name: str
    commands: list[list[str]]
    box_s: float


class Done(NamedTuple):
    """What became of a section."""

    name: str
    seconds: float
    codes: list[int | None]  # None: stopped at the end of its box

    def failed(self) -> bool:
        """Tell whether a process ended badly or had to be stopped."""
        return any(code != 0 for code in self.codes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the round; returns the exit code."""
    options = _options(arguments)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as parts:
        options.parts = Path(parts)
        done = _round(options, out)
    text = report(done, out)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text[-_MOST_PRINTED:])
    return 1 if any(each.failed() for each in done) else 0


def _round(options: argparse.Namespace, out: Path) -> list[Done]:
    deadline = time.monotonic() + options.seconds
    done = []
    for section in sections(options):
        left = deadline - time.monotonic()
        if options.only and not section.name.startswith(tuple(options.only)):
            continue
        if left < 2 * _MARGIN_S and not options.quick:
            done.append(Done(section.name, 0.0, [None]))
            continue
        boxed = section._replace(box_s=min(section.box_s, left))
        print(f"{section.name}: at most {boxed.box_s:.0f} s", flush=True)
        done.append(run_section(boxed, out))
        _merge(options.parts, out, section.name)
    return done


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda", choices=["cpu", "cuda"])
    add("--quick", action="store_true", help="tiny shapes")
    add("--seconds", type=float, default=530, help="for everything (530)")
    add("--only", action="append", default=[], help="only sections whose name begins so; may be repeated")
    add("--op", action="append", default=[], help="only this operator; may be repeated")
    add("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "out" / "gpu_round"))
    return parser.parse_args(arguments)


def sections(options: argparse.Namespace) -> list[Section]:
    """List the sections in order."""
    quick = ["--quick"] if options.quick else []
    same = [f"--device={options.device}", *(f"--op={name}" for name in options.op)]
    num = 2 if options.quick else max(2, (os.cpu_count() or 2) - 2)
    scale = 0.1 if options.quick else 1.0

    def parts(command: str, box_s: float, most: int) -> Section:
        shards = min(num, most)
        own = max(1.0, box_s - (0 if options.quick else _MARGIN_S))
        rest = [*same, *quick, f"--seconds={own:.0f}"]
        return Section(
            command,
            [
                [
                    _RUN,
                    command,
                    *rest,
                    f"--shard={part}/{shards}",
                    f"--results={options.parts / command}.{part}",
                ]
                for part in range(shards)
            ],
            box_s + (60 if options.quick else 0),
        )

    timed = []
    for name, share in zip(_OPS, _SHARE, strict=True):
        if options.op and name not in options.op:
            continue
        table = f"--results={options.out / 'results.csv'}"
        words = ["time", f"--op={name}", f"--device={options.device}", *quick, table]
        words += [f"--seconds={max(1.0, (share - _MARGIN_S) * scale):.0f}"]
        timed.append(Section(f"time {name}", [[_RUN, *words]], share))
    # Six at a time: the longest sequences take 15 GB each.
    found = [parts("check", 100 * scale, 6), parts("exactness", 80 * scale, 14), *timed]
    last = parts("random", 110 * scale, 12)
    if options.device == "cuda" and not options.quick and importlib.util.find_spec("pytest"):
        last.commands.append(_tests())
    return [*found, last]


def _tests() -> list[str]:
    """The tests that want a GPU, beside the random shapes: both wait for compilers most of the time."""
    words = ["-m", "pytest", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        words += ["-n", "4"]
    return [*words, "tests/feedworks_kernels"]


def run_section(section: Section, out: Path) -> Done:
    """Run the processes of a section, stop what is left at the end of its box, keep what they print."""
    start_s = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    with (out / "round.log").open("ab") as log:
        log.write(f"\n===== {section.name}\n".encode())
        log.flush()
        processes = [
            subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            for command in section.commands
        ]
        codes = [_wait(process, start_s + section.box_s) for process in processes]
    return Done(section.name, time.monotonic() - start_s, codes)


def _wait(process: subprocess.Popen[bytes], deadline: float) -> int | None:
    try:
        return process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its compilers too; it leads a group of its own
        process.wait()
        return None


def _merge(parts: Path, out: Path, name: str) -> None:
    """Put the parts that a section wrote together."""
    written = sorted(parts.glob(f"{name}.*"))
    if name in ("exactness", "random"):
        findings = exactness.worst(each for path in written for each in exactness.read(path))
        exactness.write(out / f"{name}.jsonl", findings)
        (out / f"{name}.md").write_text(exactness.table(findings) + "\n", encoding="utf-8")
    elif name == "check":
        results.append(out / "check.csv", [row for path in written for row in results.read(path)])


def report(done: Sequence[Done], out: Path) -> str:
    """Say what failed, how exact ours is, and how fast: the most important last."""
    lines = ["## Sections", ""]
    for each in done:
        stopped = sum(code is None for code in each.codes)
        verdict = "failed" if each.failed() else "passed"
        words = f", {stopped} of {len(each.codes)} processes stopped at the end of its box" if stopped else ""
        lines.append(f"- {each.name}: {verdict}, {each.seconds:.0f} s{words}")
    for name in ("exactness", "random"):
        if (out / f"{name}.jsonl").exists():
            lines += ["", f"## {name}: worst error of ours against float64", ""]
            lines += exactness.brief(exactness.read(out / f"{name}.jsonl"))
    for name in ("check.csv", "results.csv"):
        rows = results.read(out / name)
        lines += [f"- {results.label(row)}, {row['provider']}: {row['note']}" for row in rows if _is_red(row)]
    lines += ["", "## Timings: ours, then how often it fits into each peer's time", ""]
    return "\n".join([*lines, *results.brief(results.read(out / "results.csv"))])


def _is_red(row: results.Row) -> bool:
    return row["note"].startswith("wrong")


if __name__ == "__main__":
    sys.exit(main())
