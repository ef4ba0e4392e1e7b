"""The data sets that Feedworks knows, each with its files, licence, citation and converter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from feedworks.datasets import amazon
from feedworks.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a data set as its owner serves it.

    `sha256` None means unpinned: the first download records what it got, and later ones must match it. A file
    that is not `required` may fail to download; the converter works without it.
    """

    url: str
    name: str
    sha256: str | None = None
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One public data set.

    `detect(folder)` says whether the folder holds its raw files; `convert(folder, out_dir)` writes them as a
    data folder. `files` is empty for a set that can only be imported from a local folder.
    """

    name: str
    title: str
    licence: str
    citation: str
    detect: Callable[[Path], bool]
    convert: Callable[[Path, Path], Path]
    expects: str
    files: tuple[RemoteFile, ...] = ()


_MCAULEY = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_AMAZON_LICENCE = "no formal licence; distributed by the McAuley lab for research, do not redistribute"


def _amazon_reviews(category: str) -> DataSet:
    reviews, meta = f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"
    return DataSet(
        name=f"amazon_{category.split('_')[0].lower()}_2014",
        title=f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core",
        licence=_AMAZON_LICENCE,
        citation="McAuley, Targett, Shi, van den Hengel, SIGIR 2015, arXiv 1506.04757",
        detect=lambda folder: (folder / reviews).is_file(),
        convert=lambda folder, out_dir: amazon.convert_reviews(folder, out_dir, category=category),
        expects=f"{reviews}; optional: {meta}",
        files=(
            RemoteFile(url=f"{_MCAULEY}/{reviews}", name=reviews),
            RemoteFile(url=f"{_MCAULEY}/{meta}", name=meta, required=False),
        ),
    )


_DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        name="amazon_beauty",
        title="Amazon reviews 2014 in the S3-Rec format (Beauty, or any <Name>.txt of that format)",
        licence=_AMAZON_LICENCE,
        citation="Zhou et al., S3-Rec, CIKM 2020, arXiv 2008.07873",
        detect=amazon.is_s3rec_folder,
        convert=amazon.convert_s3rec,
        expects="<Name>.txt, <Name>_item2attributes.json; optional: datamaps.json, item_text_ids.txt",
    ),
    _amazon_reviews("Beauty"),
    _amazon_reviews("Sports_and_Outdoors"),
    _amazon_reviews("Toys_and_Games"),
)


def names() -> list[str]:
    """Names of all known data sets."""
    return [data_set.name for data_set in _DATA_SETS]


def get(name: str) -> DataSet:
    """The data set called `name`.

    Raises:
        DataError: There is none of that name; the message lists the known ones.
    """
    for data_set in _DATA_SETS:
        if data_set.name == name:
            return data_set
    raise DataError(f"unknown data set {name!r}; known: {', '.join(names())}")


def detect(folder: Path) -> DataSet | None:
    """The first data set whose raw files lie in `folder`, or None."""
    return next((data_set for data_set in _DATA_SETS if data_set.detect(folder)), None)


def expectations() -> str:
    """What `detect` looks for, one data set after the other, for messages."""
    return "; ".join(f"{data_set.name}: {data_set.expects}" for data_set in _DATA_SETS)
