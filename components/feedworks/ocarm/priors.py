"""OCARM (arXiv 2604.25839): what the training rows looked like, for answers without the model.

priors.json   {"num_rows": training rows,
               "base_rate": {horizon: mean label},
               "missing_share": {view: share of the rows without any value of the view}}
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.contracts.files import read_file
from feedworks.contracts.retention import OBSERVABLES_FILE, label_of
from feedworks.errors import DataError, ModelError
from feedworks.features.schema import ServiceSchema, ViewSchema
from feedworks.storage import read_json, write_json

FILE = "priors.json"


class Priors(NamedTuple):
    """Of the training split.

    Attributes:
        num_rows: of it.
        base_rate: horizon such as `lt1` -> mean label, in [0, 1].
        missing_share: view -> share of the rows in which nothing of it was known.
    """

    num_rows: int
    base_rate: dict[str, float]
    missing_share: dict[str, float]

    @classmethod
    def of(cls, observables: Path, schema: ServiceSchema, horizons: tuple[int, ...]) -> Self:
        """Measure them.

        Args:
            observables: folder with observables.parquet.
            schema: the student's.
            horizons: days of the labels.

        Raises:
            DataError: the file is missing, or there is no training row with a label.
        """
        names = [label_of(days) for days in horizons]
        path = observables / OBSERVABLES_FILE
        rows = read_file(path, ["split", *names, *schema.columns])
        rows = rows.filter(pc.equal(rows["split"], "train"))
        rates = {name: pc.mean(rows[name]).as_py() for name in names}
        if unknown := sorted(name for name, rate in rates.items() if rate is None):
            raise DataError(f"{path}: no training row has the label {unknown[0]}")
        missing = {view.name: _missing_share(rows, view) for view in schema.views}
        return cls(len(rows), rates, missing)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read priors.json.

        Raises:
            ModelError: it is missing or damaged.
        """
        try:
            facts = read_json(folder / FILE)
            rates = {str(name): float(rate) for name, rate in facts["base_rate"].items()}
            shares = {str(view): float(share) for view, share in facts["missing_share"].items()}
            found = cls(int(facts["num_rows"]), rates, shares)
        except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{folder / FILE}: {error}; package the model again") from None
        if not all(0 <= value <= 1 for value in (*rates.values(), *shares.values())):
            raise ModelError(f"{folder / FILE}: expected shares from 0 to 1; package the model again")
        return found

    def write(self, folder: Path) -> None:
        """Write priors.json."""
        write_json(folder / FILE, self._asdict())


def _missing_share(rows: pa.Table, view: ViewSchema) -> float:
    null_B = np.ones(len(rows), dtype=bool)
    for feature in view.features:
        column = rows[feature.name]
        is_null = column.is_null() if not feature.is_list else pc.fill_null(
            pc.equal(pc.list_value_length(column), 0), True
        )  # fmt: skip
        null_B &= (
            is_null.to_numpy(zero_copy_only=False) if isinstance(is_null, pa.Array) else is_null.to_numpy()
        )
    return float(null_B.mean()) if len(rows) else 1.0
