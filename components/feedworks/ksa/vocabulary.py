"""KSA (arXiv 2604.24432): text to tokens and back, token by token.

A token of a byte-level vocabulary is a string of bytes that may end within a character: `TextStream` hands
out a character when all its bytes are there, and nothing that may become a stop string.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedworks.errors import DataError, FeedworksError, ModelError
from feedworks.storage import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_FILE = "generation_config.json"
CONFIG = "config.json"


class TemplateError(FeedworksError):
    """The messages of a chat do not fit the model's template, or it has none."""


class Vocabulary:
    """The tokenizer of a model folder.

    Attributes:
        token_bytes: what each token stands for; nothing for special tokens.
        eos: tokens that end an answer.

    Args:
        folder: with tokenizer.json, tokenizer_config.json and the model's config.json.

    Raises:
        ModelError: files are missing or damaged, or the vocabulary is none of bytes.
    """

    def __init__(self, folder: Path) -> None:
        for name in (TOKENIZER_FILE, TOKENIZER_CONFIG):
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name} is missing; package the model again")
        self._tokenizer = _load(folder)
        self._backend: Tokenizer = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.token_bytes = token_bytes(self._backend)
        self.eos = _eos(folder, self._tokenizer.eos_token_id)

    def __len__(self) -> int:
        return len(self.token_bytes)

    @property
    def has_chat(self) -> bool:
        """Whether there is a template for chats."""
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the tokens of a text; safe in several threads.

        Args:
            text: any text; special tokens that it spells out are taken for these.
            special: add the tokens that the tokenizer puts around a text.
        """
        return list(self._backend.encode(text, add_special_tokens=special).ids)

    def chat_text(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the text that a chat is for the model, up to where its answer begins.

        Raises:
            TemplateError: the template does not take these messages.
        """
        import jinja2

        if not self.has_chat:
            raise TemplateError("this model has no chat template; ask /v1/completions")
        try:
            text: Any = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=True
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise TemplateError(f"the chat template refuses the messages: {reason}") from None
        return str(text)

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens without special ones."""
        return b"".join(map(self.bytes_of, tokens)).decode(errors="replace")

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token; none where the model has more tokens than its tokenizer."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""

    def name(self, token: int) -> str:
        """Return a token as reports of log-probabilities show it, as OpenAI does."""
        content = self.bytes_of(token)
        if not content:
            return str(self._backend.id_to_token(token) or "")
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


class Text(NamedTuple):
    """Text that is certain now, and whether a stop string came after it."""

    text: str
    stopped: bool = False


class TextStream:
    """Turns the bytes of tokens into text as they come.

    What it returned, put together, is the text of all bytes as a whole, up to the first stop string.

    Args:
        stop: strings that end the text and are no part of it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [each for each in stop if each]
        self._held = ""

    def push(self, content: bytes, *, last: bool = False) -> Text:
        """Add the bytes of a token.

        Args:
            content: any.
            last: nothing comes after them; what was held back comes out.
        """
        held = self._held + self._decoder.decode(content, final=last)
        found = [at for each in self._stop if (at := held.find(each)) >= 0]
        if found:
            self._held = ""
            return Text(held[: min(found)], True)
        keep = 0 if last else max((_overlap(held, each) for each in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return Text(held[: len(held) - keep])


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of every token of a byte-level vocabulary, nothing for special tokens.

    Raises:
        ModelError: the vocabulary is of another kind.
    """
    described = json.loads(tokenizer.to_str())
    decoder = described.get("decoder") or {}
    kinds = [each.get("type") for each in decoder.get("decoders", [decoder])]
    if kinds != ["ByteLevel"]:
        raise ModelError(f"tokenizer.json decodes by {kinds}; expected a byte-level vocabulary (ByteLevel)")
    byte_of = {char: byte for byte, char in enumerate(_alphabet())}
    added = tokenizer.get_added_tokens_decoder()
    found = []
    for token in range(max([*tokenizer.get_vocab(with_added_tokens=True).values(), -1]) + 1):
        if token in added:
            found.append(b"" if added[token].special else added[token].content.encode())
            continue
        text = tokenizer.id_to_token(token) or ""
        known = all(char in byte_of for char in text)
        found.append(bytes(byte_of[char] for char in text) if known else text.encode())
    return found


def _alphabet() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _load(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the parser of tokenizer.json raises bare ones
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder / TOKENIZER_FILE} cannot be read ({reason}); package it again") from None


def _eos(folder: Path, of_tokenizer: int | None) -> frozenset[int]:
    found: set[int] = set() if of_tokenizer is None else {of_tokenizer}
    for name in (CONFIG, GENERATION_FILE):
        if (folder / name).is_file():
            try:
                told = read_json(folder / name).get("eos_token_id")
            except (DataError, AttributeError) as error:
                raise ModelError(f"{folder / name} is damaged ({error}); package the model again") from None
            found.update(told if isinstance(told, list) else [] if told is None else [told])
    return frozenset(found)


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text may be the start of a stop string."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
