"""The tables of a data folder: interactions.parquet, items.parquet and, if there are any, users.parquet.

A contract says what a table must look like. The validation gate, the synthetic generator, the data set
importers and the feature store all read it from here, so a column is described once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

Side = Literal["user", "item", "context", "content", "label"]
Kind = Literal["interactions", "ranking", "retention", "features", "text"]
# Small enough that a reader can stream a large table, large enough that the overhead does not show.
ROW_GROUP_ROWS = 131_072


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: its Arrow type, what values it may hold, and whose property it is.

    `minimum` and `maximum` are inclusive. `refers_to` names the table in whose single-column key every value
    must occur. `side` says what the value describes, which decides where a model may read it: the user, the
    item, the request's context, the item's content (text, vectors), known before anybody saw the item, or the
    label. `must_vary` says that one value in all rows is an error, `any_width` that lists may be of any
    length. `one_of` lists the words that the column may hold, each of which must occur. `is_prose` says that
    a value is read by people or by a language model: it may not be blank, nor hold NUL or broken UTF-8.
    `apart_by` names the column with `one_of` whose different values must not share a value of this one.
    """

    name: str
    type: pa.DataType
    side: Side
    description: str
    nullable: bool = False
    minimum: float | None = None
    maximum: float | None = None
    refers_to: str | None = None
    must_vary: bool = False
    any_width: bool = False
    one_of: tuple[str, ...] = ()
    is_prose: bool = False
    apart_by: str | None = None

    @property
    def is_vector(self) -> bool:
        """Whether a value is a list of numbers; without `any_width` all of a table have the same length."""
        return bool(pa.types.is_list(self.type))


@dataclass(frozen=True, kw_only=True)
class Table:
    """One parquet file: its columns, its key (unique, never null) and the order of its rows.

    `event_time` names the column that says when a row became known; None for tables without a time.
    `sorted_by` is the order in which rows must stand; equal values may follow each other. The key is empty
    where rows may repeat, `sorted_by` where they may stand in any order. `kind` is that of the data folder,
    `group_rows` how many rows are written and read at once.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    sorted_by: tuple[str, ...]
    description: str
    event_time: str | None = None
    required: bool = True
    kind: Kind = "interactions"
    group_rows: int = ROW_GROUP_ROWS

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, columns in contract order."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    @property
    def file_name(self) -> str:
        """Name of the parquet file inside a data folder."""
        return f"{self.name}.parquet"

    def path(self, folder: Path) -> Path:
        """Where this table lies inside the data folder `folder`."""
        return folder / self.file_name

    def column(self, name: str) -> Column:
        """The column called `name`.

        Raises:
            KeyError: The table has no such column.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"{self.name} has no column {name!r}, it has {[c.name for c in self.columns]}")


# One resolution everywhere: DuckDB's materialise fails on nanoseconds, and seconds lose the order of clicks.
EVENT_TIME = pa.timestamp("us", tz="UTC")

INTERACTIONS = Table(
    name="interactions",
    description="One row for each thing that a user did with an item.",
    columns=(
        Column(name="user_id", type=pa.int64(), side="user", minimum=0, description="Who acted."),
        Column(
            name="item_id",
            type=pa.int64(),
            side="item",
            minimum=0,
            refers_to="items",
            description="On which item.",
        ),
        Column(name="event_time", type=EVENT_TIME, side="context", description="When, in UTC."),
    ),
    key=("user_id", "item_id", "event_time"),
    sorted_by=("user_id", "event_time"),
    event_time="event_time",
)

ITEMS = Table(
    name="items",
    description="One row for each item that may be recommended.",
    columns=(
        Column(name="item_id", type=pa.int64(), side="item", minimum=0, description="Key of the item."),
        Column(
            name="vector",
            type=pa.list_(pa.float32()),
            side="content",
            nullable=True,
            description="Content vector from any encoder; one width in the table, all values finite.",
        ),
        Column(
            name="text", type=pa.string(), side="content", nullable=True, description="Title, words, tags."
        ),
        Column(
            name="external_id",
            type=pa.string(),
            side="item",
            nullable=True,
            description="The id that the item's owner uses.",
        ),
    ),
    key=("item_id",),
    sorted_by=("item_id",),
)

USERS = Table(
    name="users",
    description="One row for each user about whom something is known.",
    columns=(
        Column(name="user_id", type=pa.int64(), side="user", minimum=0, description="Key of the user."),
        Column(name="segment", type=pa.string(), side="user", nullable=True, description="A group of users."),
    ),
    key=("user_id",),
    sorted_by=("user_id",),
    required=False,
)

DATA_FOLDER: tuple[Table, ...] = (INTERACTIONS, ITEMS, USERS)
