"""The feature repository: `feast apply` from a clean clone, its forms, and what its definitions must say."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from feedworks.contracts.features import (
    FEATURE_TABLES,
    LIVE_STREAM,
    ONBOARDING,
    SERVICES,
    STUDENT_SERVICE,
    TEACHER_ITEM_SERVICE,
    TEACHER_SERVICE,
)
from feedworks.contracts.fields import entity_of, feast_type
from feedworks.errors import ConfigError, StoreError
from feedworks.features import packed_store
from feedworks.features import repo as repository
from feedworks.features.definitions import define
from feedworks.features.repo import apply, offline_of, open_store, read_definitions, store_file, tables_folder
from feedworks.features.schema import TYPES, training_only_columns

from .conftest import POSTGRES_ADDRESS, ROOT, free_port


def test_feast_itself_applies_a_clean_clone(repo: Path) -> None:
    """The command of its documentation, in a process of its own."""
    paths = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    feast = subprocess.run(
        [str(Path(sys.executable).parent / "feast"), "apply"],
        cwd=repo,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert feast.returncode == 0, feast.stderr
    with open_store(repo) as store:
        assert {service.name for service in store.list_feature_services()} == set(SERVICES)


def test_apply_says_what_changed_and_a_second_time_changes_nothing(repo: Path) -> None:
    said = apply(repo)
    assert [f"Created feature view {table.name}" in said for table in FEATURE_TABLES] == [True] * 7
    assert apply(repo) == "No changes to registry"
    file = repo / "items.py"
    file.write_text(file.read_text() + "author_profile.owner = 'nobody'\n")
    assert apply(repo) == "Updated feature view author_profile: owner"
    assert apply(repo) == "No changes to registry"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("author_profile")))
    assert apply(repo) == "Deleted feature view author_profile"


def test_apply_leaves_the_process_as_it_was(repo: Path) -> None:
    before = (Path.cwd(), list(sys.path), sys.dont_write_bytecode, set(sys.modules))
    apply(repo)
    after = (Path.cwd(), list(sys.path), sys.dont_write_bytecode)
    assert after == before[:3]
    assert not {"entities", "sources", "services", "users"} & set(sys.modules)


def test_the_repository_defines_what_the_contracts_say(repo: Path) -> None:
    """Its files name every table and service once; none is left out and nothing else stands there."""
    found, expected = read_definitions(repo), define(tables_folder(repo))
    assert {view.name: view for view in found.feature_views} == expected.views
    assert {service.name: service for service in found.feature_services} == expected.services
    entities = {entity.name: entity for entity in found.entities if not entity.name.startswith("__")}
    assert entities == {entity.name: entity for entity in expected.entities.values()}
    assert set(entities) == {"user", "author", "live_room", "item"}


def test_every_view_says_how_long_whose_and_what(repo: Path) -> None:
    for view in read_definitions(repo).feature_views:
        assert view.ttl.total_seconds() > 0
        assert view.owner
        assert len(view.description) > 20
        assert set(view.tags) == {"domain", "use"}
        assert all(field.description for field in view.features)
        assert (view.online, view.tags["use"] == "serving") == ((view.name != "onboarding"),) * 2


def test_live_rooms_are_pushed_and_kept(repo: Path) -> None:
    from feast import FeatureView

    views = {view.name: view for view in read_definitions(repo).feature_views}
    live = views.pop("live_stream")
    assert type(live) is FeatureView  # a StreamFeatureView is experimental
    assert live.stream_source.name == "live_stream_push"
    assert live.batch_source.path == str(LIVE_STREAM.path(tables_folder(repo)))
    assert not [view.name for view in views.values() if view.stream_source]


def test_only_the_teacher_may_read_what_is_known_too_late(repo: Path) -> None:
    """By view, by column and by source; a service that may be served has no way to it."""
    definitions = read_definitions(repo)
    sources = {view.name: view.batch_source.name for view in definitions.feature_views}
    assert sources[ONBOARDING.name] not in [v for k, v in sources.items() if k != ONBOARDING.name]
    readers = set()
    for service in definitions.feature_services:
        projections = service.feature_view_projections
        columns = {feature.name for each in projections for feature in each.features}
        if ONBOARDING.name in {each.name for each in projections} or columns & training_only_columns():
            readers.add(service.name)
            assert service.tags["use"] == "training-only"
    assert readers == {TEACHER_SERVICE, TEACHER_ITEM_SERVICE}
    assert training_only_columns()


def test_a_column_of_the_content_in_another_view_would_be_seen(repo: Path) -> None:
    elsewhere = {c.name for table in FEATURE_TABLES if not table.training_only for c in table.columns}
    assert not elsewhere & training_only_columns()
    assert ONBOARDING not in SERVICES[STUDENT_SERVICE]


def test_what_is_known_too_late_is_not_materialised(applied: Path) -> None:
    with open_store(applied) as store, pytest.raises(ValueError, match="not configured to be served online"):
        store.materialize(*_day(), feature_views=[ONBOARDING.name])


def test_the_store_has_no_table_for_what_is_known_too_late(applied: Path) -> None:
    with closing(sqlite3.connect(applied / "data" / "online.db")) as online:
        tables = {name for (name,) in online.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {f"feedworks_{table.name}" for table in FEATURE_TABLES if not table.training_only}


def test_feast_runs_every_python_file_that_is_not_ignored(repo: Path) -> None:
    """A script below data/ is not run; without .feastignore it would be."""
    script = repo / "data" / "generate.py"
    script.parent.mkdir()
    script.write_text("raise RuntimeError('was run')")
    read_definitions(repo)
    (repo / ".feastignore").unlink()
    with pytest.raises(RuntimeError, match="was run"):
        read_definitions(repo)


def test_an_entity_without_a_type_would_earn_a_warning() -> None:
    from feast import Entity

    with pytest.warns(DeprecationWarning, match="value_type will be mandatory"):
        Entity(name="user")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert entity_of("user_id").value_type.name == "INT64"
    with pytest.raises(ConfigError, match="'shop_id'; known: user_id"):
        entity_of("shop_id")


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_the_store_has_one_of_feast(name: str) -> None:
    text = str(feast_type(TYPES[name]))
    assert text.startswith("Array(") == name.startswith("list<")


def test_a_type_that_feast_lacks_is_told() -> None:
    import pyarrow as pa

    with pytest.raises(ConfigError, match="uint8"):
        feast_type(pa.uint8())


def test_an_unknown_feature_is_an_error_not_a_null(applied: Path) -> None:
    from feast.errors import FeatureViewNotFoundException

    with open_store(applied) as store:
        with pytest.raises(KeyError, match="shoe_size"):
            store.get_online_features(features=["user_profile:shoe_size"], entity_rows=[{"user_id": 1}])
        with pytest.raises(FeatureViewNotFoundException):
            store.get_online_features(features=["user_shoes:size"], entity_rows=[{"user_id": 1}])


def test_one_variable_chooses_the_form(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_file(repo) == repo / "feature_store.yaml"
    assert offline_of(repo) == "duckdb"
    monkeypatch.chdir(repo.parent)
    # As seen from the process, from the repository, and absolute.
    for name in ("feature_repo/spark.yaml", "spark.yaml", str(repo / "spark.yaml")):
        monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", name)
        assert store_file(repo) == repo / "spark.yaml"
        assert offline_of(repo) == "spark"
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "snow.yaml")
    with pytest.raises(ConfigError, match=r"snow.yaml: no such file; the repository has .*redis.yaml"):
        store_file(repo)


def test_a_store_without_sources_here_is_told(repo: Path) -> None:
    text = (repo / "feature_store.yaml").read_text()
    (repo / "feature_store.yaml").write_text(text.replace("type: duckdb", "type: dask"))
    with pytest.raises(ConfigError, match=r"'dask'; sources.py knows duckdb and spark"):
        offline_of(repo)


def test_a_damaged_store_file_is_told(repo: Path) -> None:
    (repo / "feature_store.yaml").write_text("project: 1\n")
    with pytest.raises(ConfigError, match=r"feature_store.yaml is no store file"), open_store(repo):
        pass


@pytest.mark.parametrize("text", [b"project: [\n", b"\xff\xfe", b"just text"])
def test_a_store_file_that_is_no_yaml_is_told(repo: Path, text: bytes) -> None:
    (repo / "feature_store.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=r"feature_store.yaml(: offline_store.type None| is no store file)"):
        offline_of(repo)


def test_the_repository_is_found_from_where_people_stand(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repo.parent)
    assert repository.repository() == repo
    monkeypatch.chdir(repo)
    assert repository.repository() == repo
    monkeypatch.chdir("/")
    assert repository.repository() == ROOT / "feature_repo"
    with pytest.raises(ConfigError, match="is no feature repository"):
        repository.repository(Path("/tmp"))


def test_redis_and_postgres_by_one_variable(use_redis: Path) -> None:
    assert "Created feature service ocarm_student_v1" in apply(use_redis)
    assert apply(use_redis) == "No changes to registry"
    with open_store(use_redis) as store:
        assert store.config.registry.registry_type == "sql"
        assert {view.name for view in store.list_feature_views()} == {table.name for table in FEATURE_TABLES}
    assert not (use_redis / "data").exists()


def test_a_registry_that_is_down_is_told(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (repo / "redis.yaml").read_text().replace(POSTGRES_ADDRESS, f"127.0.0.1:{free_port()}/feast")
    (repo / "down.yaml").write_text(text)
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "down.yaml")
    with pytest.raises(StoreError, match=r"registry of down.yaml does not answer \(.*refused"):
        apply(repo)


@pytest.mark.parametrize("said", ["refused", "Timeout connecting", "Timeout reading"])
def test_an_online_store_that_is_down_is_told(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(packed_store, "CONNECT_WITHIN_S", 0.3)
    monkeypatch.setattr(packed_store, "ANSWER_WITHIN_S", 0.3)
    text = (ROOT / "manifests" / "base" / "features" / "feature_store.yaml").read_text()
    (repo / "down.yaml").write_text(text.replace("/features/registry.db", str(tmp_path / "registry.db")))
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "down.yaml")
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        if said == "Timeout reading":
            # The system takes the connections, and nobody ever answers: a server that hangs.
            listener.listen()
        elif said == "Timeout connecting":
            # A full queue of connections that nobody accepts: the system drops the next ones in silence.
            listener.listen(0)
            for each in (first, second):
                each.setblocking(False)
                each.connect_ex(listener.getsockname())
        monkeypatch.setenv("FEAST_REDIS", f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(StoreError, match=rf"online store of down.yaml does not answer \(.*{said}"):
            apply(repo)


def _day():
    from datetime import UTC, datetime

    return datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)
