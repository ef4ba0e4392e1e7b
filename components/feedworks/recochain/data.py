"""RecoChain (arXiv 2604.25787): sequences, their splits and the batches of both stages.

The same `history_rows` and `pad_right` build a batch in training, in evaluation and in serving.
Shape legend: B rows, T history items, K candidates, F items of the full history, P priors of a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feedworks.contracts.files import open_stream
from feedworks.errors import DataError
from feedworks.training.bucketing import length_batches, pad_right
from feedworks.training.seed import numpy_generator

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
Split = Literal["train", "valid", "test"]

# Leave-one-out: how many of a user's last items a split must not see in the history.
HELD_OUT: dict[Split, int] = {"train": 2, "valid": 2, "test": 1}
# Of sequences.parquet; fewer events than these are one row group.
GROUP_USERS, GROUP_EVENTS = 1 << 20, 1 << 23
# Looked at at once where sequences may be larger than memory.
BLOCK_EVENTS = 1 << 22
# What the generator says of a candidate, as columns of a table of examples.
PRIORS = ("log_p", "item_score")


@dataclass(frozen=True)
class Sequences:
    """Item sequences of all users, oldest first: user u has `item[start[u]:start[u + 1]]`."""

    user_id: IntArray
    start: IntArray
    item: IntArray

    def __len__(self) -> int:
        """Number of users."""
        return len(self.user_id)

    def row(self, user: int) -> IntArray:
        """All items of one user."""
        return self.item[self.start[user] : self.start[user + 1]]

    def history(self, user: int, split: Split) -> IntArray:
        """What a model may know of a user when it is asked for the target of `split`."""
        return self.item[self.start[user] : self.start[user + 1] - HELD_OUT[split]]

    def histories(self, split: Split) -> list[IntArray]:
        """`history` of every user."""
        return [self.history(user, split) for user in range(len(self))]

    def targets(self, split: Literal["valid", "test"]) -> IntArray:
        """The held-out item of every user: last but one for `valid`, last for `test`."""
        return self.item[self.start[1:] - HELD_OUT[split]]

    def train_counts(self, num_items: int) -> IntArray:
        """How often each item stands in the training split."""
        count = np.zeros(num_items, dtype=np.int64)
        for begin in range(0, len(self.item), BLOCK_EVENTS):
            count += np.bincount(self.item[begin : begin + BLOCK_EVENTS], minlength=num_items)
        length = np.diff(self.start)
        for back in range(1, HELD_OUT["train"] + 1):
            held_out = self.item[self.start[1:][length >= back] - back]
            count -= np.bincount(held_out, minlength=num_items)
        return count


class Examples(NamedTuple):
    """Stage II rows: the target at `position` of `user`'s sequence and the beam mined for it.

    The priors are what the generator says of the beam's items and of the target: log-probability (-inf for
    padding) and item score.
    """

    user_N: IntArray
    position_N: IntArray
    beam_NK: IntArray
    prior_NKP: FloatArray
    target_prior_NP: FloatArray


class HistoryBatch(NamedTuple):
    """Stage I: histories padded with -1 on the right, every item also a target."""

    item_BT: Tensor


class RankBatch(NamedTuple):
    """Stage II.

    `item_BT` ends with the target; `length_B` counts the items before it. `candidate_BK` holds the target in
    column 0 and sampled beam members after it, -1 where there are none; `prior_BKP` is what the
    generator says of each. `past_BF` is the full history. `found_B`: the target is in the mined beam.
    """

    item_BT: Tensor
    length_B: Tensor
    candidate_BK: Tensor
    prior_BKP: Tensor
    past_BF: Tensor
    found_B: Tensor


def write_sequences(sequences: Sequences, path: Path) -> None:
    """Write one row per user: user_id, items. A row group's rows and items are bounded."""
    schema = pa.schema({"user_id": pa.int64(), "items": pa.list_(pa.int32())})
    with pq.ParquetWriter(path, schema) as writer:
        for first, last in _groups(sequences.start):
            start = sequences.start[first : last + 1]
            values = pa.array(sequences.item[start[0] : start[-1]], pa.int32())
            items = pa.ListArray.from_arrays(pa.array(start - start[0], pa.int32()), values)
            rows = pa.table([pa.array(sequences.user_id[first:last]), items], schema=schema)
            writer.write_table(rows, row_group_size=GROUP_USERS)


def read_sequences(path: Path) -> Sequences:
    """Read what `write_sequences` wrote: 8 bytes in memory for each event and 16 for each user.

    Raises:
        DataError: the file is missing or not readable.
    """
    try:
        with open_stream(path) as file:
            user_id = np.empty(file.metadata.num_rows, dtype=np.int64)
            start = np.zeros(len(user_id) + 1, dtype=np.int64)
            items, place = [np.zeros(0, dtype=np.int64)], 0
            for batch in file.iter_batches(columns=["user_id", "items"]):
                users = slice(place, place + batch.num_rows)
                user_id[users] = batch["user_id"].to_numpy()
                lists = batch["items"]
                ends = lists.offsets.to_numpy()[1:].astype(np.int64) - lists.offsets[0].as_py()
                start[place + 1 : place + 1 + batch.num_rows] = start[place] + ends
                items.append(lists.flatten().to_numpy().astype(np.int64))
                place += batch.num_rows
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unreadable(path, error) from None
    return Sequences(user_id, start, np.concatenate(items))


def write_examples(examples: Examples, path: Path) -> None:
    """Write one row per example: user, position, beam."""
    width = examples.beam_NK.shape[1]
    beam = pa.FixedSizeListArray.from_arrays(pa.array(examples.beam_NK.ravel(), pa.int32()), width)
    columns = {
        "user": pa.array(examples.user_N),
        "position": pa.array(examples.position_N),
        "beam": beam,
    }
    for place, name in enumerate(PRIORS):
        values = pa.array(examples.prior_NKP[..., place].ravel())
        columns[name] = pa.FixedSizeListArray.from_arrays(values, width)
        columns[f"target_{name}"] = pa.array(examples.target_prior_NP[:, place])
    pq.write_table(pa.table(columns), path)


def read_examples(path: Path) -> Examples:
    """Read what `write_examples` wrote.

    Raises:
        DataError: the file is missing or not readable.
    """
    table = _read(path)
    beam, *priors = (
        table[name].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        for name in ("beam", *PRIORS)
    )
    return Examples(
        table["user"].to_numpy(),
        table["position"].to_numpy(),
        beam.astype(np.int64),
        np.stack(priors, axis=-1),
        np.stack([table[f"target_{name}"].to_numpy() for name in PRIORS], axis=-1),
    )


def history_tensor(histories: Sequence[npt.ArrayLike], max_history: int) -> Tensor:
    """Stack the latest `max_history` items of each history: int64 (B, T), padded with -1 on the right."""
    return torch.from_numpy(pad_right([np.asarray(h, dtype=np.int64)[-max_history:] for h in histories]))


def generator_batches(
    sequences: Sequences, *, max_history: int, batch_size: int, seed: int, skip_last: int = 0
) -> Callable[[int], list[HistoryBatch]]:
    """Return epoch -> batches of the training split; a long history gives several windows.

    `skip_last` leaves out the latest training items of users who have more than these.
    """
    histories = [h[:-skip_last] if 0 < skip_last < len(h) else h for h in sequences.histories("train")]
    windows = [w for h in histories for w in _windows(h, max_history)]
    lengths = [len(window) for window in windows]

    def batches(epoch: int) -> list[HistoryBatch]:
        rng = numpy_generator(seed, "generator", epoch)
        picked = length_batches(lengths, batch_size, rng)
        return [HistoryBatch(history_tensor([windows[i] for i in rows], max_history)) for rows in picked]

    return batches


def rank_batches(
    sequences: Sequences,
    examples: Examples,
    *,
    max_history: int,
    search_history: int,
    negatives: int,
    batch_size: int,
    seed: int,
) -> Callable[[int], list[RankBatch]]:
    """Return epoch -> batches of stage II; negatives are drawn anew from the beam in every epoch."""
    lengths = np.minimum(examples.position_N, max_history)

    def batches(epoch: int) -> list[RankBatch]:
        rng = numpy_generator(seed, "rank", epoch)
        out = []
        for rows in length_batches(lengths, batch_size, rng):
            past = [sequences.row(examples.user_N[i])[: examples.position_N[i]] for i in rows]
            target = [sequences.row(examples.user_N[i])[examples.position_N[i]] for i in rows]
            with_target = [np.append(p[-max_history:], t) for p, t in zip(past, target, strict=True)]
            candidate, prior = _with_negatives(np.array(target), examples, rows, negatives, rng)
            out.append(
                RankBatch(
                    history_tensor(with_target, max_history + 1),
                    torch.tensor([len(w) - 1 for w in with_target]),
                    torch.from_numpy(candidate),
                    torch.from_numpy(prior),
                    history_tensor(past, search_history),
                    torch.from_numpy((examples.beam_NK[rows] == np.array(target)[:, None]).any(axis=1)),
                )
            )
        return out

    return batches


def rank_positions(sequences: Sequences, positions: int) -> tuple[IntArray, IntArray]:
    """Return (user, position) of the latest training targets that have a history."""
    last = np.diff(sequences.start) - HELD_OUT["train"] - 1
    users, places = [], []
    for back in range(positions):
        user = np.flatnonzero(last - back >= 1)
        users.append(user)
        places.append(last[user] - back)
    return np.concatenate(users), np.concatenate(places)


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return DataError(f"{path} cannot be read ({reason}); run the step that writes it again")


def _groups(start: IntArray) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) user of each row group; a longer user than fits has one of his own."""
    first = 0
    while first + 1 < len(start):
        full = int(np.searchsorted(start, start[first] + GROUP_EVENTS, side="right")) - 1
        last = max(first + 1, min(full, first + GROUP_USERS, len(start) - 1))
        yield first, last
        first = last


def _windows(history: IntArray, size: int) -> list[IntArray]:
    # Windows end at the latest item, so that only the oldest one is short.
    return [history[max(0, end - size) : end] for end in range(len(history), 0, -size)]


def _with_negatives(
    target_B: IntArray, examples: Examples, rows: IntArray, count: int, rng: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    beam_BK, prior_BKP = examples.beam_NK[rows], examples.prior_NKP[rows]
    usable_BK = (beam_BK >= 0) & (beam_BK != target_B[:, None])
    key_BK = np.where(usable_BK, rng.random(beam_BK.shape), np.inf)
    chosen_BN = np.argsort(key_BK, axis=1, kind="stable")[:, :count]
    negative_BN = np.take_along_axis(np.where(usable_BK, beam_BK, -1), chosen_BN, axis=1)
    usable_BK1, chosen_BN1 = usable_BK[..., None], chosen_BN[..., None]
    prior_BNP = np.take_along_axis(np.where(usable_BK1, prior_BKP, 0), chosen_BN1, axis=1)
    candidate = np.concatenate((target_B[:, None], negative_BN), axis=1)
    prior = np.concatenate((examples.target_prior_NP[rows][:, None], prior_BNP), axis=1)
    return candidate, prior.astype(np.float32)
