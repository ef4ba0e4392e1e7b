"""MaRI (arXiv 2602.23105): what a ranking model takes: its inputs, whose side each is, and their limits.

The schema travels with the model: the export reads the sides from it, the checks draw samples from it, and
the service refuses what breaks it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from feedworks.errors import DataError
from feedworks.storage import read_json, write_json

Side = Literal["user", "item", "cross"]
# Of a packaged twin.
SIDES_FILE, PACKAGE_FILE, TWIN_FOLDER, ONNX_FOLDER = "sides.json", "package.json", "twin", "onnx"


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ModelInput(_Strict):
    """One tensor that the model takes.

    Attributes:
        name: the argument's name in the model's forward.
        side: `user` inputs have one row per request, `item` and `cross` inputs one per candidate.
        dtype: `int64` for ids, `float32` for numbers.
        shape: sizes after the rows; `()` is one number a row.
        fields: names of the entries along the last axis, if it has names.
        sizes: for ids, how many there are: one number for all, or one for each entry along the last axis.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    side: Side
    dtype: Literal["float32", "int64"] = "float32"
    shape: tuple[Annotated[int, Field(gt=0)], ...] = ()
    fields: tuple[str, ...] = ()
    sizes: tuple[Annotated[int, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        last = self.shape[-1] if self.shape else 1
        if self.fields and len(self.fields) != last:
            raise ValueError(f"input {self.name}: {len(self.fields)} fields for a last axis of {last}")
        if len(set(self.fields)) != len(self.fields):
            raise ValueError(f"input {self.name}: a field stands twice")
        if self.sizes and len(self.sizes) not in (1, last):
            raise ValueError(f"input {self.name}: give 1 or {last} sizes, not {len(self.sizes)}")
        if self.sizes and self.dtype != "int64":
            raise ValueError(f"input {self.name}: sizes are for ids, dtype int64")
        return self

    @property
    def of_user(self) -> bool:
        """Whether it has one row per request."""
        return self.side == "user"

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape)


class RankerSchema(_Strict):
    """All inputs of a ranking model in the order of its forward, and the names of its outputs.

    The model returns one tensor `(B,)` or `(B, T)`, or several `(B,)`; T names in `outputs`.
    """

    inputs: Annotated[tuple[ModelInput, ...], Field(min_length=1)]
    outputs: Annotated[tuple[str, ...], Field(min_length=1)] = ("score",)
    max_candidates: Annotated[int, Field(gt=0)] = 10_000

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = [each.name for each in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError("an input stands twice")
        if all(each.of_user for each in self.inputs):
            raise ValueError("no input of the item or cross side: there is nothing to rank")
        return self

    @property
    def sides(self) -> dict[str, str]:
        """Side of each input by name, in order."""
        return {each.name: each.side for each in self.inputs}

    @classmethod
    def read(cls, path: Path) -> RankerSchema:
        """Read a sides file.

        Raises:
            DataError: it is missing, no JSON, or not of this form; names the first place that is wrong.
        """
        if not path.is_file():
            raise DataError(f"sides file {path}: no such file")
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise DataError(f"sides file {path}, {where}: {first['msg']}") from None

    def write(self, path: Path) -> None:
        """Write the sides file."""
        write_json(path, self.model_dump(mode="json"))
