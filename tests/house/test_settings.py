"""A setting that nothing reads is a lie: every field of every config is read outside its own module."""

from __future__ import annotations

import ast

import pytest

from .source import ROOT, library_modules, parse


def config_fields(module: ast.Module) -> list[tuple[str, str]]:
    """(class, field) of the frozen dataclasses in a module whose name ends in Config."""
    return [
        (node.name, item.target.id)
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config")
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


def names_read(module: ast.Module) -> set[str]:
    """Attributes that the module reads, but for those in __post_init__, which only checks them."""
    checks = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
    ]
    ignored = {id(child) for check in checks for child in ast.walk(check)}
    return {
        node.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in ignored
    }


FIELDS = [
    (str(path.relative_to(ROOT)), owner, field)
    for path in library_modules()
    for owner, field in config_fields(parse(path))
]


@pytest.mark.skipif(not FIELDS, reason="no config class yet")
def test_every_setting_is_read() -> None:
    read: set[str] = set()
    for path in library_modules():
        read |= names_read(parse(path))
    assert not [f"{path}: {owner}.{field}" for path, owner, field in FIELDS if field not in read]


def test_an_unread_setting_is_seen() -> None:
    module = ast.parse(
        "class ToyConfig:\n    used: int\n    idle: int\n"
        "    def __post_init__(self):\n        assert self.idle\n"
        "def f(c):\n    return c.used\n"
    )
    assert {field for _, field in config_fields(module)} - names_read(module) == {"idle"}
