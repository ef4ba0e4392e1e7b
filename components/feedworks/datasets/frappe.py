"""Frappe: which app a person used in which situation, as the public click-through split of ten fields.

Frappe: Understanding the Usage and Perception of Mobile App Recommendations In-The-Wild (Baltrunas et al.,
arXiv 1505.03014); the split is that of NFM, AFN and the BARS benchmark ("Frappe_x1"). Its terms allow
research alone and no redistribution.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from feedworks.contracts.files import write_table
from feedworks.contracts.ranking import LABEL, SPLITS, Field, FieldSide, RankingFields, write_fields
from feedworks.errors import DataError

# The situation is known before the candidates are, so it belongs to the request.
SIDES: dict[str, FieldSide] = {
    "user": "user",
    "daytime": "context",
    "weekday": "context",
    "isweekend": "context",
    "homework": "context",
    "weather": "context",
    "country": "context",
    "city": "context",
    "item": "item",
    "cost": "item",
}


def file_name(split: str) -> str:
    """Name of a split's raw file."""
    return f"frappe_{split}.csv.gz"


def convert(folder: Path, out_dir: Path) -> Path:
    """Writes the three files of `folder` as a ranking data folder at `out_dir` and returns it.

    Ids stay as they are; the size of a field is one more than its largest id in any split.

    Raises:
        DataError: A file is missing, truncated, without rows, or not what the format says; names the file.
    """
    splits = {split: _read(folder / file_name(split)) for split in SPLITS}
    largest = {name: max(pc.max(rows[name]).as_py() for rows in splits.values()) for name in SIDES}
    fields = RankingFields(
        fields=tuple(Field(name=name, side=side, size=largest[name] + 1) for name, side in SIDES.items())
    )
    for table in fields.tables():
        write_table(table, splits[table.name], out_dir)
    write_fields(fields, out_dir)
    return out_dir


def _read(path: Path) -> pa.Table:
    names = (LABEL, *SIDES)
    if not path.is_file():
        raise DataError(f"{path} is missing; copy the three files {file_name('<split>')} there")
    try:
        rows = pa.csv.read_csv(
            path,
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.int64())),
        )
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read ({reason}); copy the file again") from None
    missing = [name for name in names if name not in rows.column_names]
    if missing or rows.num_rows == 0:
        found = f"lacks columns {missing}" if missing else "has no rows"
        raise DataError(f"{path}: {found}; copy the file again")
    negative = [name for name in SIDES if rows[name].null_count or pc.min(rows[name]).as_py() < 0]
    if negative:
        raise DataError(f"{path}: column {negative[0]} has empty or negative ids; copy the file again")
    return rows.select(names)
