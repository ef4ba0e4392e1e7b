"""MaRI (arXiv 2602.23105): the steps of the pipeline. Paths in, paths out.

Each step reads the folders of earlier steps and writes one folder, whole or not at all. A ranker folder holds
sides.json and model.pt2, all that later steps need: only `make_ranker` runs a model's own code.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch.export import ExportedProgram

from feedworks.configuration import to_json
from feedworks.contracts.ranking import read_fields
from feedworks.errors import DataError
from feedworks.mari.config import MariConfig
from feedworks.mari.convert import Conversion, reparameterise
from feedworks.mari.data import read_rows, schema_of, without_contradictions
from feedworks.mari.gate import finite, flat_metrics, reasons, speedup
from feedworks.mari.onnx_file import save_twin
from feedworks.mari.outside import load_outside, require_names, require_scores
from feedworks.mari.packaging import write_package
from feedworks.mari.programs import load_program, save_program
from feedworks.mari.quality import measure_quality
from feedworks.mari.rankers import build_ranker
from feedworks.mari.report import write_report, write_sites_page
from feedworks.mari.samples import Sample, draw, export_ranker, tiled
from feedworks.mari.schema import ONNX_FOLDER, SIDES_FILE, TWIN_FOLDER, RankerSchema
from feedworks.mari.sites import cut_sites, site_report
from feedworks.mari.timing import time_model
from feedworks.mari.training import train_ranker
from feedworks.mari.twin import Twin
from feedworks.mari.verify import Tolerance, requests_apart, verify_onnx
from feedworks.mari.verify import verify as compare
from feedworks.metrics.ranking import read_back
from feedworks.progress import say
from feedworks.results import BENCH
from feedworks.storage import atomic_folder, read_json, write_json
from feedworks.training.checkpoint import load_extra, save_model
from feedworks.training.processes import is_first_process
from feedworks.training.settings import seeded
from feedworks.training.state import state_of

MODEL_FILE = "model.pt2"


class Ranker(NamedTuple):
    """Where the ranker came from; of a trained one the best epoch and its AUC on the validation split."""

    made: str
    best_epoch: int | None = None
    valid_auc: float | None = None


class Sites(NamedTuple):
    """How many products were cut, and how many times fewer operations all products need at the most rows."""

    num_cut: int
    flop_ratio: float


class Verified(NamedTuple):
    """Whether every comparison came out equal, and the largest difference in float32."""

    equal: bool
    max_error: float


class Timed(NamedTuple):
    """Time of user-side one-shot inference over that of the twin, eager, at the most rows."""

    speedup: float


class Evaluation(NamedTuple):
    """The flat metrics."""

    metrics: dict[str, float]


class Packaged(NamedTuple):
    """The name under which the model is served."""

    tag: str


def make_ranker(data_dir: Path | None, out_dir: Path, cfg: MariConfig) -> Ranker:
    """Import the model from outside if one is asked for, else train the ranker of the settings.

    Args:
        data_dir: a ranking data folder that has passed the gate; not read for a model from outside.
        out_dir: the ranker folder.
        cfg: all settings.

    Raises:
        ModelError: the model cannot be imported or exported, or does not score as its schema says; training
            broke down.
        DataError: the sides file or the data cannot be used.
    """
    if cfg.outside.model:
        return import_ranker(out_dir, cfg)
    if data_dir is None:
        raise DataError("no data to train a ranker on; give a ranking data folder, or a model from outside")
    return train(data_dir, out_dir, cfg)


def import_ranker(out_dir: Path, cfg: MariConfig) -> Ranker:
    """Write the ranker folder of a model from outside. See `make_ranker`."""
    schema = RankerSchema.read(Path(cfg.outside.sides))
    model = load_outside(cfg.outside.model)
    require_names(model, schema, cfg.outside.model)
    program = export_ranker(model, schema)
    require_scores(program, schema, cfg.outside.model)
    if is_first_process():
        with atomic_folder(out_dir) as folder:
            schema.write(folder / SIDES_FILE)
            save_program(program, folder / MODEL_FILE)
    return Ranker("imported")


def train(data_dir: Path, out_dir: Path, cfg: MariConfig) -> Ranker:
    """Train the ranker of the settings and write its folder. See `make_ranker`."""
    schema = schema_of(
        read_fields(data_dir), history=cfg.ranker.arch == "din", max_candidates=cfg.max_candidates
    )
    model = build_ranker(cfg.ranker, schema, seed=cfg.seed)
    # Of the result's volume, where there is room, and made by nobody: all processes come here.
    scratch = next(folder for folder in out_dir.absolute().parents if folder.is_dir())
    rows = read_rows(data_dir, "train", scratch)
    state = state_of(out_dir)
    result = train_ranker(
        model,
        schema,
        without_contradictions(rows, scratch) if cfg.ranker.drop_contradictions else rows,
        read_rows(data_dir, "valid", scratch),
        seeded(cfg.training, cfg.seed),
        state,
        embedding_l2=cfg.ranker.embedding_l2,
    )
    if is_first_process():
        model = model.eval().cpu()
        with atomic_folder(out_dir) as folder:
            schema.write(folder / SIDES_FILE)
            save_program(export_ranker(model, schema), folder / MODEL_FILE)
            save_model(folder, model, to_json(cfg.ranker), {"history": result.history})
        shutil.rmtree(state, ignore_errors=True)
    return Ranker(cfg.ranker.arch, result.best_epoch, result.best_metric)


def colour_graph(ranker: Path, out_dir: Path, cfg: MariConfig) -> Sites:
    """Colour the model's graph and find its sites; writes sites.json and the page sites.html."""
    program, schema = load_ranker(ranker)
    report = site_report(program, _converted(program, schema, cfg), schema, cfg.convert.rows)
    with atomic_folder(out_dir) as folder:
        write_json(folder / "sites.json", report)
        write_sites_page(folder / "sites.html", report)
    before, after = report["flops"][str(max(cfg.convert.rows))]
    return Sites(len(cut_sites(report)), before / max(1, after))


def reparameterise_ranker(ranker: Path, out_dir: Path, cfg: MariConfig) -> None:
    """Cut the weights; writes the twin beside its schema, and as ONNX where the settings ask for it."""
    program, schema = load_ranker(ranker)
    with atomic_folder(out_dir) as folder:
        schema.write(folder / SIDES_FILE)
        twin = _converted(program, schema, cfg).twin
        twin.save(folder / TWIN_FOLDER)
        if cfg.convert.onnx:
            save_twin(twin, folder / ONNX_FOLDER)


def verify(ranker: Path, twin: Path, out_dir: Path, cfg: MariConfig) -> Verified:
    """Score samples with the model and its twin, in every type; writes verdict.json."""
    program, schema = load_ranker(ranker)
    wanted, samples = cfg.verify, _samples(schema, cfg)
    tolerance = Tolerance(rtol=wanted.rtol, atol=wanted.atol, low_ratio=wanted.low_ratio, gap=wanted.min_gap)
    loaded = Twin.load(twin / TWIN_FOLDER)
    found = compare(program, loaded, schema, samples, dtypes=wanted.dtypes, tolerance=tolerance)
    if (twin / ONNX_FOLDER).is_dir():
        found += verify_onnx(program, twin / ONNX_FOLDER, schema, samples, tolerance)
    rows = [finite(asdict(each)) for each in found]
    with atomic_folder(out_dir) as folder:
        facts = {
            "equal": all(each.equal for each in found),
            "requests_apart": requests_apart(program, schema, samples),
            "rows": rows,
        }
        write_json(folder / "verdict.json", facts)
    return Verified(
        all(each.equal for each in found), max(each.error for each in found if each.dtype == "float32")
    )


def benchmark(ranker: Path, out_dir: Path, cfg: MariConfig) -> Timed:
    """Time one request in every paradigm; writes bench.json."""
    program, schema = load_ranker(ranker)
    found = time_model(program, schema, cfg.bench, cfg.seed)
    with atomic_folder(out_dir) as folder:
        write_json(folder / BENCH, found)
    return Timed(speedup(found))


def evaluate(
    data_dir: Path | None,
    ranker: Path,
    twin: Path,
    sites: Path,
    verdict: Path,
    bench: Path,
    out_dir: Path,
    cfg: MariConfig,
) -> Evaluation:
    """Bring the results together; writes metrics.json, bench.json and report.html.

    A trained ranker is also measured on the test split of `data_dir`, beside its twin and two baselines.
    """
    site_facts, verdict_facts = read_json(sites / "sites.json"), read_json(verdict / "verdict.json")
    timings, quality, history = read_json(bench / BENCH), dict[str, float](), []
    if data_dir is not None and not cfg.outside.model:
        program, schema = load_ranker(ranker)
        loaded = Twin.load(twin / TWIN_FOLDER)
        quality = measure_quality(data_dir, program, loaded, schema, cfg.evaluation)
        history = load_extra(ranker)["history"]
    metrics = flat_metrics(site_facts, verdict_facts, quality)
    with atomic_folder(out_dir) as folder:
        write_json(folder / "metrics.json", metrics)
        write_json(folder / BENCH, timings)
        write_report(
            folder / "report.html",
            sites=site_facts,
            verdict=verdict_facts,
            bench=timings,
            quality=read_back(metrics, "test"),
            history=history,
            config=cfg,
        )
    return Evaluation(metrics)


def passes_gate(evaluation: Path, cfg: MariConfig) -> bool:
    """Whether the twin may be packaged; says why not."""
    found = reasons(read_json(evaluation / "metrics.json"), read_json(evaluation / BENCH), cfg.gate)
    for reason in found:
        say(f"gate: {reason}")
    return not found


def package(twin: Path, sites: Path, evaluation: Path, out_dir: Path, cfg: MariConfig) -> Packaged:
    """One folder with all that serving needs, and a model card."""
    with atomic_folder(out_dir) as folder:
        shutil.copyfile(twin / SIDES_FILE, folder / SIDES_FILE)
        for name in (TWIN_FOLDER, ONNX_FOLDER):
            if (twin / name).is_dir():
                shutil.copytree(twin / name, folder / name)
        shutil.copyfile(sites / "sites.json", folder / "sites.json")
        shutil.copyfile(evaluation / "metrics.json", folder / "metrics.json")
        return Packaged(write_package(folder, cfg))


def load_ranker(folder: Path) -> tuple[ExportedProgram, RankerSchema]:
    """Read a ranker folder.

    Raises:
        ModelError: it is missing or damaged.
    """
    return load_program(folder / MODEL_FILE), RankerSchema.read(folder / SIDES_FILE)


def _converted(program: ExportedProgram, schema: RankerSchema, cfg: MariConfig, **options: Any) -> Conversion:
    chosen = {"layout": cfg.convert.layout, "pad_to": cfg.convert.pad_to, **options}
    return reparameterise(program, tiled(schema, draw(schema, [5])), schema.sides, **chosen)


def _samples(schema: RankerSchema, cfg: MariConfig) -> list[Sample]:
    """Each request by itself and all in one batch, drawn anew for each sample."""
    requests = cfg.verify.requests
    kinds = [*([rows] for rows in requests), *([list(requests)] if len(requests) > 1 else [])]
    seeds = range(cfg.seed, cfg.seed + cfg.verify.num_samples)
    return [draw(schema, kind, seed) for seed in seeds for kind in kinds]
