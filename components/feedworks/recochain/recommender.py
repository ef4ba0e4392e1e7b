"""RecoChain (arXiv 2604.25787): a packaged model that answers requests. No serving framework needed.

Shape legend: B requests, T history items, M items with a vector of their own, V width of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch

from feedworks.configuration import from_json
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.recochain.catalogue import FILE as CATALOGUE
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import RecoChainConfig
from feedworks.recochain.data import history_tensor
from feedworks.recochain.model import RecoChain
from feedworks.recochain.search import generate, rerank
from feedworks.recochain.tokenizer import FILE as TOKENIZER
from feedworks.recochain.tokenizer import Tokenizer
from feedworks.training.checkpoint import CONFIG, WEIGHTS, load_config_json, load_extra, load_model


class Request(NamedTuple):
    """A user's history, oldest first, as item ids; `vectors` describes items that training did not know."""

    history: Sequence[int]
    k: int
    vectors: Mapping[int, Sequence[float]] = {}


class Recommendation(NamedTuple):
    """One item; the score is a ranking logit, or the training count under the popularity fallback."""

    item_id: int
    score: float
    sid: tuple[int, ...]


class Response(NamedTuple):
    """Items best first; ids of the history that were skipped; why the model was not asked, if it was not."""

    items: list[Recommendation]
    skipped: list[int]
    fallback: str | None


def content_tag(folder: Path) -> str:
    """Name the weights, items and codebooks of a packaged model: equal files give equal tags.

    Raises:
        ModelError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in (WEIGHTS, CATALOGUE, TOKENIZER):
        try:
            digest.update((folder / name).read_bytes())
        except FileNotFoundError:
            raise ModelError(f"{folder / name} is missing; package the model again") from None
    return f"recochain:{digest.hexdigest()[:16]}"


class Recommender:
    """Answers requests with a packaged model; use `load`."""

    def __init__(
        self, model: RecoChain, catalogue: Catalogue, tokenizer: Tokenizer, config: RecoChainConfig, tag: str
    ) -> None:
        self._model = model
        self._catalogue = catalogue
        self._tokenizer = tokenizer
        self._config = config
        self._number = {item: row for row, item in enumerate(catalogue.item_id_N.tolist())}
        self._device = catalogue.code_NL.device
        self.tag = tag
        self.max_k = min(config.search.beam, catalogue.num_known)
        self.vector_width = catalogue.vector_NV.shape[1]

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Recommender:
        """Load what `steps.package` wrote.

        Args:
            folder: the packaged model.
            device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

        Raises:
            ModelError: the folder is missing, incomplete or damaged.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        tag = load_extra(folder).get("tag")
        if tag != content_tag(folder):
            raise ModelError(
                f"{folder} is damaged: its files are not those of {tag}; package the model again"
            )
        try:
            config = from_json(RecoChainConfig, load_config_json(folder))
        except ConfigError as error:
            raise ModelError(f"{folder / CONFIG}: {error}; package the model again") from None
        catalogue = Catalogue.load(folder)
        model = RecoChain.for_catalogue(config.model, catalogue)
        load_model(folder, model)
        tokenizer = Tokenizer.load(folder)
        return cls(model.to(device).eval(), catalogue.to(device), tokenizer, config, tag)

    def recommend(self, requests: Sequence[Request]) -> list[Response]:
        """Answer requests in one batch; k is cut to `max_k`.

        Raises:
            DataError: a vector has another width than the model's, or holds NaN or infinity.
        """
        catalogue, extra = self._with_vectors(requests)
        responses: dict[int, Response] = {}
        numbers, asked = [], []
        for place, request in enumerate(requests):
            known = [self._number.get(item, extra.get((place, item), -1)) for item in request.history]
            skipped = [item for item, row in zip(request.history, known, strict=True) if row < 0]
            kept = [row for row in known if row >= 0]
            if self._config.dedup_consecutive:  # as in training
                kept = [row for row, _ in groupby(kept)]
            if kept:
                numbers.append(kept)
                asked.append((place, skipped))
            else:
                responses[place] = Response(self._popular(request.k), skipped, "popularity")
        for (place, skipped), items in zip(asked, self._rank(numbers, catalogue), strict=True):
            responses[place] = Response(items[: requests[place].k], skipped, None)
        return [responses[place] for place in range(len(requests))]

    @torch.inference_mode()
    def _rank(self, numbers: list[list[int]], catalogue: Catalogue) -> list[list[Recommendation]]:
        if not numbers:
            return []
        search = self._config.search
        item_BT = history_tensor(numbers, self._config.max_history).to(self._device)
        past_BF = history_tensor(numbers, self._config.search_history).to(self._device)
        seen_BF = None
        if self._config.exclude_seen:
            seen_BF = history_tensor(numbers, max(map(len, numbers))).to(self._device)
        generated = generate(self._model, item_BT, catalogue, search, seen_BF)
        logits_BK = rerank(self._model, generated, past_BF, catalogue, search)
        order = logits_BK.sort(dim=1, descending=True, stable=True)
        item_BK = generated.candidates.item_BK.gather(1, order.indices)
        rows = zip(item_BK.tolist(), order.values.tolist(), strict=True)
        return [
            [
                self._recommendation(item, score)
                for item, score in zip(items, scores, strict=True)
                if item >= 0
            ]
            for items, scores in rows
        ]

    def _popular(self, k: int) -> list[Recommendation]:
        # Items are numbered by falling popularity.
        counts = self._catalogue.count_N[: min(k, self.max_k)].tolist()
        return [self._recommendation(item, float(count)) for item, count in enumerate(counts)]

    def _recommendation(self, item: int, score: float) -> Recommendation:
        sid = tuple(self._catalogue.code_NL[item].tolist())
        return Recommendation(int(self._catalogue.item_id_N[item]), score, sid)

    def _with_vectors(self, requests: Sequence[Request]) -> tuple[Catalogue, dict[tuple[int, int], int]]:
        """Append the items that requests bring a vector for; one id may differ between requests."""
        rows: dict[tuple[int, int], int] = {}
        vectors: list[torch.Tensor] = []
        for place, request in enumerate(requests):
            for item, vector in request.vectors.items():
                if item not in self._number and item in request.history:
                    rows[place, item] = self._catalogue.num_known + len(vectors)
                    vectors.append(self._checked(item, vector))
        if not vectors:
            return self._catalogue, rows
        # In float64, because the length of a float32 vector overflows at 1e19.
        vector_MV = torch.nn.functional.normalize(torch.stack(vectors).double(), dim=1).float()
        code_ML = self._tokenizer.encode(vector_MV)
        item_id_M = torch.tensor([item for _, item in rows])
        columns = (column.to(self._device) for column in (item_id_M, code_ML, vector_MV))
        return self._catalogue.with_unseen(*columns), rows

    def _checked(self, item: int, vector: Sequence[float]) -> torch.Tensor:
        values = torch.tensor(vector, dtype=torch.float32)
        if values.shape != (self.vector_width,) or not values.isfinite().all():
            raise DataError(
                f"vector of item {item}: expected {self.vector_width} finite numbers, "
                f"got {len(vector)}" + ("" if values.isfinite().all() else " with NaN or infinity")
            )
        return values
