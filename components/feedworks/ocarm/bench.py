"""OCARM (arXiv 2604.25839): the arms side by side, `python -m feedworks.ocarm.bench planted | lambda | ...`.

Samples, training sets, training and evaluation are the pipeline's own steps. Every command prints one JSON
object per line: `auc` and `gain` (over the base) of an arm, or the `share` of the gap between base and upper
bound that the student recovers, each with a 95 % bootstrap interval over users and seeds. Training sets and
the state of every model are kept under `--work`, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.configuration import to_json
from feedworks.contracts.retention import label_of
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.datasets.folder import open_data
from feedworks.metrics.ranking import Interval
from feedworks.ocarm import steps
from feedworks.ocarm.arms import ARMS, Arm, score_arm, teach, train_arms
from feedworks.ocarm.config import OcarmConfig, resolve
from feedworks.ocarm.evaluation import OURS, Evaluated, evaluate_arms
from feedworks.ocarm.rows import Inputs, read_content, read_inputs
from feedworks.results import once, run_key
from feedworks.storage import atomic_file, atomic_folder

BOUNDS: tuple[Arm, ...] = ("base", "upper")
WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
# Every user's first rating is the conversion and nobody converts twice; labels of 30 days in a log of 186
# leave no room for an embargo. The rest was chosen on validation: the teacher finds what content says late.
TWEETINGS = (
    "samples.idle_days=1000",
    "samples.first_is_conversion=true",
    "samples.landing_item=true",
    "samples.horizons=7,30",
    "samples.embargo=false",
    "model.dropout=0.2",
    "distil.weight=1",
    *("teacher.epochs=40", "teacher.patience=12", "teacher.lr=1e-3", "teacher.schedule=constant"),
    *("student.epochs=20", "student.patience=6", "student.lr=1e-3", "student.schedule=constant"),
)

_seeds = click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2, 3, 4), show_default=True)


def _with_bounds(ctx: click.Context, option: click.Parameter, arms: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse before hours of training what cannot be compared after it."""
    missing = [arm for arm in (*BOUNDS, OURS) if arm not in arms]
    if missing:
        raise click.BadParameter(f"the share recovered needs {', '.join(missing)} too", ctx, option)
    return arms


_arms = click.option(
    "--arm",
    "arms",
    type=click.Choice(ARMS),
    multiple=True,
    default=ARMS,
    show_default=True,
    callback=_with_bounds,
)
_preset = click.option("--preset", default="small", show_default=True)
_set = click.option("--set", "overrides", multiple=True, help="key=value; may be repeated")
_work = click.option(
    "--work", type=click.Path(path_type=Path), required=True, help="folder for all that is made"
)
_users = click.option("--users", type=int, default=3000, show_default=True)
_world = click.option("--world", type=int, default=0, show_default=True, help="seed of the planted log")
_noise = click.option(
    "--noise", "noises", multiple=True, default=("low", "middle", "high"), show_default=True, help="levels"
)


@click.group()
def main() -> None:
    """Measure what distillation recovers; one JSON object per line."""


@main.command()
@_noise
@_users
@_world
@_arms
@_seeds
@_preset
@_set
@_work
def planted(
    noises: Sequence[str],
    users: int,
    world: int,
    arms: Sequence[Any],
    seeds: Sequence[int],
    preset: str,
    overrides: Sequence[str],
    work: Path,
) -> None:
    """All arms on planted data, by noise of what can be seen before the return."""
    cfg = resolve(preset, overrides)
    for noise in noises:
        folder = _planted(work, noise, users, cfg, world)
        found = _run(folder, cfg, seeds, arms)
        _print({"op": "planted", "noise": noise, "users": users, "world": world}, found)


@main.command("lambda")
@click.option("--weight", "weights", type=float, multiple=True, default=WEIGHTS, show_default=True)
@click.option("--noise", default="middle", show_default=True)
@_users
@_seeds
@_preset
@_set
@_work
def sweep(
    weights: Sequence[float],
    noise: str,
    users: int,
    seeds: Sequence[int],
    preset: str,
    overrides: Sequence[str],
    work: Path,
) -> None:
    """The student by the weight of the alignment; one teacher and one base per seed serve all weights."""
    cfg = resolve(preset, overrides)
    folder = _planted(work, noise, users, cfg)
    inputs, hidden = _read(folder, cfg)
    predicted: dict[float, list[pa.Table]] = {weight: [] for weight in weights}
    for seed in seeds:
        state = _state(folder, cfg, seed)
        taught = teach(inputs, hidden, cfg, seed, state / "teacher")
        bounds = [score_arm(arm, inputs, hidden, taught, cfg, seed, state / arm) for arm in BOUNDS]
        for weight in weights:
            one = replace(cfg, distil=replace(cfg.distil, weight=weight))
            own = _state(folder, one, seed) / "ocarm"
            predicted[weight] += [*bounds, score_arm("ocarm", inputs, hidden, taught, one, seed, own)]
    for weight, tables in predicted.items():
        found = evaluate_arms(pa.concat_tables(tables), folder / "observables", cfg)
        _print({"op": "lambda", "weight": weight, "noise": noise, "users": users}, found, arms=(OURS,))


@main.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="ratings.dat, movies.dat"
)
@_arms
@_seeds
@_preset
@_set
@_work
def movietweetings(
    data: Path, arms: Sequence[Any], seeds: Sequence[int], preset: str, overrides: Sequence[str], work: Path
) -> None:
    """All arms on new users of MovieTweetings: does who rates a first movie come back?"""
    cfg = resolve(preset, (*TWEETINGS, *overrides))
    folder = work / f"movietweetings-{run_key(to_json(cfg.samples), [])}"
    _training_set(folder, open_data(data, folder / "data", kind="retention"), cfg)
    _print({"op": "movietweetings"}, _run(folder, cfg, seeds, arms))


def _planted(work: Path, noise: str, users: int, cfg: OcarmConfig, world: int = 0) -> Path:
    folder = work / f"{noise}-{users}-{world}-{run_key(to_json(cfg.samples), [])}"

    def write(out_dir: Path) -> None:
        with atomic_folder(out_dir) as new:
            write_synthetic_retention(new, num_users=users, noise=noise, seed=world)  # type: ignore[arg-type]

    once(folder / "data", write, folder / "data")
    _training_set(folder, folder / "data", cfg)
    return folder


def _training_set(folder: Path, data: Path, cfg: OcarmConfig) -> None:
    samples, tables = folder / "samples", folder / "tables"
    observables, content = folder / "observables", folder / "content"
    once(tables, steps.build, data, samples, tables, cfg)
    once(content, steps.join_features, samples, tables, observables, content)
    once(folder / "audit", steps.audit_times, samples, observables, content, folder / "audit", cfg)


def _read(folder: Path, cfg: OcarmConfig) -> tuple[Inputs, Any]:
    inputs = read_inputs(folder / "observables", cfg)
    return inputs, read_content(folder / "content", folder / "observables", inputs)


def _run(folder: Path, cfg: OcarmConfig, seeds: Iterable[int], arms: Sequence[Any]) -> Evaluated:
    inputs, hidden = _read(folder, cfg)
    tables = []
    for seed in seeds:
        state = _state(folder, cfg, seed)
        tables.append(train_arms(inputs, hidden, cfg, seed, state, arms))
        with atomic_file(state / "predictions.parquet") as path:
            pq.write_table(tables[-1], path)
    return evaluate_arms(pa.concat_tables(tables), folder / "observables", cfg)


def _state(folder: Path, cfg: OcarmConfig, seed: int) -> Path:
    """Where the models of these settings train; a state is only good for the settings that it began with."""
    return folder / "state" / run_key(to_json(cfg), []) / str(seed)


def _print(facts: dict[str, Any], found: Evaluated, arms: Sequence[str] = ARMS) -> None:
    for arm in (arm for arm in arms if arm in found.methods):
        row: dict[str, Any] = {**facts, "arm": arm}
        for days in found.recovered:
            row[f"auc_{label_of(days)}"] = _rounded(found.methods[arm][f"auc@{days}"])
            row[f"gauc_{label_of(days)}"] = _rounded(found.methods[arm][f"gauc@{days}"])
            if arm in found.gains:
                row[f"gain_{label_of(days)}"] = _rounded(found.gains[arm][f"auc@{days}"])
            if arm == OURS:
                row[f"share_{label_of(days)}"] = _rounded(found.recovered[days])
                row[f"similarity_{label_of(days)}"] = _rounded(
                    found.metrics[f"valid/{OURS}/similarity@{days}"]
                )
        print(json.dumps(row), flush=True)


def _rounded(value: Interval | float) -> float | list[float]:
    return [round(x, 4) for x in value] if isinstance(value, Interval) else round(value, 4)


if __name__ == "__main__":
    main()
