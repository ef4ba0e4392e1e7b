"""RecoChain (arXiv 2604.25787): the steps of the pipeline. Paths in, paths out.

Each step reads the folders of earlier steps and writes one folder, whole or not at all. Training keeps its
state beside the result in `<out>.state` until it is done, so a killed step goes on where it was.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import torch

from feedworks.baselines.sasrec import Validation, train_sasrec
from feedworks.configuration import from_json, to_json
from feedworks.metrics.codebook import bucket_sizes, codebook_perplexity, codebook_usage, collision_rate
from feedworks.nn.sasrec import SASRec
from feedworks.recochain import preparation, stages
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import ModelConfig, RecoChainConfig, SasrecConfig
from feedworks.recochain.data import (
    Sequences,
    read_examples,
    read_sequences,
    write_examples,
    write_sequences,
)
from feedworks.recochain.evaluation import Inputs, evaluate_all
from feedworks.recochain.model import RecoChain
from feedworks.recochain.packaging import write_package
from feedworks.recochain.report import write_report
from feedworks.recochain.tokenizer import Tokenizer
from feedworks.recochain.vectors import build_vectors
from feedworks.storage import atomic_folder, read_json, write_json
from feedworks.training.checkpoint import load_config_json, load_extra, load_model, read_tensors, save_model
from feedworks.training.checkpoint import save_tensors as write_tensors
from feedworks.training.loop import FitResult
from feedworks.training.processes import is_first_process
from feedworks.training.seed import seed_everything
from feedworks.training.settings import seeded
from feedworks.training.state import state_of


class Prepared(NamedTuple):
    """Sizes of the prepared data."""

    num_users: int
    num_items: int
    num_events: int


class Tokenized(NamedTuple):
    """How the semantic IDs came out."""

    num_sids: int
    collision_rate: float


class Trained(NamedTuple):
    """The best epoch of a training run and its monitored metric."""

    best_epoch: int
    best_metric: float
    num_steps: int


class Evaluation(NamedTuple):
    """The flat metrics and the gain that the gate looks at."""

    metrics: dict[str, float]
    rerank_gain: float


class Packaged(NamedTuple):
    """The name under which the model is served."""

    tag: str


def prepare(data_dir: Path, out_dir: Path, cfg: RecoChainConfig) -> Prepared:
    """Contract tables to sequences, items in order of popularity, and item vectors.

    Raises:
        DataError: a table is missing, an event names an unknown item, too few users, or no vectors; or
            `prepare.done_in` is no result of these data and settings.
    """
    key = preparation.preparation_key(data_dir, cfg)
    if cfg.prepare.done_in:
        preparation.take_prepared(Path(cfg.prepare.done_in), key, out_dir)
        return Prepared(**read_json(out_dir / "stats.json"))
    with atomic_folder(out_dir) as folder:
        data = preparation.prepare_data(data_dir, cfg, scratch=out_dir.parent)
        vectors, widths = build_vectors(
            cfg.vectors,
            given=data.items["vector"],
            text=data.items["text"].to_pylist(),
            sequences=data.sequences,
            seed=cfg.seed,
        )
        found = Prepared(len(data.sequences), len(data.items), len(data.sequences.item))
        segments = preparation.read_segments(data_dir, data.sequences.user_id)
        write_sequences(data.sequences, folder / "sequences.parquet")
        pq.write_table(data.items.drop_columns(["vector"]), folder / "items.parquet")
        tensors = {
            "item_id": torch.from_numpy(data.items["item_id"].to_numpy().copy()),
            "count": torch.from_numpy(data.count_N),
            "vector": torch.from_numpy(vectors),
            "block_widths": torch.tensor(widths),
        }
        write_tensors(folder / "items.safetensors", tensors)
        write_json(folder / "stats.json", found._asdict())
        write_json(folder / "segments.json", segments)
        write_json(folder / preparation.KEY_FILE, {"key": key})
    return found


def fit_tokenizer(prepared: Path, out_dir: Path, cfg: RecoChainConfig) -> list[float]:
    """Fit residual k-means; returns the mean squared residual after each level."""
    vectors = read_tensors(prepared / "items.safetensors")["vector"]
    tokenizer = Tokenizer.fit(vectors.numpy(), cfg.tokenizer, cfg.seed)
    errors = tokenizer.errors(vectors)
    with atomic_folder(out_dir) as folder:
        tokenizer.save(folder)
        write_json(folder / "fit.json", {"error": errors})
    return errors


def assign_ids(prepared: Path, tokenizer: Path, out_dir: Path, cfg: RecoChainConfig) -> Tokenized:
    """Give every item its semantic ID and build the trie; writes the catalogue and a collision report."""
    items = read_tensors(prepared / "items.safetensors")
    codebooks = Tokenizer.load(tokenizer)
    codes = codebooks.encode(items["vector"])
    catalogue = Catalogue.build(
        items["item_id"],
        codes,
        items["vector"],
        items["count"],
        codebooks.num_codes,
        items["block_widths"].tolist(),
    )
    sizes = bucket_sizes(codes.numpy())
    report = {
        "num_sids": catalogue.trie.num_sids,
        "collision_rate": collision_rate(codes.numpy()),
        "largest_bucket": int(sizes.max()),
        "over_bucket_cap": int((sizes > cfg.search.bucket_cap).sum()),
        "usage": codebook_usage(codes.numpy(), codebooks.num_codes).tolist(),
        "perplexity": codebook_perplexity(codes.numpy(), codebooks.num_codes).tolist(),
    }
    with atomic_folder(out_dir) as folder:
        catalogue.save(folder)
        write_json(folder / "collisions.json", report)
    return Tokenized(catalogue.trie.num_sids, float(report["collision_rate"]))


def train_generator(prepared: Path, sids: Path, out_dir: Path, cfg: RecoChainConfig) -> Trained:
    """Stage I."""
    sequences, catalogue = _inputs(prepared, sids)
    seed_everything(cfg.seed)
    model = RecoChain.for_catalogue(cfg.model, catalogue)
    result = stages.train_stage_one(model, sequences, catalogue, cfg, state_of(out_dir))
    return _finish(out_dir, model, to_json(cfg.model), result)


def mine_candidates(
    prepared: Path, sids: Path, generator: Path, out_dir: Path, cfg: RecoChainConfig
) -> float:
    """Run the generator on training targets; returns the share whose target is in the beam."""
    sequences, catalogue = _inputs(prepared, sids)
    device = _device()
    model = load_recochain(generator, catalogue).to(device)
    examples = stages.mine(model, sequences, catalogue.to(device), cfg)
    found = stages.hit_rate(sequences, examples)
    with atomic_folder(out_dir) as folder:
        write_examples(examples, folder / "candidates.parquet")
        write_json(folder / "stats.json", {"num_examples": len(examples.user_N), "beam_recall": found})
    return found


def train_joint(
    prepared: Path, sids: Path, generator: Path, candidates: Path, out_dir: Path, cfg: RecoChainConfig
) -> Trained:
    """Stage II, from the weights of stage I."""
    sequences, catalogue = _inputs(prepared, sids)
    seed_everything(cfg.seed)
    model = load_recochain(generator, catalogue)
    examples = read_examples(candidates / "candidates.parquet")
    result = stages.train_stage_two(model, sequences, examples, catalogue, cfg, state_of(out_dir))
    return _finish(out_dir, model, to_json(model.config), result)


def train_baseline(prepared: Path, out_dir: Path, cfg: RecoChainConfig) -> Trained:
    """The SASRec baseline on the same training split."""
    sequences = read_sequences(prepared / "sequences.parquet")
    num_items = Prepared(**read_json(prepared / "stats.json")).num_items
    seed_everything(cfg.seed)
    model = _sasrec(cfg.sasrec, num_items)
    validation = Validation(sequences.histories("valid"), sequences.targets("valid"))
    settings = seeded(cfg.sasrec_training, cfg.seed)
    result = train_sasrec(model, sequences.histories("train"), validation, settings, state_of(out_dir))
    return _finish(out_dir, model, to_json(cfg.sasrec), result)


def evaluate(
    prepared: Path,
    sids: Path,
    generator: Path,
    joint: Path,
    sasrec: Path,
    out_dir: Path,
    cfg: RecoChainConfig,
) -> Evaluation:
    """All methods under one protocol; writes metrics.json, report.html and per_user.parquet."""
    sequences, catalogue = _inputs(prepared, sids)
    baseline = _sasrec(from_json(SasrecConfig, load_config_json(sasrec)), catalogue.num_known)
    load_model(sasrec, baseline)
    device = _device()
    inputs = Inputs(
        sequences=sequences,
        catalogue=catalogue.to(device),
        model=load_recochain(joint, catalogue).to(device),
        generator=load_recochain(generator, catalogue).to(device),
        sasrec=baseline.to(device).eval(),
        segments=read_json(prepared / "segments.json"),
    )
    found = evaluate_all(inputs, cfg)
    curves = {name: load_extra(path)["history"] for name, path in
              (("generator", generator), ("joint", joint), ("sasrec", sasrec))}  # fmt: skip
    with atomic_folder(out_dir) as folder:
        write_json(folder / "metrics.json", found.metrics)
        pq.write_table(found.per_user, folder / "per_user.parquet")
        facts = {"data": read_json(prepared / "stats.json"), "sids": read_json(sids / "collisions.json")}
        write_report(folder / "report.html", found, catalogue, curves, facts, cfg)
    return Evaluation(found.metrics, found.metrics[f"test/rerank_gain/recall@{min(cfg.evaluation.cutoffs)}"])


def package(
    prepared: Path,
    sids: Path,
    tokenizer: Path,
    joint: Path,
    evaluation: Path,
    out_dir: Path,
    cfg: RecoChainConfig,
) -> Packaged:
    """One folder with all that serving needs, and a model card."""
    metrics = read_json(evaluation / "metrics.json")
    stats = read_json(prepared / "stats.json")
    with atomic_folder(out_dir) as folder:
        for source in (sids / "catalogue.safetensors", tokenizer / "tokenizer.safetensors"):
            shutil.copyfile(source, folder / source.name)
        model = load_recochain(joint, Catalogue.load(sids))
        return Packaged(write_package(folder, model, cfg, metrics, stats))


def passes_gate(metrics: dict[str, float], cfg: RecoChainConfig) -> bool:
    """Whether the model may be packaged."""
    gain = metrics[f"test/rerank_gain/recall@{min(cfg.evaluation.cutoffs)}"]
    return gain >= cfg.gate.min_gain and metrics["test/invalid_sid_rate"] <= cfg.gate.max_invalid_rate


def load_recochain(folder: Path, catalogue: Catalogue) -> RecoChain:
    """Load a model of either stage, in eval mode on the CPU.

    Raises:
        ModelError: the folder is missing or damaged, or belongs to another catalogue.
    """
    config = from_json(ModelConfig, load_config_json(folder))
    model = RecoChain.for_catalogue(config, catalogue)
    load_model(folder, model)
    return model.eval()


def _inputs(prepared: Path, sids: Path) -> tuple[Sequences, Catalogue]:
    return read_sequences(prepared / "sequences.parquet"), Catalogue.load(sids)


def _sasrec(config: SasrecConfig, num_items: int) -> SASRec:
    return SASRec(
        num_items=num_items,
        max_length=config.max_history,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        dropout=config.dropout,
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _finish(out_dir: Path, model: torch.nn.Module, config_json: str, result: FitResult) -> Trained:
    extra: dict[str, Any] = {"history": result.history, "best_epoch": result.best_epoch}
    if is_first_process():
        with atomic_folder(out_dir) as folder:
            save_model(folder, model, config_json, extra)
        shutil.rmtree(state_of(out_dir), ignore_errors=True)
    return Trained(result.best_epoch, result.best_metric or 0.0, result.num_steps)
