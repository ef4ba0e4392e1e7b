"""Typed configuration: frozen dataclasses, `key=value` overrides and a JSON form that round-trips.

A config is a frozen, keyword-only dataclass whose fields are bool, int, float, str, None-able forms of
these, tuples of them, or nested configs. Named setups are functions that return one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from feedworks.errors import ConfigError

ConfigT = TypeVar("ConfigT")


def with_overrides(config: ConfigT, overrides: Sequence[str]) -> ConfigT:
    """Apply `key=value` strings to a config; dotted keys reach nested configs.

    Args:
        config: a frozen dataclass instance.
        overrides: strings such as `"generator.lr=0.001"`; tuples are written `4,8,16`.

    Raises:
        ConfigError: the key is unknown (the message lists the known ones) or the value does not parse.
    """
    known = flatten(config)
    tree: dict[str, Any] = {}
    for text in overrides:
        key, separator, value = text.partition("=")
        key = key.strip()
        if not separator:
            raise ConfigError(f"override {text!r} is not of the form key=value")
        if key not in known:
            raise ConfigError(f"unknown setting {key!r}; known settings: {', '.join(known)}")
        node = tree
        *path, leaf = key.split(".")
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value.strip()
    return _merge(config, tree, prefix="")


def from_preset(
    presets: Mapping[str, Callable[[], ConfigT]], preset: str, overrides: Sequence[str] = ()
) -> ConfigT:
    """Return a named setup with `key=value` strings applied.

    Args:
        presets: name -> function that returns the setup.
        preset: one of the names.
        overrides: see `with_overrides`.

    Raises:
        ConfigError: unknown preset or setting (the message lists the known ones), or a bad value.
    """
    if preset not in presets:
        raise ConfigError(f"unknown preset {preset!r}; known presets: {', '.join(presets)}")
    return with_overrides(presets[preset](), overrides)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a config as `{dotted key: value}` in the order of declaration."""
    leaves: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            leaves.update(flatten(value, f"{prefix}{field.name}."))
        else:
            leaves[prefix + field.name] = value
    return leaves


def to_json(config: Any) -> str:
    """Serialise a config; `from_json` gives an equal one back."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True)


def from_json(config_type: type[ConfigT], text: str) -> ConfigT:
    """Read what `to_json` wrote.

    Raises:
        ConfigError: a field is missing, unknown or of the wrong type.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{config_type.__name__} is not JSON ({error})") from None
    return _from_mapping(config_type, values, prefix="")


def at_least(minimum: float, section: str, **values: float) -> None:
    """Refuse numbers below `minimum`; `section` is the dotted path to the settings, "" at the top.

    Raises:
        ConfigError: it names the setting, its value and the bound.
    """
    for name, value in values.items():
        if value < minimum:
            raise ConfigError(f"{_key(section, name)}={value}: expected at least {minimum}")


def between(low: float, high: float, section: str, **values: float) -> None:
    """Refuse numbers outside `[low, high]`.

    Raises:
        ConfigError: it names the setting, its value and the bounds.
    """
    for name, value in values.items():
        if not low <= value <= high:
            raise ConfigError(f"{_key(section, name)}={value}: expected {low} to {high}")


def positive(section: str, **values: float) -> None:
    """Refuse 0 and negative numbers.

    Raises:
        ConfigError: it names the setting and its value.
    """
    for name, value in values.items():
        if value <= 0:
            raise ConfigError(f"{_key(section, name)}={value}: expected more than 0")


def _key(section: str, name: str) -> str:
    return f"{section}.{name}" if section else name


def _merge(config: ConfigT, tree: Mapping[str, Any], prefix: str) -> ConfigT:
    hints = typing.get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            changes[name] = _merge(getattr(config, name), value, f"{prefix}{name}.")
        else:
            changes[name] = _parse(value, hints[name], prefix + name)
    try:
        return dataclasses.replace(config, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _from_mapping(config_type: type[ConfigT], values: Any, prefix: str) -> ConfigT:
    hints = typing.get_type_hints(config_type)
    if not isinstance(values, Mapping):
        name = prefix.rstrip(".") or config_type.__name__
        raise ConfigError(f"setting {name}: expected a group of settings")
    unknown = sorted(set(values) - set(hints))
    missing = sorted(set(hints) - set(values))
    if unknown or missing:
        raise ConfigError(f"{config_type.__name__}: unknown fields {unknown}, missing fields {missing}")
    arguments: dict[str, Any] = {}
    for name, hint in hints.items():
        value = values[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[name] = _from_mapping(hint, value, f"{prefix}{name}.")
        else:
            arguments[name] = _checked(value, hint, prefix + name)
    return config_type(**arguments)


def _checked(value: Any, hint: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _checked(value, _without_none(arguments), key)
    if origin is tuple and isinstance(value, list):
        return tuple(_checked(part, arguments[0], key) for part in value)
    if origin is typing.Literal:
        return _choice(value, arguments, key)
    kinds = (int, float) if hint is float else hint
    # To Python true is the number 1.
    if origin is not None or not isinstance(value, kinds) or isinstance(value, bool) != (hint is bool):
        raise ConfigError(f"setting {key}={value!r}: expected {_name(hint)}")
    return value


def _without_none(arguments: tuple[Any, ...]) -> Any:
    return next(argument for argument in arguments if argument is not type(None))


def _parse(text: str, hint: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    try:
        if origin in (typing.Union, types.UnionType):
            if text.lower() == "none" and type(None) in arguments:
                return None
            return _parse(text, _without_none(arguments), key)
        if origin is tuple:
            return tuple(_parse(part.strip(), arguments[0], key) for part in text.split(",") if part.strip())
        if origin is typing.Literal:
            return _choice(text, arguments, key)
        if hint is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return _bounded(hint(text))
    except (ValueError, KeyError):
        raise ConfigError(f"setting {key}={text!r}: expected {_name(hint)}") from None


def _bounded(value: Any) -> Any:
    # A comparison with nan is False, so that a range check lets it pass; tensors hold no larger integers.
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _name(hint: Any) -> str:
    names = {float: "a finite number", int: "a whole number of 64 bits", bool: "true or false"}
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def _choice(text: Any, choices: tuple[Any, ...], key: str) -> Any:
    if text not in choices:
        raise ConfigError(f"setting {key}={text!r}: expected one of {', '.join(map(str, choices))}")
    return text
