"""What is known only after the decision helps training and can reach no served answer, by any way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedworks.contracts.features import (
    ONBOARDING,
    STUDENT_ITEM_SERVICE,
    STUDENT_SERVICE,
    TEACHER_ITEM_SERVICE,
    TEACHER_SERVICE,
)
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.features.lookup import lookup
from feedworks.features.push import stream_table
from feedworks.features.reading import open_source
from feedworks.features.repo import apply, open_store
from feedworks.features.schema import ServiceSchema, training_only_columns

from .conftest import ROOT
from .rows import START, table_of

COMPONENTS = ROOT / "components"
NAMES = (ONBOARDING.name, ONBOARDING.name.upper(), *sorted(training_only_columns()))
# The module that defines the names, the one in which the teacher's inputs are made beside the student's, and
# the one that looks for leaks.
MAY_NAME = {"feedworks.contracts.features", "feedworks.ocarm.data", "feedworks.ocarm.student_audit"}
# Modules in which onboarding tables are made or read; a service must not even be able to import them.
TRAINING = {"samples", "tables", "time_audit", "steps", "stages", "chain", "component"}


@pytest.mark.parametrize("form", ["repo", "use_redis"])
def test_no_online_store_holds_it(form: str, request: pytest.FixtureRequest) -> None:
    """Neither a write past `materialize` nor a read by name or by the teacher's service comes through."""
    folder = request.getfixturevalue(form)
    apply(folder)
    frame = table_of(ONBOARDING, [1], [START]).to_pandas()
    asked = [{"user_id": 1, "item_id": 2}]
    with open_store(folder) as store:
        with pytest.raises(ConfigError, match="onboarding is for training only"):
            store.write_to_online_store(ONBOARDING.name, df=frame)
        with pytest.raises(ConfigError, match="onboarding is for training only"):
            store.get_online_features(features=["onboarding:content_item"], entity_rows=asked)
        for name in (TEACHER_SERVICE, TEACHER_ITEM_SERVICE):
            service = store.get_feature_service(name)
            with pytest.raises(ConfigError, match="onboarding is for training only"):
                store.get_online_features(features=service, entity_rows=asked)
        for name in (STUDENT_SERVICE, STUDENT_ITEM_SERVICE):
            student = store.get_feature_service(name)
            answer = store.get_online_features(features=student, entity_rows=asked).to_dict()
            assert len(answer) > len(asked[0])
            assert not set(answer) & training_only_columns()


@pytest.mark.parametrize("url", ["packed+redis://127.0.0.1:1/0", "feast:///nowhere"])
@pytest.mark.parametrize("service", [TEACHER_SERVICE, TEACHER_ITEM_SERVICE])
def test_no_source_of_a_service_opens_for_it(url: str, service: str) -> None:
    schema = ServiceSchema.of(service)
    with pytest.raises(ModelError, match=r"onboarding.content_item"):
        open_source(url, schema)
    with pytest.raises(ModelError, match=r"onboarding.content_item"):
        list(lookup(url, schema, [[1]], _now()))


def test_it_takes_no_pushes() -> None:
    with pytest.raises(DataError, match="'onboarding' takes no pushes"):
        stream_table(ONBOARDING.name)


def imported(module: str) -> Iterator[str]:
    """Names of our own modules that a module imports, also inside functions."""
    path = COMPONENTS / Path(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("feedworks."):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def reachable(module: str) -> set[str]:
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        path = COMPONENTS / Path(*name.split("."))
        there = path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()
        if name.startswith("feedworks.") and there and name not in found:
            found.add(name)
            waiting += imported(name)
    return found


def test_no_module_that_a_service_can_reach_names_it() -> None:
    modules = reachable("feedworks.ocarm.service")
    assert {"feedworks.ocarm.predictor", "feedworks.features.reading"} <= modules
    assert not modules & {f"feedworks.ocarm.{name}" for name in TRAINING}
    for module in sorted(modules - MAY_NAME):
        path = COMPONENTS / Path(*module.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        text = file.read_text()
        assert not [name for name in NAMES if name in text], module


def test_the_search_sees_a_module_that_names_it() -> None:
    assert "feedworks.ocarm.tables" in reachable("feedworks.ocarm.tables")
    assert "feedworks.contracts.features" in reachable("feedworks.ocarm.tables")
    assert "ONBOARDING" in (COMPONENTS / "feedworks" / "ocarm" / "tables.py").read_text()


def _now():
    from datetime import UTC, datetime

    return datetime.now(UTC)
