"""A ranking data folder: the tables train.parquet, valid.parquet and test.parquet, and fields.json.

A row is one candidate that was shown to one user, with the label whether it was taken. What a row holds
differs from data set to data set, so `fields.json` says it: its fields in order, each with its side and size.

    {"format": 1, "fields": [
        {"name": "user", "side": "user", "size": 957},
        {"name": "weekday", "side": "context", "size": 7},
        {"name": "item", "side": "item", "size": 4082},
        {"name": "last_1", "side": "user", "size": 4083, "history_of": "item"}]}

Every table has the column `label`, 0 or 1, and one column of whole numbers per field, from 0 to below its
size. `side` is whose property it is: the `user`'s or the request's `context`, which are the same for all
candidates of a request, or the `item`'s. Fields with `history_of` are places of the user's history: they hold
ids of the named field plus 1, 0 where the place is empty. Rows have no key and no order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from feedworks.contracts.tables import Column, Table
from feedworks.errors import DataError
from feedworks.storage import read_json, write_json

LABEL = "label"
FIELDS_FILE = "fields.json"
SPLITS = ("train", "valid", "test")
FieldSide = Literal["user", "context", "item"]
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Field:
    """One column of ids.

    Attributes:
        name: of the column.
        side: whose property it is.
        size: ids run from 0 to before it.
        history_of: for a place of the history, the item's field whose ids plus 1 it holds.
    """

    name: str
    side: FieldSide
    size: int
    history_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankingFields:
    """All fields of a ranking data folder, in the order of its columns.

    Raises:
        DataError: A name stands twice or is `label`, a side is unknown, a size is not positive, there is no
            field of the user's or of the item's side, or a history does not fit the field that it is of.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        for field in self.fields:
            _require(bool(field.name) and field.name != LABEL, f"a field cannot be called {field.name!r}")
            _require(names.count(field.name) == 1, f"field {field.name} stands twice")
            sides = ", ".join(get_args(FieldSide))
            _require(
                field.side in get_args(FieldSide),
                f"field {field.name}: side {field.side!r} is none of {sides}",
            )
            _require(field.size >= 1, f"field {field.name}: size {field.size} is not at least 1")
            if field.history_of is not None:
                self._require_history(field)
        _require(bool(self.of_user), "there is no field of the side user or context")
        _require(bool(self.of_item), "there is no field of the side item")

    @property
    def of_user(self) -> tuple[Field, ...]:
        """Fields that all candidates of a request share, but for the history."""
        return tuple(f for f in self.fields if f.side != "item" and f.history_of is None)

    @property
    def of_item(self) -> tuple[Field, ...]:
        """Fields of the candidate."""
        return tuple(f for f in self.fields if f.side == "item")

    @property
    def history(self) -> tuple[Field, ...]:
        """Places of the user's history."""
        return tuple(f for f in self.fields if f.history_of is not None)

    def tables(self) -> tuple[Table, ...]:
        """The contracts of the three splits."""
        label = Column(
            name=LABEL,
            type=pa.int64(),
            side="label",
            minimum=0,
            maximum=1,
            must_vary=True,
            description="1 where the candidate was taken.",
        )
        columns = (label, *(_column(field) for field in self.fields))
        return tuple(
            Table(
                name=split,
                columns=columns,
                key=(),
                sorted_by=(),
                description=f"Candidates of the {split} split.",
                kind="ranking",
            )
            for split in SPLITS
        )

    def _require_history(self, field: Field) -> None:
        of = next((f for f in self.of_item if f.name == field.history_of), None)
        _require(
            of is not None, f"field {field.name}: history_of {field.history_of!r} is no field of the item"
        )
        fits = of is not None and of.size + 1 == field.size and field.side == "user"
        _require(
            fits, f"field {field.name}: a history is of the side user and has the ids of its field plus 1"
        )


def write_fields(fields: RankingFields, folder: Path) -> Path:
    """Writes `fields.json` into `folder`, a data folder that is being made, and returns its path."""
    rows = [{k: v for k, v in asdict(field).items() if v is not None} for field in fields.fields]
    path = folder / FIELDS_FILE
    write_json(path, {"format": _FORMAT, "fields": rows})
    return path


def read_fields(folder: Path) -> RankingFields:
    """Reads `fields.json` of a ranking data folder.

    Raises:
        DataError: The file is missing, no JSON, or not of the form that this module describes.
    """
    path = folder / FIELDS_FILE
    if not path.is_file():
        raise DataError(f"{path} is missing; a ranking data folder holds it beside its tables")
    content = read_json(path)
    try:
        return _parsed(content)
    except DataError as error:
        raise DataError(f"{path}: {error}; correct it") from None


def _parsed(content: Any) -> RankingFields:
    _require(isinstance(content, dict), f"expected an object, found {type(content).__name__}")
    _require(content.get("format") == _FORMAT, f"expected format {_FORMAT}, found {content.get('format')!r}")
    rows = content.get("fields")
    _require(isinstance(rows, list), "expected a list of fields")
    return RankingFields(fields=tuple(_field(row) for row in rows))


def _field(row: Any) -> Field:
    known = {"name": str, "side": str, "size": int, "history_of": str}
    _require(isinstance(row, dict), f"expected an object for each field, found {row!r}")
    missing = sorted({"name", "side", "size"} - set(row))
    _require(not missing, f"field {row.get('name', row)!r} lacks {', '.join(missing)}")
    for key, value in row.items():
        _require(key in known, f"field {row['name']!r}: unknown entry {key!r}; known: {', '.join(known)}")
        right = isinstance(value, known[key]) and not isinstance(value, bool)
        _require(right, f"field {row['name']!r}: {key} is {value!r}, expected {known[key].__name__}")
    return Field(**row)


def _column(field: Field) -> Column:
    return Column(
        name=field.name,
        type=pa.int64(),
        side=field.side,
        minimum=0,
        maximum=field.size - 1,
        description=f"Id below {field.size}, of the {field.side}.",
    )


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise DataError(problem)
