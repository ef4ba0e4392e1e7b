"""KSA (arXiv 2604.24432): the model beside its baselines, on held-out text, hidden facts and its cache.

Losses are measured on the rows of both held-out splits, with intervals over rows; needles in two ways: for
every arm whether its most probable continuation begins with the whole target (one pass tells), and for the
model itself by answers that it generates from its cache, of which RULER's share of the facts is found. That
a decoded logit is that of one pass, and that the cache has the bytes of the paper's formula, is measured on
the model that would be packaged. Shape letters: R rows, T tokens of a row, N needle prompts.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from feedworks.ksa.architecture import Qwen3KsaConfig
from feedworks.ksa.arms import FULL, OURS
from feedworks.ksa.checkpoint import CONFIG, from_qwen3, load
from feedworks.ksa.config import KsaConfig
from feedworks.ksa.corpus import TokenFile, load_tokenizer
from feedworks.ksa.heldout import rows_of
from feedworks.ksa.model import Qwen3KsaForCausalLM
from feedworks.ksa.needles import Needle, score
from feedworks.ksa.scoring import (
    CacheSize,
    cache_size,
    continues,
    decode_error,
    greedy,
    row_losses,
)
from feedworks.metrics.ranking import Interval, bootstrap_mean, paired_relative_gain
from feedworks.progress import progress, say
from feedworks.storage import read_json

SPLITS = ("valid", "test")
GROUPS = {"valid": "valid", "test": "heldout"}  # of the flat metrics
DECODED = 4  # texts that are decoded at once against one pass
RATIO = f"ratio/{FULL}/loss"
NEEDLES = f"needle/{OURS}/recall"
DECODE = f"decode/{OURS}/error"
SLACK = f"cache/{OURS}/slack@"

FloatArray = npt.NDArray[np.float64]


class Measured(NamedTuple):
    """What one model does.

    Attributes:
        loss_RT: of each split, nats of each token but the first of a row.
        exact_N: 1 where the continuation of a needle prompt begins with the target.
        recall_N: share of the facts in a generated answer; None for the baselines.
    """

    loss_RT: dict[str, FloatArray]
    exact_N: FloatArray
    recall_N: FloatArray | None


class Evaluated(NamedTuple):
    """All that the report shows.

    Attributes:
        metrics: flat.
        measured: by arm, the model itself first.
        needles: the prompts.
        cache: by kind of attention and length.
    """

    metrics: dict[str, float]
    measured: dict[str, Measured]
    needles: list[Needle]
    cache: dict[tuple[str, int], CacheSize]


def evaluate_arms(
    models: Mapping[str, Callable[[], Qwen3KsaForCausalLM]],
    corpus: Path,
    tokens: Path,
    needles: list[Needle],
    cfg: KsaConfig,
) -> Evaluated:
    """Measure all arms, one model in memory at a time.

    Args:
        models: arm -> loads its model, in evaluation mode; the model itself first.
        corpus: folder of the tokenizer.
        tokens: folder of the token files.
        needles: prompts of the measure.
        cfg: of the run.

    Raises:
        DataError: a split is too short.
        ModelError: a model gives logits that are not finite.
    """
    tokenizer = load_tokenizer(corpus)
    length, most = cfg.evaluation.seq_len, cfg.evaluation.max_rows
    rows = {
        split: rows_of(TokenFile(tokens / split).tokens, length, most, setting="evaluation.seq_len")
        for split in SPLITS
    }
    metrics: dict[str, float] = {}
    measured: dict[str, Measured] = {}
    cache: dict[tuple[str, int], CacheSize] = {}
    for arm, read in models.items():
        say(f"measuring {arm}")
        model = read()
        losses = {
            split: row_losses(model, ids_RT, cfg.evaluation.batch_size) for split, ids_RT in rows.items()
        }
        exact_N = _exact(model, needles, cfg)
        recall_N = None
        if arm == OURS:
            recall_N = _recall(model, needles, tokenizer, cfg)
            decode_tokens, setting = cfg.evaluation.decode_tokens, "evaluation.decode_tokens"
            decoded = rows_of(TokenFile(tokens / "test").tokens, decode_tokens, DECODED, setting=setting)
            metrics[DECODE] = decode_error(model, decoded, _starts(decoded.shape, model.config.chunk))
            cache = _caches(model, cfg)
        measured[arm] = Measured(losses, exact_N, recall_N)
    metrics |= _loss_metrics(measured, cfg) | _needle_metrics(measured, needles, cfg) | _cache_metrics(cache)
    return Evaluated(metrics, measured, needles, cache)


def for_use(folder: Path, dtype: str) -> Qwen3KsaForCausalLM:
    """Load a model of a run, or a Qwen3 checkpoint as one with full attention, onto the fastest device.

    Args:
        folder: of the model.
        dtype: of the weights, that of the package: what is served is measured.

    Raises:
        ModelError: it cannot be read.
    """
    settings = read_json(folder / CONFIG)
    where: dict[str, Any] = {
        "dtype": getattr(torch, dtype),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    if settings["model_type"] == Qwen3KsaConfig.model_type:
        return load(folder, **where)
    windows = [None] * int(settings["num_hidden_layers"])
    return from_qwen3(folder, summaries=0, windows=windows, **where)


def buckets(cfg: KsaConfig) -> list[tuple[int, int]]:
    """First and last position + 1 of each group of positions whose loss is shown apart."""
    borders = [0, *cfg.evaluation.buckets, cfg.evaluation.seq_len - 1]
    return list(itertools.pairwise(borders))


def shortcomings(evaluation: Path, cfg: KsaConfig) -> list[str]:
    """Say what keeps a model from being packaged, from the metrics that its evaluation wrote."""
    metrics: dict[str, float] = read_json(evaluation / "metrics.json")
    slack = max(value for name, value in metrics.items() if name.startswith(SLACK))
    gate = cfg.gate
    found = {
        "max_loss_ratio": (metrics.get(RATIO, 0.0), gate.max_loss_ratio, "times the loss of full attention"),
        "max_decode_error": (metrics[DECODE], gate.max_decode_error, "between decoded logits and one pass's"),
        "max_cache_slack": (slack, gate.max_cache_slack, "more cache than the formula says"),
    }
    said = [
        f"{value:.4g} {what}, gate.{name}={limit:g}"
        for name, (value, limit, what) in found.items()
        if not value <= limit
    ]
    if not metrics[NEEDLES] >= gate.min_needle:
        said.append(f"{metrics[NEEDLES]:.4g} of the needles found, gate.min_needle={gate.min_needle:g}")
    return said


def grid(
    needles: Sequence[Needle], value_N: FloatArray, task: str, cfg: KsaConfig
) -> list[list[float | None]]:
    """Mean value of a task's prompts: a row for each depth, a column for each length; None where is none."""

    def mean(depth: float | None, length: int) -> float | None:
        here = [
            float(value)
            for needle, value in zip(needles, value_N, strict=True)
            if (needle.task, needle.length, needle.depth) == (task, length, depth)
        ]
        return sum(here) / len(here) if here else None

    depths = sorted({needle.depth for needle in needles if needle.task == task}, key=lambda d: d or 0.0)
    return [[mean(depth, length) for length in cfg.needles.lengths] for depth in depths]


def _starts(shape: Sequence[int], chunk: int) -> list[int]:
    """Prefilled tokens of each text: one, a chunk less one, a chunk, half of the text, as far as they fit."""
    rows, num_tokens = shape
    return [min(start, num_tokens) for start in (1, max(1, chunk - 1), chunk, num_tokens // 2)][:rows]


def _batches(needles: Sequence[Needle], cfg: KsaConfig, label: str) -> Iterator[list[int]]:
    """Places of prompts that are asked together, of like length."""
    order = sorted(range(len(needles)), key=lambda place: len(needles[place].prompt_ids))
    step = cfg.evaluation.batch_size
    yield from progress([order[at : at + step] for at in range(0, len(order), step)], label=label)


def _exact(model: Qwen3KsaForCausalLM, needles: Sequence[Needle], cfg: KsaConfig) -> FloatArray:
    found_N = np.zeros(len(needles))
    for places in _batches(needles, cfg, "needles read"):
        prompts = [needles[place].prompt_ids.tolist() for place in places]
        targets = [needles[place].target_ids.tolist() for place in places]
        found_N[places] = continues(model, prompts, targets)
    return found_N


def _recall(
    model: Qwen3KsaForCausalLM, needles: Sequence[Needle], tokenizer: Any, cfg: KsaConfig
) -> FloatArray:
    found_N = np.zeros(len(needles))
    for places in _batches(needles, cfg, "needles answered"):
        prompts = [needles[place].prompt_ids.tolist() for place in places]
        longest = max(len(needles[place].target_ids) for place in places)
        limit = max(cfg.evaluation.max_new_tokens, longest)  # the right answer always has room
        answers = greedy(model, prompts, limit, tokenizer.eos_token_id)
        said = [tokenizer.decode(answer) for answer in answers]
        found_N[places] = [
            score(needles[place].answers, text) for place, text in zip(places, said, strict=True)
        ]
    return found_N


def _caches(model: Qwen3KsaForCausalLM, cfg: KsaConfig) -> dict[tuple[str, int], CacheSize]:
    """Caches of the model, of its window layers alone, and of the same model with full attention."""
    windows = model.config.layer_windows
    pure = min((window for window in windows if window is not None), default=None)
    kinds = {
        OURS: model.config,
        "windows_only": _changed(model.config, windows=[pure] * len(windows)),
        FULL: _changed(model.config, windows=[None] * len(windows), summaries=0),
    }
    return {
        (kind, length): cache_size(config, length, model.dtype)
        for kind, config in kinds.items()
        for length in cfg.evaluation.cache_lengths
    }


def _changed(config: Qwen3KsaConfig, **sizes: Any) -> Qwen3KsaConfig:
    changed = copy.deepcopy(config)
    for name, value in sizes.items():
        setattr(changed, name, value)
    return changed


def _loss_metrics(measured: Mapping[str, Measured], cfg: KsaConfig) -> dict[str, float]:
    found: dict[str, float] = {}
    for arm, each in measured.items():
        for split, loss_RT in each.loss_RT.items():
            found[f"{GROUPS[split]}/{arm}/loss"] = float(loss_RT.mean())
            found[f"{GROUPS[split]}/{arm}/perplexity"] = _perplexity(loss_RT)
        loss_RT = each.loss_RT["test"]
        found |= _bounds(f"heldout/{arm}/loss", bootstrap_mean(loss_RT.mean(1), **_draws(cfg)))
        for low, high in buckets(cfg):
            found[f"position/{arm}/perplexity@{high}"] = _perplexity(loss_RT[:, low:high])
        if arm != OURS:
            ours_R, theirs_R = measured[OURS].loss_RT["test"].mean(1), loss_RT.mean(1)
            gain = paired_relative_gain(ours_R, theirs_R, **_draws(cfg))
            ratio = Interval(*(1 + value for value in gain))
            found |= {f"ratio/{arm}/loss": ratio.mean} | _bounds(f"ratio/{arm}/loss", ratio)
    return found


def _needle_metrics(
    measured: Mapping[str, Measured], needles: Sequence[Needle], cfg: KsaConfig
) -> dict[str, float]:
    found: dict[str, float] = {}
    for arm, each in measured.items():
        for name, value_N in (("exact", each.exact_N), ("recall", each.recall_N)):
            if value_N is None:
                continue
            found[f"needle/{arm}/{name}"] = float(value_N.mean())
            for task in cfg.needles.tasks:
                of_task = [needle.task == task for needle in needles]
                found[f"needle_{task}/{arm}/{name}"] = float(value_N[of_task].mean())
            for length in cfg.needles.lengths:
                of_length = [needle.length == length for needle in needles]
                found[f"needle_length/{arm}/{name}@{length}"] = float(value_N[of_length].mean())
    return found


def _cache_metrics(cache: Mapping[tuple[str, int], CacheSize]) -> dict[str, float]:
    found: dict[str, float] = {}
    for (kind, length), size in cache.items():
        full = cache[FULL, length]
        found[f"cache/{kind}/bytes@{length}"] = size.num_bytes
        found[f"cache/{kind}/formula_bytes@{length}"] = size.formula_bytes
        found[f"cache/{kind}/slack@{length}"] = size.num_bytes / size.formula_bytes - 1
        found[f"cache/{kind}/ratio@{length}"] = full.num_bytes / size.num_bytes
        found[f"cache/{kind}/formula_ratio@{length}"] = full.formula_bytes / size.formula_bytes
    return found


def _perplexity(loss_RT: FloatArray) -> float:
    return math.exp(min(float(loss_RT.mean()), 700.0))  # beyond that a float is infinite


def _draws(cfg: KsaConfig) -> dict[str, int]:
    return {"num_samples": cfg.evaluation.bootstrap, "seed": cfg.seed}


def _bounds(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}/ci_low": interval.low, f"{name}/ci_high": interval.high}
