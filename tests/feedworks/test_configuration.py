"""Settings from words and from JSON: what is refused, and that the message names the setting."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from feedworks.configuration import from_json, to_json, with_overrides
from feedworks.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 1
    name: str = "x"
    whole: bool = False
    limit: int | None = None
    sizes: tuple[int, ...] = (1, 2)
    inner: Inner = Inner()


def test_json_reads_back() -> None:
    config = Outer(count=2**62, limit=3, sizes=(), inner=Inner(share=1, kind="b"))
    assert from_json(Outer, to_json(config)) == config
    assert from_json(Outer, to_json(Outer())) == Outer()


@pytest.mark.parametrize(
    "override",
    [
        "inner.share=nan",
        "inner.share=inf",
        "inner.share=1e400",
        f"count={2**63}",
        "count=1.5",
        "count=",
        "whole=yes",
        "sizes=1;2",
        "inner.kind=c",
        "inner=1",
        "inner.=1",
        "count",
    ],
)
def test_a_word_that_is_no_value_is_refused_by_name(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        with_overrides(Outer(), [override])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", "1"),
        ("count", 1.0),
        ("count", True),
        ("count", None),
        ("name", 1),
        ("whole", 1),
        ("limit", "1"),
        ("sizes", 1),
        ("sizes", [1, "2"]),
        ("inner", []),
        ("inner", None),
    ],
)
def test_json_of_the_wrong_type_is_refused_by_name(key: str, value: Any) -> None:
    values = json.loads(to_json(Outer())) | {key: value}
    with pytest.raises(ConfigError, match=f"setting {key}"):
        from_json(Outer, json.dumps(values))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Outer is not JSON"),
        ("[]", "setting Outer: expected a group of settings"),
        ("{}", "missing fields"),
        ('{"inner": {"share": 0.5, "kind": "c"}}', "missing fields"),
    ],
)
def test_json_of_another_form_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        from_json(Outer, text)
