"""Options of `feedworks submit` that say where tasks run and when, checked before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

ValueT = TypeVar("ValueT")
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_LABEL = re.compile(rf"({_DOMAIN}/)?{_NAME}")
_LABEL_VALUE = re.compile(rf"({_NAME})?")
_RESOURCE = re.compile(rf"{_DOMAIN}/{_NAME}")
_CPU = re.compile(r"[1-9]\d*m?", re.ASCII)
_MEMORY = re.compile(r"[1-9]\d*[MGT]i?", re.ASCII)
_OBJECT = re.compile(_DOMAIN)
_CRON_RANGES = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
_CRON_NAMES = {
    "month": ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
    "weekday": ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"),
}
_CRON_PART = re.compile(r"(?:[*?]|(\w+)(?:-(\w+))?)(?:/0*[1-9]\d*)?", re.ASCII)


def gpu_type(value: str) -> str:
    """Return the name of an extended resource; ValueError says what is wrong."""
    if not _RESOURCE.fullmatch(value):
        raise ValueError("expected a resource of a node, such as nvidia.com/gpu or nvidia.com/mig-3g.40gb")
    return value


def cpu(value: str) -> str:
    """Return a number of cores; ValueError says what is wrong."""
    if not _CPU.fullmatch(value):
        raise ValueError("expected whole cores or thousandths of one, such as 8 or 1500m")
    return value


def memory(value: str) -> str:
    """Return a size of memory; ValueError says what is wrong."""
    if not _MEMORY.fullmatch(value):
        raise ValueError("expected a size with its unit, such as 64Gi")
    return value


def object_name(value: str) -> str:
    """Return the name of an object of Kubernetes; ValueError says what is wrong."""
    if len(value) > 253 or not _OBJECT.fullmatch(value):
        raise ValueError("expected a name of Kubernetes: small letters, digits, '-' and '.'")
    return value


def labels(values: Sequence[str]) -> dict[str, str]:
    """Turn `KEY=VALUE` words into a node selector; ValueError says what is wrong."""
    found: dict[str, str] = {}
    for word in values:
        key, separator, value = word.partition("=")
        if not separator or not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{word!r} is no label KEY=VALUE, such as kubernetes.io/arch=amd64")
        if key in found:
            raise ValueError(f"{key} is given twice")
        found[key] = value
    return found


def tolerations(values: Sequence[str]) -> list[dict[str, str]]:
    """Turn `KEY[=VALUE][:EFFECT]` words, as kubectl writes taints, into tolerations; ValueError as above."""
    return [_toleration(word) for word in values]


def _toleration(word: str) -> dict[str, str]:
    taint, _, effect = word.partition(":")
    key, separator, value = taint.partition("=")
    if not _LABEL.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
        raise ValueError(f"{word!r} is no taint KEY[=VALUE][:EFFECT], such as nvidia.com/gpu:NoSchedule")
    if effect and effect not in EFFECTS:
        raise ValueError(f"{word!r}: the effect {effect!r} is none of {', '.join(EFFECTS)}")
    wanted = {"operator": "Equal", "value": value} if separator else {"operator": "Exists"}
    return {"key": key, **wanted, **({"effect": effect} if effect else {})}


def cron(value: str) -> str:
    """Return Kubeflow's six fields of a crontab line of five; ValueError says what is wrong.

    Kubeflow reads five fields as seconds to months: `0 3 * * *` would run every hour.
    """
    fields = value.split()
    if len(fields) != 5:
        raise ValueError(
            f"expected five fields, minute hour day month weekday, such as '0 3 * * *'; got {value!r}"
        )
    for field, (name, low, high) in zip(fields, _CRON_RANGES, strict=True):
        if not all(_is_cron(part, name, low, high) for part in field.split(",")):
            raise ValueError(f"{field!r} is no {name}: expected numbers from {low} to {high}, or *")
    return " ".join(["0", *fields])


def _is_cron(part: str, name: str, low: int, high: int) -> bool:
    found = _CRON_PART.fullmatch(part)
    if not found:
        return False
    names = _CRON_NAMES.get(name, ())
    ends = [low + names.index(end.upper()) if end.upper() in names else end for end in found.groups() if end]
    if not all(isinstance(end, int) or end.isdecimal() for end in ends):
        return False
    numbers = list(map(int, ends))
    return numbers == sorted(numbers) and all(low <= number <= high for number in numbers)


def checked(read: Callable[[Any], ValueT]) -> Callable[[click.Context, click.Parameter, Any], ValueT | None]:
    """Return a callback of an option that turns a ValueError into a usage error."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> ValueT | None:
        if value is None:
            return None
        try:
            return read(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}.") from error

    return callback
