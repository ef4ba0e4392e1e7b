"""Documents to tokens: a byte-level tokenizer, and one memory-mapped file of token ids for each split.

A folder of tokens holds `<split>.bin`, the ids of all documents one after the other, each closed by the
tokenizer's end of text; `<split>.starts`, where each document begins; and `index.json`, which says what they
are. The files are mapped, so a corpus may be larger than memory. Shapes: N tokens, D documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.contracts.text import DOCUMENTS, SPLITS
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.progress import Progress, say
from feedworks.storage import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

INDEX_FILE = "index.json"
TOKENIZER_FILE = "tokenizer.json"
END, PAD, TURN, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END, PAD, TURN, TURN_END)
SMALLEST_VOCABULARY = 256 + len(SPECIAL)
# Of Qwen2's tokenizer: contractions, words with the space before them, single digits, signs, line ends.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READ_ROWS = 64
TWO_BYTES = 1 << 16  # ids that fit in uint16
# A longer text is tokenised in parts: the tokenizer keeps some 150 bytes for each token until it is done.
PART_CHARACTERS = 1_000_000
BATCH_CHARACTERS = 4_000_000
_FORMAT = 1


class Document(NamedTuple):
    """One row of the documents."""

    document_id: int
    title: str
    split: str
    text: str


class CorpusSize(NamedTuple):
    """What was tokenised: documents and tokens of each split, characters of all."""

    num_documents: dict[str, int]
    num_tokens: dict[str, int]
    num_characters: int


class TokenFile:
    """One split of a folder of tokens, mapped into memory.

    Args:
        path: `<folder>/<split>.bin`, or without the ending.

    Attributes:
        tokens: `(N,)` ids of uint16 or uint32, all documents one after the other.
        starts: `(D + 1,)` int64; document `i` is `tokens[starts[i] : starts[i + 1]]`, the last id of which is
            `end_id`.
        end_id: the tokenizer's end of text.
        vocab_size: ids are below it.
        num_bytes: of the documents in UTF-8, to tell losses of different tokenizers in bits a byte.
        tokenizer: sha256 of the `tokenizer.json` that made the ids.

    Raises:
        DataError: A file is missing, or not as long as `index.json` says.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        folder, split = path.parent, path.name.removesuffix(".bin")
        index = read_json(folder / INDEX_FILE)
        try:
            entry, dtype = index["splits"][split], np.dtype(index["dtype"])
            num_tokens, num_documents = int(entry["num_tokens"]), int(entry["num_documents"])
            self.end_id, self.vocab_size = int(index["end_id"]), int(index["vocab_size"])
            self.num_bytes = int(entry["num_bytes"])
            self.tokenizer = str(index["tokenizer"])
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{folder / INDEX_FILE} does not tell of {split}; tokenise the corpus") from None
        self.tokens = _mapped(folder / f"{split}.bin", dtype, num_tokens)
        self.starts = _mapped(folder / f"{split}.starts", np.dtype(np.int64), num_documents + 1)

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.starts) - 1

    def document(self, place: int) -> npt.NDArray[Any]:
        """Ids of the document at a place, `(n,)`, with the end of text."""
        return np.asarray(self.tokens[self.starts[place] : self.starts[place + 1]])


def read_documents(data_dir: Path, split: str | None = None) -> Iterator[Document]:
    """The documents of a text data folder, or those of one split, in the order of the file.

    Raises:
        DataError: The file is missing or cannot be read.
    """
    path = DOCUMENTS.path(data_dir)
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=READ_ROWS, columns=list(Document._fields)):
                for row in batch.to_pylist():
                    if split in (None, row["split"]):
                        yield Document(**row)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot read {path} ({reason}); give a text data folder") from None


def fit_tokenizer(data_dir: Path, out_dir: Path, *, vocab_size: int) -> Path:
    """Fits a byte-level BPE tokenizer to the training documents and writes its folder.

    It takes every text and gives it back byte for byte; digits stand alone. Special tokens: end of text (0),
    padding (1), begin and end of a turn for the chat template.

    Args:
        data_dir: A text data folder.
        out_dir: The folder to write, as `transformers` reads it; an earlier one is replaced.
        vocab_size: V, ids in all, at least 260; fewer if the text does not have so many pairs.

    Raises:
        ConfigError: `vocab_size` is too small.
        DataError: There are no training documents.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size={vocab_size}: expected at least {SMALLEST_VOCABULARY}, all bytes and special tokens"
        )
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    say(f"fitting a tokenizer of {vocab_size:,} ids")
    with Progress("characters read") as shown:
        tokenizer.train_from_iterator(_training_parts(data_dir, shown), trainer)
        if not shown.count:
            raise DataError(f"{DOCUMENTS.path(data_dir)} has no documents of the split {SPLITS[0]}")
    return _save_tokenizer(tokenizer, out_dir)


def copy_tokenizer(source: Path, out_dir: Path) -> Path:
    """Writes the tokenizer of another folder, such as a checkpoint's, into a folder of its own.

    Raises:
        ModelError: See `load_tokenizer`.
    """
    tokenizer = load_tokenizer(source)
    with atomic_folder(out_dir) as folder:
        tokenizer.save_pretrained(folder)
    return out_dir


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder; nothing is fetched from anywhere.

    One without padding pads with its end of text.

    Raises:
        ModelError: The folder holds none, or one without an end of text.
    """
    from transformers import AutoTokenizer

    if not (folder / TOKENIZER_FILE).is_file():
        raise ModelError(f"{folder} holds no {TOKENIZER_FILE}; give the folder of a fast tokenizer")
    try:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # `tokenizers` raises plain ones
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({reason}); copy it again") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{folder}: the tokenizer has no end of text; set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
    """Ids of each text as it stands: without special tokens, also where its characters spell one."""
    backend = tokenizer.backend_tokenizer
    spelled = backend.encode_special_tokens
    backend.encode_special_tokens = True
    try:
        found = backend.encode_batch_fast(list(texts), add_special_tokens=False)
    finally:
        backend.encode_special_tokens = spelled
    return [np.array(each.ids, np.uint32) for each in found]


def tokenise(data_dir: Path, tokenizer_dir: Path, out_dir: Path) -> CorpusSize:
    """Writes the folder of tokens of a text data folder, an earlier one stays until it is whole.

    Args:
        data_dir: A text data folder that has passed the gate.
        tokenizer_dir: The tokenizer's folder.
        out_dir: The folder of tokens to write; see `TokenFile`.

    Raises:
        ModelError: See `load_tokenizer`.
        DataError: See `read_documents`; or there are no documents.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    end_id = int(tokenizer.eos_token_id)
    vocab_size = max(tokenizer.get_vocab().values()) + 1  # there may be holes between the ids
    dtype = np.dtype(np.uint16 if vocab_size <= TWO_BYTES else np.uint32)
    num_characters = 0
    with atomic_folder(out_dir) as folder, Progress("characters tokenised") as shown:
        with ExitStack() as stack:
            writers = {split: stack.enter_context(_Writer(folder, split, dtype)) for split in SPLITS}
            for batch in _batches(read_documents(data_dir)):
                parts = [_parts(document.text) for document in batch]
                ids = iter(encode(tokenizer, [part for of_one in parts for part in of_one]))
                for document, of_one in zip(batch, parts, strict=True):
                    writers[document.split].add([next(ids) for _ in of_one], end_id)
                    writers[document.split].num_bytes += len(document.text.encode())
                num_characters += sum(len(document.text) for document in batch)
                shown.advance(num_characters - shown.count)
        if not num_characters:
            raise DataError(f"{DOCUMENTS.path(data_dir)} has no documents")
        counts = {
            split: {
                "num_documents": len(writer.starts) - 1,
                "num_tokens": writer.starts[-1],
                "num_bytes": writer.num_bytes,
            }
            for split, writer in writers.items()
        }
        sha256 = hashlib.sha256((tokenizer_dir / TOKENIZER_FILE).read_bytes()).hexdigest()
        about = {"format": _FORMAT, "dtype": dtype.name, "end_id": end_id, "vocab_size": vocab_size}
        write_json(folder / INDEX_FILE, {**about, "tokenizer": sha256, "splits": counts})
    return CorpusSize(
        {split: count["num_documents"] for split, count in counts.items()},
        {split: count["num_tokens"] for split, count in counts.items()},
        num_characters,
    )


class _Writer:
    """Appends the documents of one split; a context, at whose end its files are whole."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any]) -> None:
        self.starts = [0]
        self.num_bytes = 0
        self._dtype = dtype
        self._starts_path = folder / f"{split}.starts"
        self._file = (folder / f"{split}.bin").open("wb")

    def add(self, parts: Sequence[npt.NDArray[np.uint32]], end_id: int) -> None:
        ids = np.concatenate([*parts, np.array([end_id], np.uint32)])
        self._file.write(ids.astype(self._dtype).tobytes())
        self.starts.append(self.starts[-1] + len(ids))

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._starts_path.write_bytes(np.array(self.starts, np.int64).tobytes())


def _mapped(path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    expected = count * dtype.itemsize
    found = path.stat().st_size if path.is_file() else -1
    if found != expected:
        what = "is missing" if found < 0 else f"has {found:,} bytes, not {expected:,}"
        raise DataError(f"{path} {what}; remove its folder and tokenise again")
    # A file without bytes cannot be mapped.
    return np.memmap(path, dtype, "r") if count else np.zeros(0, dtype)


def _save_tokenizer(tokenizer: Any, out_dir: Path) -> Path:
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    whole.chat_template = CHAT_TEMPLATE
    with atomic_folder(out_dir) as folder:
        whole.save_pretrained(folder)
    return out_dir


def _training_parts(data_dir: Path, shown: Progress) -> Iterator[str]:
    for document in read_documents(data_dir, SPLITS[0]):
        shown.advance(len(document.text))
        yield from _parts(document.text)


def _parts(text: str) -> list[str]:
    """The text, cut where no token of ours can span the cut: after a line that text follows."""
    parts = []
    begin = 0
    while len(text) - begin > PART_CHARACTERS:
        end = begin + PART_CHARACTERS
        while end > begin and not (
            text[end - 1] == "\n" and text[end - 2 : end - 1].strip() and text[end].strip()
        ):
            end -= 1
        end = end if end > begin else begin + PART_CHARACTERS
        parts.append(text[begin:end])
        begin = end
    return [*parts, text[begin:]]


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
