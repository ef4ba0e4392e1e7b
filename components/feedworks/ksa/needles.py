"""Facts hidden in long text and asked for at its end: RULER's tasks, short enough for a small model to learn.

RULER: What's the Real Context Size of Your Long-Context Language Models? (Hsieh et al., arXiv 2404.06654).
The tasks are its own, the words are ours: RULER asks a model that follows instructions, this asks for the
next words of a text, so that a model of any size can be trained on the form (see `training_rows`).

    single       The code of the amber fox is 4821. ... Remember: the code of the amber fox is >> 4821
    multi_key    the same among codes of other things
    multi_value  A code of the ... twice or more.       Remember: the codes of the amber fox are >> 4821, 3307
    tracking     Let mip be 4821. Let tov be mip. ...   Remember: equal to 4821 are >> mip, tov, zan
    frequent     words drawn by a power law             Remember: seen most are >> tov, mip, zan

Everything around the needles is a haystack of whole sentences. Shapes: R rows, T tokens of a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from feedworks.contracts.files import read_file
from feedworks.errors import ConfigError, DataError
from feedworks.ksa.corpus import encode
from feedworks.ksa.hiding import IntArray, Part, apart, coded, hidden
from feedworks.ksa.losses import IGNORED
from feedworks.ksa.needle_tasks import FREQUENT, HIDDEN, TASKS, Coded, frequent
from feedworks.progress import progress
from feedworks.storage import atomic_file
from feedworks.training.seed import numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The haystack of RULER's simplest task.
NOISE = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
TRIES = 4  # draws for each further question
GROUP_ROWS = 64  # of a file; prompts are long
LONGEST_SENTENCE = 300  # characters; a longer one would make depths coarse
MOST_MISSES = 20  # sentences in a row that do not fit into what is left
_FULL_STOP = re.compile(r"[.!?]+[”’\"')]*(?=\s|$)")
_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("length", pa.int64()),
        ("depth", pa.float64()),
        ("prompt", pa.large_string()),
        ("target", pa.string()),
        ("answers", pa.list_(pa.string())),
        ("prompt_ids", pa.large_list(pa.int32())),
        ("target_ids", pa.list_(pa.int32())),
        ("answered", pa.list_(pa.list_(pa.int32()))),
    ]
)


class Needle(NamedTuple):
    """One prompt with what must be in the answer.

    Attributes:
        task: one of `TASKS`.
        length: tokens that prompt, target and the end of text take at most, as asked for.
        depth: share of the haystack before the first sentence that is needed; None for `frequent`.
        prompt: the text, from the space before its first word to right before the answer.
        target: the expected continuation, which begins with a space.
        answers: what must be found in the continuation.
        prompt_ids: ids of the prompt, tokenised sentence by sentence.
        target_ids: ids of the target, without the end of text.
        answered: where in `prompt_ids` earlier questions are answered, each a begin and an end.
    """

    task: str
    length: int
    depth: float | None
    prompt: str
    target: str
    answers: tuple[str, ...]
    prompt_ids: IntArray
    target_ids: IntArray
    answered: tuple[tuple[int, int], ...] = ()


class _Cell(NamedTuple):
    task: str
    length: int
    depth: float | None
    place: int


class Haystack:
    """Sentences around the needles, with their ids.

    Args:
        tokenizer: The model's.
        texts: Documents to take sentences from, read until there is enough; without any the five sentences of
            RULER's noise.
        max_tokens: How much is read; longer prompts read the sentences again.

    Raises:
        DataError: The texts hold no sentence.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        texts: Iterable[str] | None = None,
        *,
        max_tokens: int = 1_000_000,
    ) -> None:
        self.tokenizer = tokenizer
        self.parts: list[Part] = []
        count = 0
        for text in [" ".join(NOISE)] if texts is None else texts:
            sentences = [f" {sentence}" for sentence in sentences_of(text)]
            for part in self.encode(sentences):
                self.parts.append(part)
                count += len(part.ids)
            if count >= max_tokens:
                break
        if not self.parts:
            raise DataError("the haystack has no sentence; give texts with full stops")

    def encode(self, texts: Sequence[str]) -> list[Part]:
        """Texts with their ids."""
        ids = encode(self.tokenizer, texts)
        return [Part(text, each.astype(np.int32)) for text, each in zip(texts, ids, strict=True)]

    def draw(self, num_tokens: int, rng: np.random.Generator) -> list[Part]:
        """Sentences from a random one on, `num_tokens` long at most; those that do not fit are left out."""
        place, misses = int(rng.integers(len(self.parts))), 0
        found: list[Part] = []
        while num_tokens > 0 and misses < (MOST_MISSES if found else len(self.parts)):
            part = self.parts[place % len(self.parts)]
            fits = len(part.ids) <= num_tokens
            if fits:
                found.append(part)
                num_tokens -= len(part.ids)
            misses = 0 if fits else misses + 1
            place += 1
        return found


def make_needles(
    haystack: Haystack,
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    depths: Sequence[float] | None,
    per_cell: int,
    seed: int,
    questions: int = 1,
) -> list[Needle]:
    """Prompts for each task, length and depth; the same arguments give the same prompts.

    Args:
        haystack: What is around the needles. For a measure take held-out texts, for training others.
        tasks: Some of `TASKS`.
        lengths: Tokens that prompt, target and end of text take at most; a few less where the next sentence
            would not fit.
        depths: 0 for the first sentence, 1 for the last; None draws one for each prompt. `frequent` has none:
            it gives `per_cell` prompts for each length.
        per_cell: Prompts for each.
        seed: Another one for training than for the measure.
        questions: Facts of the tasks, other than `frequent`, that are hidden and asked for in one prompt, as
            far as half of it holds them; the last one is the cell's. More than one is for training: a row
            with a single answer of a few tokens says little beside rows of text.

    Raises:
        ConfigError: An unknown task, a depth outside 0 to 1, or a length that cannot hold a task.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        raise ConfigError(f"unknown needle task {unknown[0]!r}; known are {', '.join(TASKS)}")
    if not all(0 <= depth <= 1 for depth in depths or ()):
        raise ConfigError(f"needle depths {depths}: expected numbers from 0 to 1")
    cells = [
        _Cell(task, length, depth, i)
        for task in tasks
        for length in lengths
        for depth in ([None] if depths is None or task == FREQUENT else depths)
        for i in range(per_cell)
    ]
    return [
        _needle(haystack, cell, tasks, questions, seed) for cell in progress(cells, label="needle prompts")
    ]


def write_needles(needles: Sequence[Needle], path: Path) -> Path:
    """Writes prompts as a parquet file by one rename and returns its path."""
    with (
        atomic_file(path) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for group in range(0, len(needles), GROUP_ROWS):
            columns = zip(*needles[group : group + GROUP_ROWS], strict=True)
            arrays = [pa.array(list(c), field.type) for c, field in zip(columns, _SCHEMA, strict=True)]
            writer.write_table(pa.table(arrays, schema=_SCHEMA))
    return path


def read_needles(path: Path) -> list[Needle]:
    """The prompts of a file.

    Raises:
        DataError: The file is missing or not of this form.
    """
    rows = read_file(path, _SCHEMA.names)
    columns = []
    for name in _SCHEMA.names:
        # Whole lists at once: prompts of a paper's lengths have hundreds of millions of ids.
        of_ids = name in ("prompt_ids", "target_ids")
        columns.append([ids.values.to_numpy() for ids in rows[name]] if of_ids else rows[name].to_pylist())
    found = [Needle(*row) for row in zip(*columns, strict=True)]
    return [
        needle._replace(
            answers=tuple(needle.answers), answered=tuple((begin, end) for begin, end in needle.answered)
        )
        for needle in found
    ]


def score(answers: Sequence[str], continuation: str) -> float:
    """Share of the answers that stand in the continuation as words of their own, as RULER counts recall.

    RULER also counts an answer inside a longer word; here `4821` is not found in `14821`. What comes after
    the first line is not looked at.
    """
    line = continuation.strip().partition("\n")[0].lower()
    return sum(
        re.search(rf"(?<!\w){re.escape(answer.lower())}(?!\w)", line) is not None for answer in answers
    ) / len(answers)


class NeedleRows(NamedTuple):
    """Rows for training, labels for the targets alone.

    Attributes:
        input_ids_RT: int64; prompt, target, end of text, then more ends of text up to T.
        label_RT: answers and the first end of text in their own places, -100 elsewhere.
    """

    input_ids_RT: Tensor
    label_RT: Tensor


def training_rows(needles: Sequence[Needle], *, seq_len: int, end_id: int) -> NeedleRows:
    """Prompts with their targets as rows of equal length.

    Args:
        needles: At least one.
        seq_len: T.
        end_id: The tokenizer's end of text; it closes the target and fills the row.

    Raises:
        ConfigError: A prompt with its target is longer than a row.
    """
    shape = (len(needles), seq_len)
    input_ids_RT, label_RT = np.full(shape, end_id, np.int64), np.full(shape, IGNORED, np.int64)
    for row, needle in enumerate(needles):
        begin, answer = len(needle.prompt_ids), [*needle.target_ids.tolist(), end_id]
        if begin + len(answer) > seq_len:
            raise ConfigError(
                f"a needle prompt of length {needle.length} needs {begin + len(answer)} tokens, a row has "
                f"{seq_len}; make the rows longer or the prompts shorter"
            )
        input_ids_RT[row, :begin] = needle.prompt_ids
        input_ids_RT[row, begin : begin + len(answer)] = answer
        label_RT[row, begin : begin + len(answer)] = answer
        for first, last in needle.answered:
            label_RT[row, first:last] = needle.prompt_ids[first:last]
    return NeedleRows(torch.from_numpy(input_ids_RT), torch.from_numpy(label_RT))


def sentences_of(text: str) -> Iterator[str]:
    """Sentences of a text, on one line each; those that are very long or have no letter are left out."""
    begin = 0
    for stop in _FULL_STOP.finditer(text):
        sentence = " ".join(text[begin : stop.end()].split())
        begin = stop.end()
        if len(sentence) <= LONGEST_SENTENCE and any(character.isalpha() for character in sentence):
            yield sentence


def _needle(haystack: Haystack, cell: _Cell, tasks: Sequence[str], questions: int, seed: int) -> Needle:
    task, length, depth, place = cell
    name = "any" if depth is None else str(depth)
    rng = numpy_generator(seed, "needle", task, length, name, place)
    made = frequent(rng) if task == FREQUENT else HIDDEN[task](rng)
    (target,) = haystack.encode([made.target])
    room = length - len(target.ids) - 1
    if isinstance(made, Coded):
        parts = coded(haystack, made, room, rng)
    else:
        depth = float(rng.random()) if depth is None else depth
        known = [each for each in tasks if each != FREQUENT]
        drawn = rng.integers(len(known), size=TRIES * (questions - 1)).tolist()
        others = apart(made, (HIDDEN[known[i]](rng) for i in drawn), questions - 1)
        parts = hidden(haystack, [made, *others], room, depth, rng)
    if not parts:
        raise ConfigError(
            f"needle length {length} cannot hold the task {task} with this tokenizer; make it longer or "
            "leave the task out"
        )
    ends = np.cumsum([len(part.ids) for part in parts]).tolist()
    return Needle(
        task=task,
        length=length,
        depth=depth,
        prompt="".join(part.text for part in parts),
        target=made.target,
        answers=made.answers,
        prompt_ids=np.concatenate([part.ids for part in parts]),
        target_ids=target.ids,
        answered=tuple(
            (end - len(part.ids), end) for part, end in zip(parts, ends, strict=True) if part.is_answer
        ),
    )
