"""Run the bench of feedworks_kernels: `python kernels/bench/run.py --help`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import exactness, results, timing
from bench.registry import Case, Operator, operators
from feedworks_kernels.measuring import ceilings

RESULTS = Path(__file__).with_name("results.csv")
_DESCRIPTION = """\
Times the operators of feedworks_kernels against their peers, all in turns in one process.

  time       (default) check every provider against float64 on small, awkward shapes and on the timed one,
             then time those that are right. A wrong one gets no time, and the exit code is 1.
  check      the same without timing
  exactness  ours over a sweep of shapes, types and options: forward, every gradient, decode; as Markdown
  random     the same on random shapes, until the time is up
  table      lay out the newest rows of the results file as Markdown, for READMEs
  list       what would be timed, without doing it
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: torch sees no CUDA device here; take --device cpu", file=sys.stderr)
        return 2
    try:
        return _COMMANDS[options.command](options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; rows written before this case are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("command", nargs="?", default="time", choices=list(_COMMANDS))
    add("--op", action="append", default=[], help="only this operator; may be repeated")
    add("--mode", action="append", default=[], help="only this mode, such as forward; may be repeated")
    add("--shape", default="", help="only shapes whose name contains this")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    add("--quick", action="store_true", help="tiny shapes: does everything run? Keeps no rows by itself")
    add("--seconds", type=float, default=270, help="time for all cases together, about (270)")
    add("--threads", type=int, default=0, help="threads of torch on a CPU (its choice)")
    add("--results", type=Path, default=None, help=f"file of rows ({RESULTS.name} beside this program)")
    add("--shard", default="0/1", help="check, exactness, random: part I/N, for several processes at once")
    return parser


def _time(options: argparse.Namespace) -> int:
    """Check and time; without ceilings nothing is timed."""
    part, parts = _shard(options)
    # Checks begin with what compiles longest, so that no part of them has it left at the end.
    cases = _cases(options)[:: 1 if options.command == "time" else -1][part::parts]
    path = options.results or (RESULTS if options.command == "time" and not options.quick else None)
    limits = ceilings(options.device, quick=options.quick) if options.command == "time" else None
    same = results.machine(options.device)
    if limits is not None:
        given = f"{limits.flop_per_s / 1e9:.4g} GFLOP/s, {limits.bytes_per_s / 1e9:.4g} GB/s"
        print(f"{same['device']}: {given}, commit {same['commit'] or 'unknown'}", flush=True)
    known: dict[tuple[str, ...], str] = {}
    rows: list[results.Row] = []
    wrong, num_done = [], 0
    for operator, case, seconds in timing.within(cases, options.seconds, all_of_them=options.quick):
        print(case.label(), file=sys.stderr, flush=True)
        outcome = timing.run_case(operator, case, limits, seconds, same, known)
        num_done += 1
        wrong += outcome.wrong
        for sentence in outcome.wrong:
            print(sentence, file=sys.stderr, flush=True)
        # After each case, so that a run that is cut off has lost nothing.
        if path is not None:
            results.append(path, outcome.rows)
        rows += results.as_text(outcome.rows)
    untimed = timing.untimed([case for _, case in cases[num_done:]], same)
    if path is not None:
        results.append(path, untimed)
    print(results.table([*rows, *results.as_text(untimed)]))
    for sentence in wrong:
        print(sentence)
    if untimed:
        print(f"no time left for {len(untimed)} cases: raise --seconds {options.seconds:g}")
    return 1 if wrong else 0


def _exactness(options: argparse.Namespace) -> int:
    part, parts = _shard(options)
    source = exactness.random_cases if options.command == "random" else exactness.swept
    found = exactness.run(source(options.op, options.device, part, parts), options.seconds)
    if options.results:
        exactness.write(options.results, found)
    print(exactness.table(found))
    return 0 if all(each.passed for each in found) else 1


def _table(options: argparse.Namespace) -> int:
    rows = results.read(options.results or RESULTS)
    print(results.table([row for row in rows if not options.op or row["op"] in options.op]))
    return 0


def _list(options: argparse.Namespace) -> int:
    for operator, case in _cases(options):
        names = [
            f"{each.name} ({each.missing})" if each.missing else each.name
            for each in operator.providers(case)
        ]
        print(f"{case.label()}: {', '.join(names)}")
    return 0


def _shard(options: argparse.Namespace) -> tuple[int, int]:
    words = options.shard.split("/")
    if len(words) != 2 or not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        raise ValueError(f"--shard {options.shard}: expected I/N with I < N, such as 0/4")
    return int(words[0]), int(words[1])


def _cases(options: argparse.Namespace) -> list[tuple[Operator, Case]]:
    found = [
        (operator, case)
        for operator in operators(options.op)
        for case in operator.cases(options.device, options.quick)
        if (not options.mode or case.mode in options.mode) and options.shape in case.shape
    ]
    if not found:
        raise ValueError(f"nothing to do: no case on {options.device} fits --op, --mode and --shape")
    return found


_COMMANDS = {
    "time": _time,
    "check": _time,
    "exactness": _exactness,
    "random": _exactness,
    "table": _table,
    "list": _list,
}

if __name__ == "__main__":
    sys.exit(main())
