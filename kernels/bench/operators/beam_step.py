"""beam_step: one step of a beam search inside a set of paths and whole searches, against two public ways.

`step2` extends the first codes (families of items / C children), `step3` the second (mostly one child or a
few); `search` is all three levels from the root.

Shape letters: K live beams, C codes, W beams kept, L levels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from bench.registry import Case, Operator, Plan, Provider, Work, our_providers
from feedworks_kernels import BeamStep, beam_step
from feedworks_kernels.beam_step.searches import Decoded, HfPrefix, Model, Static, by_steps
from feedworks_kernels.measuring import Call
from feedworks_kernels.testing import forced

_LEVELS = 3
_MOST_ERROR = 1e-4
_STEPS = {"step2": 1, "step3": 2}


class Level(NamedTuple):
    """One level of the trie."""

    child_start: Tensor
    child_code: Tensor


class Inputs(NamedTuple):
    """A trie, logits of each level, and beams that stand before a step."""

    levels: tuple[Level, ...]
    logits: tuple[Tensor, ...]  # each (K, C)
    score_K: Tensor
    node_K: Tensor
    number: int  # the step's level
    by_prefix: bool = False  # logits belong to the codes so far, not to a beam's place


def random_levels(num_items: int, num_codes: int, device: str) -> tuple[Level, ...]:
    """Build the trie of random paths; like feedworks.recochain.trie, which this package may not import."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randint(0, num_codes**_LEVELS, (num_items,), generator=generator)
    path = torch.unique(path)
    levels, parents = [], torch.zeros(1, dtype=torch.int64)
    for level in reversed(range(_LEVELS)):
        prefix = torch.unique_consecutive(path // num_codes**level)
        start = torch.searchsorted(prefix // num_codes, parents)
        start = torch.cat([start, torch.tensor([len(prefix)])])
        levels.append(Level(start.int().to(device), (prefix % num_codes).int().to(device)))
        parents = prefix
    return tuple(levels)


_levels = lru_cache(maxsize=4)(random_levels)


@lru_cache(maxsize=1)
def _static(num_items: int, num_codes: int, device: str) -> Static:
    return Static(_levels(num_items, num_codes, device), num_codes)


@lru_cache(maxsize=1)
def _prefix(num_items: int, num_codes: int, device: str) -> HfPrefix:
    return HfPrefix(_levels(num_items, num_codes, device))


def _sizes(codes: int) -> dict[str, int]:
    return {"K": 256, "C": codes, "items": 1_000_000}


_SHAPES = {f"256 beams, C {codes}": _sizes(codes) for codes in (256, 2048, 8192)}


class BeamStepBench(Operator):
    """Width and beams are equal, the trie has a million random items."""

    name = "beam_step"
    plan = Plan(
        modes=("step2", "step3", "search"),
        shapes={"cpu": _SHAPES, "cuda": _SHAPES},
        quick={"16 beams, C 32": {"K": 16, "C": 32, "items": 3000}},
        check={"9 beams, C 16": {"K": 9, "C": 16, "items": 500}},
        dtypes={"cpu": ("fp32",), "cuda": ("fp32",)},
    )

    def random_sizes(self, draw: random.Random) -> dict[str, int]:
        """Draw from a few beams to more than there are children."""
        return {"K": draw.randint(1, 300), "C": draw.randint(2, 900), "items": draw.randint(1, 20_000)}

    def inputs(self, case: Case, seed: int) -> Inputs:
        """Draw logits and beams; the trie is always the same."""
        beams, codes = case.sizes["K"], case.sizes["C"]
        levels = _levels(case.sizes["items"], codes, case.device)
        generator = torch.Generator(case.device).manual_seed(seed)
        logits = tuple(
            torch.randn(beams, codes, generator=generator, device=case.device) for _ in range(_LEVELS)
        )
        number = _STEPS.get(case.mode, 0)
        num_nodes = len(levels[number].child_start) - 1
        node_K = torch.randperm(num_nodes, generator=generator, device=case.device)[:beams]
        score_K = -torch.rand(len(node_K), generator=generator, device=case.device)
        return Inputs(levels, logits, score_K, node_K, number)

    def providers(self, case: Case) -> Sequence[Provider]:
        """Ours, STATIC's loop, and for searches on a CPU the prefix function of Hugging Face."""
        key = (case.sizes["items"], case.sizes["C"], case.device)
        if case.mode == "search":
            found = our_providers(lambda inputs: _search(inputs), case.device)
            found.append(Provider("static", lambda inputs: _bound(_static(*key), inputs)))
            if case.device == "cpu":
                found.append(Provider("hf_prefix", lambda inputs: _bound(_prefix(*key), inputs)))
            return found
        return [
            *our_providers(_step, case.device),
            Provider("static", lambda inputs: _static_step(_static(*key), inputs)),
        ]

    def work(self, case: Case) -> Work:
        """The logits are read once, the children's codes too, and the beams written."""
        beams, codes = case.sizes["K"], case.sizes["C"]
        levels = _levels(case.sizes["items"], codes, case.device)
        numbers = range(_LEVELS) if case.mode == "search" else [_STEPS[case.mode]]
        moved = 0.0
        for number in numbers:
            live = 1 if number == 0 else beams
            children = len(levels[number].child_code) * live / (len(levels[number].child_start) - 1)
            moved += live * (codes * 4 + 12) + children * 4 + beams * 28
        return Work(0.0, moved)

    def tolerance(self, case: Case) -> float:
        """Scores are sums of some log-probabilities of size 10."""
        return _MOST_ERROR

    def error_of(self, case: Case, provider: Provider, inputs: Inputs) -> float:
        """Check a search with logits by prefix: beams of nearly equal score may then stand in any order."""
        return super().error_of(case, provider, inputs._replace(by_prefix=case.mode == "search"))

    def error(self, case: Case, inputs: Inputs, result: BeamStep | Decoded) -> float:
        """Compare scores with float64; infinite for a beam that is not there or is there twice."""
        if isinstance(result, Decoded):
            return _error_of_search(case, inputs, result)
        return _error_of_step(inputs, BeamStep(*(part.view(-1).cpu() for part in result)))


def _step(inputs: Inputs) -> Call:
    level, width = inputs.levels[inputs.number], inputs.logits[0].shape[0]
    logits_BKC = inputs.logits[inputs.number][None, : len(inputs.node_K)]
    score_BK, node_BK = inputs.score_K[None], inputs.node_K[None]
    return lambda: beam_step(logits_BKC, score_BK, node_BK, level.child_start, level.child_code, width)


def _static_step(static: Static, inputs: Inputs) -> Call:
    width = inputs.logits[0].shape[0]
    logits_KC = inputs.logits[inputs.number][: len(inputs.node_K)]
    state_K = inputs.node_K
    if inputs.number == 1:
        state_K = inputs.levels[0].child_code.long()[state_K]
    return lambda: static.step(inputs.number, logits_KC, inputs.score_K, state_K, width)


def _search(inputs: Inputs) -> Call:
    return lambda: by_steps(inputs.levels, _model(inputs), inputs.logits[0].shape[0])


def _bound(search: Static | HfPrefix, inputs: Inputs) -> Call:
    return lambda: search.decode(_model(inputs), inputs.logits[0].shape[0])


def _model(inputs: Inputs) -> Model:
    if not inputs.by_prefix:
        return lambda step, sid_KL: inputs.logits[step][: len(sid_KL)]
    prime_L = torch.tensor([7919, 104729, 1299709], device=inputs.logits[0].device)

    def model(step: int, sid_KL: Tensor) -> Tensor:
        row_K = (sid_KL * prime_L[:step]).sum(dim=1) % len(inputs.logits[step])
        return inputs.logits[step][row_K]

    return model


def _error_of_step(inputs: Inputs, got: BeamStep) -> float:
    """Score every child that exists."""
    start, code_all = (part.cpu().long() for part in inputs.levels[inputs.number])
    score_K, node_K = inputs.score_K.cpu().double(), inputs.node_K.cpu()
    logits_KC = inputs.logits[inputs.number][: len(node_K)].cpu().double()
    total_KC = torch.log_softmax(logits_KC, dim=1) + score_K.unsqueeze(1)
    count_K = start[node_K + 1] - start[node_K]
    parent_N = torch.repeat_interleave(torch.arange(len(node_K)), count_K)
    first_K = count_K.cumsum(0) - count_K
    child_N = torch.arange(len(parent_N)) - first_K[parent_N] + start[node_K][parent_N]
    best = total_KC[parent_N, code_all[child_N]].sort(descending=True).values
    live = got.score_BW > -torch.inf
    score, parent, code, node = (part[live] for part in got)
    parent, code, node = parent.long(), code.long(), node.long()
    if len(score) != min(len(best), len(live)) or (code_all[node] != code).any():
        return float("inf")
    of_parent = (start[node_K[parent]] <= node) & (node < start[node_K[parent] + 1])
    if not of_parent.all() or len(set(node.tolist())) != len(node):
        return float("inf")
    own = (total_KC[parent, code] - score).abs().max()
    return float(torch.maximum(own, (best[: len(score)] - score).abs().max()))


def _error_of_search(case: Case, inputs: Inputs, got: Decoded) -> float:
    """Score the paths that came in float64, and compare with a search by the definition."""
    there = inputs._replace(
        levels=tuple(Level(*(part.cpu() for part in level)) for level in inputs.levels),
        logits=tuple(part.cpu().double() for part in inputs.logits),
    )
    with forced("reference"):
        exact: Decoded = _search(there)()  # type: ignore[assignment]
    live, live_exact = got.score_W.cpu() > -torch.inf, exact.score_W > -torch.inf
    sid_WL, score_W = got.sid_WL.cpu()[live].long(), got.score_W.cpu()[live].double()
    number_W = _numbers(sid_WL, case.sizes["C"])
    if len(sid_WL) != int(live_exact.sum()) or len(set(number_W.tolist())) != len(sid_WL):
        return float("inf")
    if not torch.isin(number_W, _numbers(_paths(there.levels), case.sizes["C"])).all():
        return float("inf")
    model = _model(there)
    own_W = sum(
        torch.log_softmax(model(step, sid_WL[:, :step])[: len(sid_WL)], dim=1)
        .expand(len(sid_WL), -1)
        .gather(1, sid_WL[:, step : step + 1])
        .squeeze(1)
        for step in range(_LEVELS)
    )
    ranked_W = score_W.sort(descending=True).values
    off = [own_W - score_W, ranked_W - exact.score_W[live_exact].sort(descending=True).values]
    return float(torch.cat(off).abs().max()) if len(sid_WL) else 0.0


def _paths(levels: Sequence[Level]) -> Tensor:
    """Return all paths of a trie, (paths, L)."""
    path = torch.zeros(1, 0, dtype=torch.int64)
    for child_start, child_code in levels:
        path = torch.cat([path.repeat_interleave(child_start.diff(), dim=0), child_code[:, None]], dim=1)
    return path


def _numbers(sid_WL: Tensor, num_codes: int) -> Tensor:
    return (sid_WL * num_codes ** torch.arange(_LEVELS - 1, -1, -1)).sum(dim=1)


OPERATOR = BeamStepBench()
