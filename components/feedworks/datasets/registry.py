"""The data sets that Feedworks knows, each with its files, licence, citation and converter."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from feedworks.contracts.tables import Kind
from feedworks.datasets import amazon, books, documents, frappe, kuairand, movietweetings
from feedworks.errors import DataError


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One file of a data set as its owner serves it.

    Without `sha256` the first download records what it got, and later ones must match it; `md5`, where its
    owner publishes nothing better, is what the first one must match. A file that is not `required` may fail
    to download; the converter works without it.
    """

    url: str
    name: str
    sha256: str | None = None
    md5: str | None = None
    required: bool = True


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One public data set.

    `detect(folder)` says whether the folder holds its raw files; `convert(folder, out_dir)` writes them as a
    data folder of its `kind`. `files` is empty for a set that can only be imported from a local folder.
    `asked` marks what so many folders look like that it is only thought of where this kind is asked for.
    """

    name: str
    title: str
    licence: str
    citation: str
    detect: Callable[[Path], bool]
    convert: Callable[[Path, Path], Path]
    expects: str
    files: tuple[RemoteFile, ...] = ()
    kind: Kind = "interactions"
    asked: bool = False


_AMAZON_LICENCE = "no formal licence; distributed by the McAuley lab for research, do not redistribute"
_MCAULEY = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
# Addresses with a commit in them cannot change under us.
_RAW = "https://raw.githubusercontent.com"
_S3REC = f"{_RAW}/RUCAIBox/CIKM2020-S3Rec/2a81540ae18615d88ef88227b0c066e5b74781e5/data"
_RDREC = f"{_RAW}/WangXFng/RDRec/4055c3028d3afbd57a0fffd54076825836b7cad7/data"
_TWEETINGS = f"{_RAW}/adrianrfreedman/MovieTweetings/3ae51d9ab4bac513259a36665182d1fd0e7afdf9/snapshots/100K"
_CHAR_RNN = f"{_RAW}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare"
_ZENODO = "https://zenodo.org/records/10439422/files"
_IDGENREC = f"{_RAW}/agiresearch/IDGenRec/a297185aa5b6cd6de9dcf8b8182052ee8e0b3261/rec_datasets"


def _s3rec(category: str, sums: tuple[str, str], *optional: RemoteFile) -> DataSet:
    """One category as S3-Rec preprocessed it; `sums` are those of its histories and attributes."""
    histories, attributes = f"{category}.txt", f"{category}_item2attributes.json"
    return DataSet(
        name=f"amazon_{_short(category)}",
        title=f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core, as S3-Rec preprocessed them",
        licence=_AMAZON_LICENCE,
        citation="Zhou et al., S3-Rec, CIKM 2020, arXiv 2008.07873",
        detect=lambda folder: amazon.s3rec_name(folder) == category,
        convert=amazon.convert_s3rec,
        expects=_s3rec_layout(category),
        files=(
            RemoteFile(url=f"{_S3REC}/{histories}", name=histories, sha256=sums[0]),
            RemoteFile(url=f"{_S3REC}/{attributes}", name=attributes, sha256=sums[1]),
            *optional,
        ),
    )


def _s3rec_layout(category: str) -> str:
    return f"{category}.txt, {category}_item2attributes.json; optional: datamaps.json, item_text_ids.txt"


def _s3rec_texts(rdrec_name: str, map_sum: str, idgenrec_name: str, text_sum: str) -> tuple[RemoteFile, ...]:
    texts = f"{_IDGENREC}/{idgenrec_name}/item_generative_indexing_phase_0.txt"
    return (
        RemoteFile(
            url=f"{_RDREC}/{rdrec_name}/datamaps.json", name="datamaps.json", sha256=map_sum, required=False
        ),
        RemoteFile(url=texts, name="item_text_ids.txt", sha256=text_sum, required=False),
    )


def _reviews(category: str) -> DataSet:
    """One category as the McAuley lab serves it."""
    reviews, meta = f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"
    return DataSet(
        name=f"amazon_{_short(category)}_2014",
        title=f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core, with times",
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


def _kuairand(version: str, content: str, md5: str) -> DataSet:
    """One version of KuaiRand; `md5` is that of its archive in the owners' README."""
    archive = kuairand.archive_name(version)
    return DataSet(
        name=f"kuairand_{version.lower()}",
        title=f"KuaiRand-{version}: a month of short videos, {content}",
        licence="CC BY-SA 4.0",
        citation="Gao et al., KuaiRand, CIKM 2022, arXiv 2208.08696",
        detect=functools.partial(kuairand.detect, version=version),
        convert=functools.partial(kuairand.convert, version=version),
        expects=f"{archive}, or log_*.csv, user_features_{version.lower()}.csv and "
        f"video_features_basic_{version.lower()}.csv out of it",
        files=(RemoteFile(url=f"{_ZENODO}/{archive}", name=archive, md5=md5),),
        kind="retention",
    )


def _short(category: str) -> str:
    return category.partition("_")[0].lower()


_DATA_SETS: tuple[DataSet, ...] = (
    _s3rec(
        "Beauty",
        (
            "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
            "129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4",
        ),
        *_s3rec_texts(
            "beauty",
            "c3386147637538f6d97f7eafffeb4e7180daa0638875bc1d889bbee45ce241a8",
            "Beauty",
            "1a90f934fe506747f094b181f791ece593e2f86bb15e5420d910e6de4882b456",
        ),
    ),
    _s3rec(
        "Sports_and_Outdoors",
        (
            "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
            "7fb10733ac4f1811384a52144cdefa7fcc7536fa80a7232c5da9bd789155c34b",
        ),
        *_s3rec_texts(
            "sports",
            "4746e0d7dada225d8a2191f9002b6a0335c065f5ebbb71cd305f00e2fda9f124",
            "Sports",
            "710b6d9b661aebcd065b861e4076f5e3cc66bdd9735e462ca2db90d5cc951593",
        ),
    ),
    # No texts: the public id maps for Toys belong to another numbering (none of the histories agree).
    _s3rec(
        "Toys_and_Games",
        (
            "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f",
            "d371acd25101eedac04afc727626464b7acec770c4eda708705d51eb76eb1ad0",
        ),
    ),
    _reviews("Beauty"),
    _reviews("Sports_and_Outdoors"),
    _reviews("Toys_and_Games"),
    DataSet(
        name="frappe",
        title="Frappe: app usage in context, the public click-through split of ten fields",
        licence="research only, non-commercial, no redistribution (terms of Frappe)",
        citation="Baltrunas et al., arXiv 1505.03014; the split: He and Chua, NFM, arXiv 1708.05027",
        detect=lambda folder: (folder / frappe.file_name("train")).is_file(),
        convert=frappe.convert,
        expects=", ".join(frappe.file_name(split) for split in ("train", "valid", "test")),
        kind="ranking",
    ),
    _kuairand("1K", "1,000 users with all their events", "6b0b9c8222d67fcd4c676218edca3f1f"),
    _kuairand("27K", "27,285 users with all their events", "3e3c799a24e2d23a4d2c757fbf9adf59"),
    _kuairand("Pure", "27,285 users, 7,583 videos", "0820331067a3784d9691136f772b35a7"),
    DataSet(
        name="movietweetings_100k",
        title="MovieTweetings, snapshot of 100,000 ratings: what new users do next",
        licence="MIT",
        citation="Dooms, De Pessemier, Martens, MovieTweetings, CrowdRec at RecSys 2013",
        detect=lambda folder: all(
            (folder / name).is_file() for name in (movietweetings.RATINGS, movietweetings.MOVIES)
        ),
        convert=movietweetings.convert,
        expects=f"{movietweetings.RATINGS}, {movietweetings.MOVIES}",
        files=(
            RemoteFile(
                url=f"{_TWEETINGS}/{movietweetings.RATINGS}",
                name=movietweetings.RATINGS,
                sha256="c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6",
            ),
            RemoteFile(
                url=f"{_TWEETINGS}/{movietweetings.MOVIES}",
                name=movietweetings.MOVIES,
                sha256="e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc",
            ),
        ),
        kind="retention",
    ),
    DataSet(
        name="gutenberg_books",
        title="Ten long novels of Project Gutenberg; Ulysses and Dracula are kept for testing",
        licence="public domain in the USA; Project Gutenberg's terms where they go on under its name",
        citation="Project Gutenberg; for the measure: Rae et al., PG-19, arXiv 1911.05507",
        detect=books.detect_gutenberg,
        convert=books.convert_gutenberg,
        expects="*.txt with the header of Project Gutenberg",
        files=tuple(
            RemoteFile(
                url=f"{_RAW}/GITenberg/{book.name}/{book.commit}/{book.file}",
                name=f"{book.name}.txt",
                sha256=book.sha256,
            )
            for book in books.BOOKS
        ),
        kind="text",
    ),
    DataSet(
        name="paul_graham_essays",
        title="49 essays of Paul Graham, the haystack of many needle tests",
        licence="copyright Paul Graham; for evaluation, do not redistribute",
        citation="Kamradt, Needle in a haystack, 2023; Hsieh et al., RULER, arXiv 2404.06654",
        detect=books.detect_essays,
        convert=books.convert_essays,
        expects=books.ESSAYS,
        kind="text",
    ),
    DataSet(
        name="tiny_shakespeare",
        title="Tiny Shakespeare: 1.1 million characters of plays",
        licence="public domain",
        citation="Karpathy, char-rnn, 2015",
        detect=books.detect_shakespeare,
        convert=books.convert_shakespeare,
        expects=books.SHAKESPEARE,
        files=(
            RemoteFile(
                url=f"{_CHAR_RNN}/{books.SHAKESPEARE}",
                name=books.SHAKESPEARE,
                sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
        kind="text",
    ),
    DataSet(
        name="text_files",
        title="Any folder of texts",
        licence="that of the files",
        citation="none",
        detect=documents.detect,
        convert=documents.convert,
        expects='*.txt, *.jsonl or *.jsonl.gz with objects such as {"text": "..."}',
        kind="text",
        asked=True,
    ),
    DataSet(
        name="s3rec",
        title="Any data set in the S3-Rec format",
        licence="that of the files",
        citation="Zhou et al., S3-Rec, CIKM 2020, arXiv 2008.07873",
        detect=lambda folder: amazon.s3rec_name(folder) is not None,
        convert=amazon.convert_s3rec,
        expects=_s3rec_layout("<Name>"),
    ),
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


def detect(folder: Path, kind: Kind | None = None) -> DataSet | None:
    """The first data set whose raw files lie in `folder`, or None.

    `kind` is what they are wanted for, if that is known; the answer may still be of another kind.
    """
    thought_of = sorted(_DATA_SETS, key=lambda data_set: data_set.asked)
    return next(
        (each for each in thought_of if each.asked <= (each.kind == kind) and each.detect(folder)), None
    )


def expectations(kind: Kind = "interactions") -> str:
    """What `detect` looks for, one data set of this kind after the other, for messages."""
    return "; ".join(f"{each.name}: {each.expects}" for each in _DATA_SETS if each.kind == kind)
