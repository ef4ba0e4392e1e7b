"""MaRI (arXiv 2602.23105): a packaged twin that scores several requests in one call.

package.json   tag of the model, sha256 of every other file by its path in the folder
sides.json     what the model takes
twin/          the twin

Shape legend: B candidates of all requests, B_r those of one, R requests, T outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from feedworks.errors import FeedworksError, ModelError
from feedworks.mari.request import Array
from feedworks.mari.schema import SIDES_FILE, TWIN_FOLDER, ModelInput, RankerSchema
from feedworks.serving.package import check_seal

# A call of 16 requests of 100 candidates takes no longer per row than one of 8 or of 64.
MAX_ROWS = 2048

Scores = npt.NDArray[np.float32]


class _Rows:
    """Rows of one input side by side, in memory that is used again for every call."""

    def __init__(self, each: ModelInput, rows: int, device: torch.device) -> None:
        self._shape = each.shape
        self._dtype = getattr(torch, each.dtype)
        self._device = device
        self._grow(rows)

    def fill(self, arrays: Sequence[Array], rows: int, *, stacked: bool) -> Tensor:
        """Copy arrays one after the other; with `stacked` each is one row."""
        if rows > len(self._array):
            self._grow(rows)
        (np.stack if stacked else np.concatenate)(arrays, out=self._array[:rows])
        return self._tensor[:rows].to(self._device, non_blocking=True)

    def _grow(self, rows: int) -> None:
        pinned = self._device.type == "cuda"
        self._tensor = torch.empty((rows, *self._shape), dtype=self._dtype, pin_memory=pinned)
        self._array: Array = self._tensor.numpy()


class Scorer:
    """Scores candidates by a twin; one thread at a time.

    Args:
        schema: what the twin takes.
        twin: called with its inputs and `request_B`, as `feedworks.mari.twin.Twin`.
        tag: names the model.
        max_rows: candidates of several requests in one call; one request with more gets a call of its own.
        merge: score several requests in one call; False for a model in which candidates look at each other.
        device: where the twin is.

    Raises:
        ModelError: the twin does not return what the schema says.
    """

    def __init__(
        self,
        schema: RankerSchema,
        twin: Callable[..., Any],
        tag: str,
        *,
        max_rows: int = MAX_ROWS,
        merge: bool = True,
        device: str | torch.device = "cpu",
    ) -> None:
        self.schema = schema
        self.tag = tag
        self._twin = twin
        self._max_rows = max_rows
        self._merge = merge
        rows = [1 if each.of_user else max_rows for each in schema.inputs]
        self._rows = [
            _Rows(each, count, torch.device(device)) for each, count in zip(schema.inputs, rows, strict=True)
        ]
        self._request = _Rows(
            ModelInput(name="request", side="item", dtype="int64"), max_rows, torch.device(device)
        )
        self._of_candidates = next(i for i, each in enumerate(schema.inputs) if not each.of_user)
        self._try()

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Scorer:
        """Load a package.

        Raises:
            ModelError: a file is missing or not the one that was packaged.
        """
        from feedworks.mari.packed import packed
        from feedworks.mari.twin import Twin

        tag, merge = check_package(folder)
        try:
            schema = RankerSchema.read(folder / SIDES_FILE)
        except FeedworksError as error:
            raise ModelError(str(error)) from None
        twin = Twin.load(folder / TWIN_FOLDER).eval().to(device)
        on_cpu = torch.device(device).type == "cpu"
        return cls(schema, packed(twin, schema) if on_cpu else twin, tag, merge=merge, device=device)

    def score(self, requests: Sequence[Sequence[Array]]) -> list[Scores]:
        """Score requests together.

        Args:
            requests: arrays in the order of the schema, the user's `(*shape)`, the others `(B_r, *shape)`.

        Returns:
            `(B_r, T)` for each request; whether they are finite is not checked.
        """
        return [scores for group in self._groups(requests) for scores in self._score_group(group)]

    def _groups(self, requests: Sequence[Sequence[Array]]) -> Iterator[list[Sequence[Array]]]:
        """Cut a batch into calls of at most `max_rows` rows."""
        group: list[Sequence[Array]] = []
        rows = 0
        for request in requests:
            count = len(request[self._of_candidates])
            if group and (rows + count > self._max_rows or not self._merge):
                yield group
                group, rows = [], 0
            group.append(request)
            rows += count
        if group:
            yield group

    def _score_group(self, group: Sequence[Sequence[Array]]) -> list[Scores]:
        counts = [len(request[self._of_candidates]) for request in group]
        num_rows = sum(counts)
        with torch.inference_mode():
            inputs = [
                rows.fill(arrays, len(group) if each.of_user else num_rows, stacked=each.of_user)
                for rows, each, arrays in zip(
                    self._rows, self.schema.inputs, zip(*group, strict=True), strict=True
                )
            ]
            request_B = None
            if len(group) > 1:
                request_B = self._request.fill(
                    [np.arange(len(group)).repeat(counts)], num_rows, stacked=False
                )
            score_BT = self._joined(self._twin(*inputs, request_B=request_B), num_rows)
        if len(group) == 1:
            return [score_BT]
        ends = np.cumsum(counts).tolist()
        return [score_BT[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def _joined(self, outputs: Any, num_rows: int) -> Scores:
        """One array of what the model returned. It is a copy: an output may be a view of an input."""
        if not isinstance(outputs, Tensor):
            leaves = outputs if isinstance(outputs, tuple | list) else pytree.tree_leaves(outputs)
            outputs = torch.cat([x.reshape(num_rows, -1) for x in leaves], dim=1)
        array = outputs.float().cpu().numpy().reshape(num_rows, -1)
        return np.array(array)

    def _try(self) -> None:
        """Score zeros: the twin's output must fit, and the first real call finds it warm."""
        for num_requests in (1, 2):
            arrays = [np.zeros(x.shape if x.of_user else (3, *x.shape), x.dtype) for x in self.schema.inputs]
            try:
                found = [scores.shape for scores in self.score([arrays] * num_requests)]
            except Exception as error:  # whatever a twin of another model raises
                raise ModelError(f"model {self.tag} does not take what its schema says: {error}") from None
            if found != [(3, len(self.schema.outputs))] * num_requests:
                outputs = ", ".join(self.schema.outputs)
                raise ModelError(f"model {self.tag} returns {found[0]} for 3 candidates; outputs: {outputs}")


def check_package(folder: Path) -> tuple[str, bool]:
    """Check that every file is the one that was packaged.

    Returns:
        The model's tag, and whether several requests may be scored in one call; not where nothing is said.

    Raises:
        ModelError: the folder or a file is missing, or a file is another.
    """
    facts = check_seal(folder)
    return facts["tag"], facts.get("merge_requests") is True
