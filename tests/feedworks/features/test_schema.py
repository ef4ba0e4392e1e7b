"""features.json: what is read from the store, who may read it, and which rows of it are of today's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from feedworks.contracts.features import (
    FEATURE_TABLES,
    ONBOARDING,
    SERVICES,
    STUDENT_SERVICE,
    TEACHER_SERVICE,
    USER_PROFILE,
)
from feedworks.errors import ConfigError, DataError, ModelError
from feedworks.features.schema import (
    FEATURES_FILE,
    TYPES,
    FeatureSchema,
    ServiceSchema,
    ViewSchema,
    training_only_columns,
    type_name,
)


def view(name: str, *columns: str, type_: str = "int64", training_only: bool = False) -> ViewSchema:
    features = tuple(FeatureSchema(name=column, type=type_) for column in columns)
    return ViewSchema(name=name, entity="user_id", ttl_s=60, training_only=training_only, features=features)


@pytest.mark.parametrize("table", FEATURE_TABLES, ids=lambda table: table.name)
def test_a_view_holds_the_columns_of_its_contract(table) -> None:
    schema = ViewSchema.of(table)
    names = [feature.name for feature in schema.features]
    assert [table.entity, "event_time", *names] == table.schema.names
    assert [feature.arrow_type for feature in schema.features] == [c.type for c in table.features]
    assert (schema.entity, schema.ttl_s) == (table.entity, table.ttl_s)


@pytest.mark.parametrize("service", SERVICES)
def test_a_schema_comes_back_from_its_file(service: str, tmp_path: Path) -> None:
    schema = ServiceSchema.of(service)
    path = schema.write(tmp_path)
    assert path == tmp_path / FEATURES_FILE
    assert ServiceSchema.read(tmp_path) == ServiceSchema.read(path) == schema


@pytest.mark.parametrize("type_", TYPES)
def test_a_type_has_one_name(type_: str) -> None:
    assert type_name(TYPES[type_]) == type_
    assert FeatureSchema(name="x", type=type_).is_list == type_.startswith("list<")


def test_a_type_that_no_store_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="decimal128"):
        type_name(pa.decimal128(9))
    with pytest.raises(ValidationError, match="'int128' is none of"):
        FeatureSchema(name="x", type="int128")


def test_the_digest_is_that_of_the_layout() -> None:
    one = view("profile", "a", "b")
    assert one.digest == view("profile", "a", "b").digest
    assert len(one.digest) == 16
    others = [view("profile", "b", "a"), view("profile", "a"), view("p", "a", "b")]
    others.append(view("profile", "a", "b", type_="int32"))
    assert len({one.digest, *(other.digest for other in others)}) == 5
    # How long a row may be used is no part of how it is laid out.
    assert one.model_copy(update={"ttl_s": 1}).digest == one.digest


def test_the_digest_of_a_service_follows_its_views() -> None:
    digests = {ServiceSchema(service="s", views=(view("v", *names),)).digest for names in ("ab", "ba", "a")}
    assert len(digests) == 3


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="service s: a stands twice"):
        ServiceSchema(service="s", views=(view("v", "a"), view("w", "a")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"service": ""}, "service"),
        ({"views": []}, "views"),
        ({"extra": 1}, "extra"),
        (
            {"views": [{"name": "v", "entity": "e", "ttl_s": 0, "training_only": False, "features": []}]},
            "ttl",
        ),
        (
            {
                "views": [
                    {"name": "v", "entity": "e", "ttl_s": 10**18, "training_only": False, "features": []}
                ]
            },
            "ttl",
        ),
    ],
)
def test_a_damaged_file_is_told(change: dict[str, object], reason: str, tmp_path: Path) -> None:
    path = ServiceSchema.of(STUDENT_SERVICE).write(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=f"features.json: .*{reason}"):
        ServiceSchema.read(path)


def test_a_missing_file_and_an_unknown_service_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        ServiceSchema.read(tmp_path)
    with pytest.raises(ConfigError, match=f"'nobody'; known: .*{STUDENT_SERVICE}"):
        ServiceSchema.of("nobody")


def test_what_the_student_reads_may_be_served() -> None:
    schema = ServiceSchema.of(STUDENT_SERVICE)
    assert schema.require_servable() is schema
    assert not set(schema.columns) & training_only_columns()


def test_what_the_teacher_reads_may_not_be_served() -> None:
    with pytest.raises(ModelError, match=r"ocarm_teacher_v1 reads onboarding.content_item, .*content_time"):
        ServiceSchema.of(TEACHER_SERVICE).require_servable()


def test_a_hand_that_edits_the_file_changes_nothing() -> None:
    """The flag taken away, the view renamed, the column moved into an innocent view: all are seen."""
    honest = ViewSchema.of(ONBOARDING)
    edited = [
        honest.model_copy(update={"training_only": False}),
        honest.model_copy(update={"training_only": False, "name": "extras"}),
        view(ONBOARDING.name, "innocent"),
        view(USER_PROFILE.name, "activity", "content_item"),
        view(USER_PROFILE.name, "activity", "lt7"),
        view(USER_PROFILE.name, "label_start"),
        view("mine", "a", training_only=True),
    ]
    for each in edited:
        with pytest.raises(ModelError, match="only after the decision"):
            ServiceSchema(service=STUDENT_SERVICE, views=(each,)).require_servable()
