"""`feedworks features`: what a newcomer types, in order, and what each command says when it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from feedworks.cli import cli
from feedworks.contracts.features import AD_CONTEXT, USER_PROFILE, FeatureTable
from feedworks.contracts.files import write_table
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.contracts.tables import EVENT_TIME
from feedworks.errors import ConfigError, DataError, FeedworksError, ModelError

ROOT = Path(__file__).resolve().parents[3]
DAY_US = 24 * 3600 * 1_000_000
START = datetime(2024, 5, 1, tzinfo=UTC)

Features = Callable[..., Result]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone's repository beside which the commands are typed, with two users in two tables."""
    for name in ("FEAST_FS_YAML_FILE_PATH", "FEEDWORKS_FEATURES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    ignore = shutil.ignore_patterns("data", "__pycache__")
    folder = shutil.copytree(ROOT / "feature_repo", tmp_path / "feature_repo", ignore=ignore)
    write(USER_PROFILE, folder / "data" / "tables", activity=[3, 4])
    lists = [column.name for column in AD_CONTEXT.features if column.is_vector]
    write(AD_CONTEXT, folder / "data" / "tables", **{name: [[1, 2], []] for name in lists})
    return folder


def write(table: FeatureTable, folder: Path, **given: list[object]) -> None:
    """Users 1 and 2: the second became known a day after the first."""
    start_us = int(START.timestamp()) * 1_000_000
    columns = {"user_id": [1, 2], "event_time": pa.array([start_us, start_us + DAY_US]).cast(EVENT_TIME)}
    for column in table.features:
        empty = [[], []] if column.is_vector else [1, 1]
        columns[column.name] = pa.array(given.get(column.name, empty), column.type)
    write_table(table, pa.table(columns), folder)


@pytest.fixture
def features() -> Features:
    """Run `feedworks features WORDS`; what it raises, main() prints as one line."""

    def run(*words: str, raises: type[FeedworksError] | None = None) -> Result:
        result = CliRunner().invoke(cli, ["features", *words])
        if raises is not None:
            assert isinstance(result.exception, raises), result.exception
        else:
            assert result.exit_code == 0, (result.output, result.exception)
        return result

    return run


def test_from_a_clean_clone_to_an_answer(repo: Path, features: Features) -> None:
    assert "user_profile: 2 rows keep their contract" in features("validate").output
    said = features("apply").output
    assert "Created feature service ocarm_student_v1" in said
    assert f"applied {repo} with feature_store.yaml" in said
    views = ["--view", "user_profile", "--view", "ad_context"]
    said = features("materialize", "2024-05-01", "2024-05-02T00:00:00Z", *views).output
    assert "user_profile: 2 rows in " in said
    assert "rows/s" in said
    at = (START + timedelta(days=366)).isoformat()
    found = features("get", "ocarm_student_v1", "1", "2", "3", "--at", at).output.splitlines()
    first, second, third = (json.loads(line)["views"] for line in found if line.startswith("{"))
    # A profile lives for 365 days.
    assert first["user_profile"] == {"status": "stale", "age_s": 366 * 86_400.0}
    assert second["user_profile"]["values"]["activity"] == 4
    assert second["interaction_aggregates"] == {"status": "missing"}
    assert second["ad_context"]["status"] == "stale"
    assert third["user_profile"] == {"status": "missing"}


def test_event_logs_become_tables_that_keep_their_contracts(repo: Path, features: Features) -> None:
    write_synthetic_retention(repo.parent / "log", num_users=150, num_items=300)
    said = features("build", "--data", str(repo.parent / "log")).output
    assert f"wrote {repo / 'data' / 'tables'}" in said
    assert "interaction_aggregates: " in features("validate").output
    features("build", "--data", str(repo.parent / "log"), "--set", "samples.idle=3", raises=ConfigError)


def test_lists_and_nulls_are_printed(repo: Path, features: Features) -> None:
    features("apply")
    features("materialize", "2024-05-01", "2024-05-02", "--view", "ad_context")
    found = features("get", "ocarm_student_v1", "1", "--at", "2024-05-03").output.splitlines()
    values = json.loads(next(line for line in found if line.startswith("{")))["views"]["ad_context"]["values"]
    assert values["return_surface"] == [1, 2]


def test_a_service_of_two_entities_is_read_by_both(repo: Path, features: Features) -> None:
    features("apply")
    features("materialize", "2024-05-01", "2024-05-02", "--view", "ad_context")
    found = features("get", "ocarm_student_v2", "1:7", "--at", "2024-05-03").output.splitlines()
    row = json.loads(next(line for line in found if line.startswith("{")))
    assert (row["user_id"], row["item_id"]) == (1, 7)
    assert (row["views"]["ad_context"]["status"], row["views"]["item_profile"]["status"]) == (
        "fresh",
        "missing",
    )
    error = features("get", "ocarm_student_v2", "1", raises=ConfigError).exception
    assert "key 1: ocarm_student_v2 reads by user_id:item_id" in str(error)


def test_apply_takes_the_folder_of_the_tables(repo: Path, features: Features, tmp_path: Path) -> None:
    tables = (repo / "data" / "tables").rename(tmp_path / "elsewhere")
    features("apply", "--tables", str(tables))
    assert "user_profile: 2 rows" in features("materialize", "2024-05-01", "2024-05-02", *VIEW).output
    assert "user_profile: 2 rows" in features("validate", "--tables", str(tables)).output


VIEW = ("--view", "user_profile")


def test_a_poisoned_table_is_told(repo: Path, features: Features) -> None:
    features("apply")
    write(USER_PROFILE, repo / "data" / "tables", activity=[3, 99])
    for words in (("validate",), ("materialize", "2024-05-01", "2024-05-02", *VIEW)):
        error = features(*words, raises=DataError).exception
        assert "user_profile, column activity: 1 are outside [0, 15], first row 1 (user_id=2" in str(error)


def test_a_service_that_knows_too_much_is_not_read(repo: Path, features: Features) -> None:
    error = features("get", "ocarm_teacher_v1", "1", raises=ModelError).exception
    assert "onboarding.content_item" in str(error)
    assert "onboarding" not in features("--help").output


def test_a_definition_that_leaks_is_told(repo: Path, features: Features) -> None:
    services = repo / "services.py"
    services.write_text(services.read_text() + "ocarm_teacher_v1.tags['use'] = 'serving'\n")
    error = features("validate", raises=ConfigError).exception
    assert "service ocarm_teacher_v1 may be served and reads onboarding" in str(error)
    users = repo / "users.py"
    users.write_text(users.read_text() + "ad_context.owner = ''\n")
    error = features("validate", raises=ConfigError).exception
    assert "view ad_context has no owner" in str(error)


def test_onboarding_that_would_be_served_is_told(repo: Path, features: Features) -> None:
    file = repo / "onboarding.py"
    file.write_text(file.read_text() + "onboarding.online = True\n")
    assert "view onboarding is served" in str(features("validate", raises=ConfigError).exception)


def test_what_is_not_there_is_named_and_is_no_error(repo: Path, features: Features) -> None:
    said = features("validate").output
    assert "7 views and 5 services are sound" in said
    assert "not in " in said
    assert "live_stream" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("materialize", "yesterday", "2024-05-02"), "'yesterday' is no time; ISO 8601"),
        (("materialize", "2024-05-01"), "Missing argument 'END'"),
        (("get", "ocarm_student_v1"), "Missing argument 'KEYS...'"),
        (("get", "ocarm_student_v1", "me"), "'me' is no id"),
        (
            ("get", "ocarm_student_v1", "7", "12345678901234567890"),
            "12345678901234567890 is not in the range",
        ),
    ],
)
def test_wrong_words_are_told(words: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(cli, ["features", *words])
    assert result.exit_code == 2
    assert told in result.output


@pytest.mark.parametrize("command", ["build", "apply", "materialize", "get", "validate"])
def test_help_says_what_it_does(command: str, features: Features) -> None:
    said = features(command, "--help").output
    assert "--repo" in said
    assert len(said.splitlines()) > 8
