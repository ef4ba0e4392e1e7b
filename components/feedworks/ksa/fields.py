"""KSA (arXiv 2604.24432): fields of a request that may hold one of several kinds, or many values.

A body of 4 MB has room for a million values, and a union tries every kind on every one of them. So the first
value tells the kind, the number of values is checked before any of them is looked at, and the first wrong one
ends the check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import PlainValidator

MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 64
MAX_PARTS = 4096
# No tokenizer has more; which ids there are only the loaded model can tell.
TOKEN_IDS = 1 << 31


def at_most(limit: int, what: str) -> Callable[[Any], Any]:
    """Make a validator that refuses lists and mappings with more values, and passes on all else.

    Args:
        limit: values at most.
        what: the values, for people.
    """

    def check(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > limit:
            raise ValueError(f"at most {limit} {what}, got {len(value)}")
        return value

    return check


def only_first_unknown(value: Any, known: Mapping[str, Any]) -> Any:
    """Return an object without its unknown fields but the first: one is enough to refuse it."""
    if not isinstance(value, dict) or len(value) <= len(known):
        return value
    unknown = next((name for name in value if name not in known), None)
    return {name: each for name, each in value.items() if name in known or name == unknown}


def one_prompt(value: Any) -> str | list[int]:
    """Check a prompt: a text, or its tokens.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or (value and isinstance(value[0], (str, list))):
        raise ValueError("expected one prompt, a text or a list of token ids")
    return _tokens(value)


def any_prompts(value: Any) -> str | list[int] | list[str] | list[list[int]]:
    """Check what is one or several prompts; the first element tells the kind of all.

    Raises:
        ValueError: it is none of these, or there are too many prompts.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("expected a text, a list of token ids, or a list of these")
    if not value or not isinstance(value[0], (str, list)):
        return _tokens(value)
    at_most(MAX_CHOICES, "prompts")(value)
    kind = type(value[0])
    if not all(isinstance(each, kind) for each in value):
        raise ValueError("expected prompts of one kind, either texts or lists of token ids")
    return value if kind is str else [_tokens(each) for each in value]


def stop_texts(value: Any) -> str | list[str] | None:
    """Check the texts that end an answer.

    Raises:
        ValueError: one is no text, empty or too long, or there are too many.
    """
    if value is None:
        return None
    texts = at_most(MAX_STOPS, "stop texts")([value] if isinstance(value, str) else value)
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError("expected a text or a list of texts")
    if not all(1 <= len(each) <= MAX_STOP_CHARACTERS for each in texts):
        raise ValueError(f"a stop text has 1 to {MAX_STOP_CHARACTERS} characters")
    return value  # type: ignore[no-any-return]


def content_text(value: Any) -> str:
    """Return the text of a message's content, which may come in parts.

    Raises:
        ValueError: it is no text, or one part is none.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("expected a text or a list of text parts")
    at_most(MAX_PARTS, "parts")(value)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError('only text parts are taken, such as {"type": "text", "text": "..."}')
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise ValueError("a text part has a type and a text, nothing else")
    return "".join(part["text"] for part in value)


def checked(check: Callable[[Any], Any], shown: Any) -> PlainValidator:
    """Return the annotation of a field that `check` alone reads.

    Args:
        check: takes the parsed JSON.
        shown: the type that the schema for clients shows.
    """
    return PlainValidator(check, json_schema_input_type=shown)


def _tokens(values: list[Any]) -> list[int]:
    if values and (set(map(type, values)) != {int} or min(values) < 0 or max(values) >= TOKEN_IDS):
        raise ValueError(f"expected token ids from 0, below {TOKEN_IDS}")
    return values
