"""RecoChain (arXiv 2604.25787): item vectors for the tokenizer and for the search over the history.

The paper takes multimodal vectors; any encoder can supply them as the column `vector`. Text and
co-occurrence give vectors where there is no encoder. The interface is a float32 table, one row an item.
Shape legend: N items, V width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feedworks.errors import DataError
from feedworks.recochain.config import VectorConfig
from feedworks.recochain.data import Sequences

FloatArray = npt.NDArray[np.float32]


def build_vectors(
    config: VectorConfig,
    *,
    given: pa.ChunkedArray,
    text: Sequence[str | None],
    sequences: Sequences,
    seed: int,
) -> tuple[FloatArray, list[int]]:
    """Concatenate the configured sources, each of unit length times its weight: `(N, V)` of unit length.

    Also returns the width of each source.

    Args:
        config: sources, weights, widths.
        given: vectors from the items table, lists of one width; null where an item has none.
        text: texts from the items table.
        sequences: only their training split is read.
        seed: of the randomised SVD.

    Raises:
        DataError: a source is asked for that the items table does not hold.
    """
    parts = []
    for source, weight in zip(config.sources, config.weights, strict=True):
        if source == "given":
            part = given_vectors(given)
        elif source == "text":
            part = text_vectors(text, config.text_width, seed)
        else:
            part = collaborative_vectors(sequences, len(text), config, seed)
        parts.append(weight * unit_rows(part))
    return unit_rows(np.concatenate(parts, axis=1)), [part.shape[1] for part in parts]


def given_vectors(given: pa.ChunkedArray) -> FloatArray:
    """Stack the vectors of the items table; items without one get zeros.

    Raises:
        DataError: no item has a vector, or they differ in width.
    """
    present_N = given.is_valid().to_numpy()
    widths = pc.unique(pc.list_value_length(given).drop_null()).to_pylist()
    if not widths or widths == [0]:
        raise DataError(
            "table items, column vector: no item has a vector; "
            "set vectors.sources=text,collaborative and vectors.weights=1,1"
        )
    if len(widths) > 1:
        raise DataError(f"table items, column vector: vectors of {sorted(widths)} numbers; use one encoder")
    table = np.zeros((len(given), widths[0]), dtype=np.float32)
    table[present_N] = pc.list_flatten(given).to_numpy().reshape(-1, widths[0])
    return table


def text_vectors(text: Sequence[str | None], width: int, seed: int) -> FloatArray:
    """TF-IDF of the words, cut to `width` dimensions by SVD (latent semantic analysis).

    Raises:
        DataError: no item has a text, or no word stands in two items.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    documents = [value or "" for value in text]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, token_pattern=r"\S+", dtype=np.float32)
    try:
        counts = vectorizer.fit_transform(documents)
    except ValueError:
        raise DataError(
            "table items, column text: no word stands in two items; set vectors.sources=given"
        ) from None
    return _svd(counts, width, seed)


def collaborative_vectors(
    sequences: Sequences, num_items: int, config: VectorConfig, seed: int
) -> FloatArray:
    """Items seen together: shifted positive pointwise mutual information, cut by SVD.

    This is what word2vec with `shift` negatives factorises (Levy and Goldberg, NIPS 2014).

    Pairs count 1 / distance within `window` events of one user; contexts are smoothed by the power 0.75.
    """
    from scipy.sparse import csr_matrix

    first, second, weight = _pairs(sequences, config.window)
    if not len(weight):
        return np.zeros((num_items, config.collaborative_width), dtype=np.float32)
    together = csr_matrix((weight, (first, second)), shape=(num_items, num_items))
    together = (together + together.T).tocoo()
    seen = np.asarray(together.sum(axis=0)).ravel()
    context = seen**0.75 / (seen**0.75).sum()
    information = np.log(together.data / (seen[together.row] * context[together.col]) + 1e-12)
    information -= np.log(config.shift)
    kept = information > 0
    if not kept.any():
        return np.zeros((num_items, config.collaborative_width), dtype=np.float32)
    table = csr_matrix(
        (information[kept].astype(np.float32), (together.row[kept], together.col[kept])),
        shape=(num_items, num_items),
    )
    return _svd(table, config.collaborative_width, seed, power=0.5)


def unit_rows(table: npt.NDArray[np.floating]) -> FloatArray:
    """Scale rows to length 1; zero rows stay zero."""
    length = np.linalg.norm(table.astype(np.float64), axis=1, keepdims=True)  # float32 overflows at 1e19
    return (table / np.where(length > 0, length, 1)).astype(np.float32)


def _pairs(sequences: Sequences, window: int) -> tuple[npt.NDArray[np.int64], ...]:
    user = np.repeat(np.arange(len(sequences)), np.diff(sequences.start))
    position_from_end = sequences.start[user + 1] - np.arange(len(user))
    item, user = sequences.item[position_from_end > 2], user[position_from_end > 2]
    first, second, weight = [], [], []
    for distance in range(1, window + 1):
        same = (user[distance:] == user[:-distance]) & (item[distance:] != item[:-distance])
        first.append(item[:-distance][same])
        second.append(item[distance:][same])
        weight.append(np.full(int(same.sum()), 1 / distance))
    return np.concatenate(first), np.concatenate(second), np.concatenate(weight)


def _svd(table: object, width: int, seed: int, power: float = 1.0) -> FloatArray:
    from sklearn.decomposition import TruncatedSVD

    columns = table.shape[1]  # type: ignore[attr-defined]
    if columns == 1:  # which scikit-learn refuses
        return np.asarray(table.toarray(), dtype=np.float32)  # type: ignore[attr-defined]
    svd = TruncatedSVD(min(width, columns - 1), random_state=seed)
    scores = svd.fit_transform(table)
    scale = np.where(svd.singular_values_ > 0, svd.singular_values_, 1) ** (power - 1)
    return np.asarray(scores * scale, dtype=np.float32)
