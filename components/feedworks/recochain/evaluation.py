"""RecoChain (arXiv 2604.25787): all methods under one protocol.

Leave-one-out, the whole catalogue ranked, nothing sampled; `exclude_seen` holds for all methods alike. The
gain of reranking is taken between two orders of the same candidates of the same users.
Shape legend: U users, K places of a ranked list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.baselines.counting import ItemKNN, popularity, repeat_recent, without_seen
from feedworks.baselines.sasrec import rank_items
from feedworks.metrics import ranking
from feedworks.metrics.codebook import collision_rate
from feedworks.metrics.diversity import coverage
from feedworks.metrics.ranking import Interval
from feedworks.nn.sasrec import SASRec
from feedworks.progress import say
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import RecoChainConfig, SearchConfig
from feedworks.recochain.data import Sequences
from feedworks.recochain.model import RecoChain
from feedworks.recochain.scoring import Scored, Window, score_users
from feedworks.training.seed import numpy_generator

IntArray = npt.NDArray[np.int64]
METHODS = ("popularity", "repeat_recent", "item_knn", "sasrec", "generation", "rerank")
LIST_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is evaluated. `generator` is the checkpoint of stage I, `model` that of stage II."""

    sequences: Sequences
    catalogue: Catalogue
    model: RecoChain
    generator: RecoChain
    sasrec: SASRec
    segments: list[str] | None


class SweepRow(NamedTuple):
    """One setting of the sweep on the validation split."""

    beam: int
    retrieved: int
    generated: float
    reranked: float
    gain: Interval
    ceiling: float


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Flat metrics, and what the report shows of them.

    Attributes:
        metrics: `test/<method>/<metric>@<k>` with `/ci_low` and `/ci_high`, and what README.md lists.
        methods: method -> metric -> interval over all test users.
        novel: the same over users whose target is not in their window.
        slices: slice -> method -> recall at the largest cutoff.
        gain: metric -> relative gain of the reranked over the generated order.
        sweep: settings of beam and retrieval length on the validation split.
        per_user: user_id, item_id of the target, and its rank under each method (0: not in the list).
    """

    metrics: dict[str, float]
    methods: dict[str, dict[str, Interval]]
    novel: dict[str, dict[str, Interval]]
    slices: dict[str, dict[str, dict[str, Interval]]]
    gain: dict[str, Interval]
    sweep: list[SweepRow]
    per_user: pa.Table


def evaluate_all(inputs: Inputs, config: RecoChainConfig) -> Evaluated:
    """Score the test split with every method and the validation split with every setting of the sweep."""
    sequences = inputs.sequences
    target_U = sequences.targets("test")
    scored = _score(inputs.model, inputs, "test", config)
    stage_one = _score(inputs.generator, inputs, "test", config, rank=False)
    lists = _baseline_lists(inputs, config) | {"generation": scored.item_UK, "rerank": scored.reranked()}
    ranks = {name: ranking.ranks_of_targets(lists[name], target_U) for name in METHODS}
    slices = _slices(inputs, config, target_U)
    methods = _summaries(ranks, config)
    novel_U = slices.pop("all")["novel"]
    novel = _summaries({name: rank[novel_U] for name, rank in ranks.items()}, config) if novel_U.any() else {}
    gain = _gains(ranks, config)
    metrics: dict[str, float] = {}
    for name in METHODS:
        metrics |= ranking.flat(f"test/{name}", methods[name])
        metrics |= ranking.flat(f"test/novel/{name}", novel.get(name, {}))
        metrics[f"test/{name}/coverage@10"] = coverage(lists[name][:, :10], inputs.catalogue.num_known)
    metrics |= ranking.flat("test/rerank_gain", gain)
    stage_one_rank = ranking.ranks_of_targets(stage_one.item_UK, target_U)
    metrics |= ranking.flat("test/stage_one", _summary(stage_one_rank, config))
    metrics |= {
        "test/num_users": float(len(target_U)),
        "test/novel/num_users": float(novel_U.sum()),
        "test/beam_recall": float((ranks["generation"] > 0).mean()),
        "test/stage_one/beam_recall": float((stage_one_rank > 0).mean()),
        "test/invalid_sid_rate": scored.invalid_rate,
        "catalogue/collision_rate": collision_rate(inputs.catalogue.code_NL.cpu().numpy()),
    }
    sweep = _sweep(inputs, config)
    for row in sweep:
        key = f"valid/sweep/beam{row.beam}_retrieved{row.retrieved}"
        metrics |= {f"{key}/generation": row.generated, f"{key}/rerank": row.reranked}
        metrics |= ranking.flat(f"{key}", {"gain": row.gain})
    columns = {name: pa.array(rank, pa.int32()) for name, rank in ranks.items()}
    item_id_U = inputs.catalogue.item_id_N.cpu().numpy()[target_U]
    user = {"user_id": pa.array(sequences.user_id), "item_id": pa.array(item_id_U)}
    return Evaluated(
        metrics=metrics,
        methods=methods,
        novel=novel,
        slices=_slice_metrics(ranks, slices, config),
        gain=gain,
        sweep=sweep,
        per_user=pa.table(user | columns),
    )


def _score(
    model: RecoChain, inputs: Inputs, split: str, config: RecoChainConfig, *, rank: bool = True
) -> Scored:
    window = Window(config.max_history, config.search_history if rank else 0, config.exclude_seen)
    histories = inputs.sequences.histories("test" if split == "test" else "valid")
    size = config.evaluation.batch_size
    return score_users(model, inputs.catalogue, histories, config.search, window, size, f"score {split}")


def _baseline_lists(inputs: Inputs, config: RecoChainConfig) -> dict[str, IntArray]:
    sequences, catalogue = inputs.sequences, inputs.catalogue
    histories = sequences.histories("test")
    say("rank with the baselines")
    neighbours = ItemKNN(sequences.histories("train"), catalogue.num_known)
    lists = {
        "popularity": popularity(catalogue.count_N.cpu().numpy(), len(sequences), LIST_LENGTH),
        "repeat_recent": repeat_recent(histories, LIST_LENGTH),
        "item_knn": neighbours.rank(histories, LIST_LENGTH),
        "sasrec": rank_items(inputs.sasrec, histories, LIST_LENGTH, config.evaluation.batch_size),
    }
    if config.exclude_seen:
        lists = {name: without_seen(ranked, histories) for name, ranked in lists.items()}
    return lists


def _summary(rank_U: IntArray, config: RecoChainConfig) -> dict[str, Interval]:
    settings = config.evaluation
    return ranking.summarise(rank_U, settings.cutoffs, num_samples=settings.bootstrap, seed=config.seed)


def _summaries(ranks: dict[str, IntArray], config: RecoChainConfig) -> dict[str, dict[str, Interval]]:
    return {name: _summary(rank, config) for name, rank in ranks.items()}


def _gains(ranks: dict[str, IntArray], config: RecoChainConfig) -> dict[str, Interval]:
    metrics = {"recall": ranking.recall, "ndcg": ranking.ndcg, "mrr": ranking.mrr}
    return {
        f"{name}@{k}": ranking.paired_relative_gain(
            metric(ranks["rerank"], k),
            metric(ranks["generation"], k),
            num_samples=config.evaluation.bootstrap,
            seed=config.seed,
        )
        for k in config.evaluation.cutoffs
        for name, metric in metrics.items()
    }


def _slices(
    inputs: Inputs, config: RecoChainConfig, target_U: IntArray
) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
    """Groups of users: `slice family -> slice -> members`; `all/novel` are targets outside the window."""
    histories = inputs.sequences.histories("test")
    pairs = zip(histories, target_U, strict=True)
    novel = np.array([target not in history[-config.max_history :] for history, target in pairs])
    length = np.array([len(history) for history in histories])
    count = inputs.catalogue.count_N.cpu().numpy()[target_U]
    families = {
        "all": {"novel": novel},
        "history length": _thirds(length),
        "target's training events": _thirds(count),
    }
    if inputs.segments is not None:
        segment = np.array(inputs.segments)
        families["segment"] = {name: segment == name for name in sorted(set(inputs.segments))[:8]}
    return families


def _thirds(value_U: IntArray) -> dict[str, npt.NDArray[np.bool_]]:
    low, high = np.quantile(value_U, [1 / 3, 2 / 3]).astype(int)
    groups = {
        f"up to {low}": value_U <= low,
        f"{low + 1} to {high}": (value_U > low) & (value_U <= high),
        f"over {high}": value_U > high,
    }
    return {name: members for name, members in groups.items() if members.any()}


def _slice_metrics(
    ranks: dict[str, IntArray],
    families: dict[str, dict[str, npt.NDArray[np.bool_]]],
    config: RecoChainConfig,
) -> dict[str, dict[str, dict[str, Interval]]]:
    k = max(config.evaluation.cutoffs)
    shown = ("sasrec", "generation", "rerank")
    return {
        family: {
            name: {
                method: ranking.bootstrap_mean(
                    ranking.recall(ranks[method][members], k),
                    num_samples=config.evaluation.bootstrap,
                    seed=config.seed,
                )
                for method in shown
            }
            for name, members in groups.items()
        }
        for family, groups in families.items()
    }


def _sweep(inputs: Inputs, config: RecoChainConfig) -> list[SweepRow]:
    settings, sequences = config.evaluation, inputs.sequences
    rng = numpy_generator(config.seed, "sweep")
    users = np.sort(rng.permutation(len(sequences))[: settings.sweep_users])
    histories = [sequences.history(user, "valid") for user in users]
    target = sequences.targets("valid")[users]
    window = Window(config.max_history, config.search_history, config.exclude_seen)
    k = min(settings.cutoffs)
    rows = []
    for beam in settings.sweep_beams:
        for retrieved in settings.sweep_retrieved:
            search = SearchConfig(
                beam=beam,
                retrieved=retrieved,
                normalise=config.search.normalise,
                bucket_cap=config.search.bucket_cap,
            )
            label = f"sweep beam {beam} retrieved {retrieved}"
            found = score_users(
                inputs.model, inputs.catalogue, histories, search, window, settings.batch_size, label
            )
            before = ranking.ranks_of_targets(found.item_UK, target)
            after = ranking.recall(ranking.ranks_of_targets(found.reranked(), target), k)
            generated = ranking.recall(before, k)
            gain = ranking.paired_relative_gain(
                after, generated, num_samples=settings.bootstrap, seed=config.seed
            )
            ceiling = float((before > 0).mean())
            rows.append(
                SweepRow(beam, retrieved, float(generated.mean()), float(after.mean()), gain, ceiling)
            )
    return rows
