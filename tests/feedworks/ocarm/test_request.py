"""What the service is asked: names, types and ranges are checked before anything reads them."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from feedworks.contracts.features import ONBOARDING, STUDENT_SERVICE
from feedworks.features.schema import ServiceSchema
from feedworks.ocarm.request import MAX_LIST, MAX_USERS, query_type

SCHEMA = ServiceSchema.of(STUDENT_SERVICE)
USER = {"user_id": 7, "surface": 3}
GOOD = {
    "num_events_1d": 3,
    "mean_engagement_7d": 0.5,
    "tenure_days": 10,
    "history_item": [1, 2],
    "history_category": [0, 0],
    "history_surface": [1, 1],
    "history_engagement": [0.5, 1],
    "history_time": [10, 20],
    "aggregated_time": 20,
    "num_returns": None,
}


def read(**user):
    return query_type(SCHEMA).model_validate_json(json.dumps({"users": [{**USER, **user}]})).users[0]


def test_a_user_with_and_without_features():
    assert read().features is None
    assert (read().bid_time, read().ad_item) == (None, None)
    features = dict(read(features=GOOD).features)
    assert {name: value for name, value in features.items() if value is not None} == {
        name: value for name, value in GOOD.items() if value is not None
    }
    assert set(features) == set(SCHEMA.columns)


def test_the_type_is_made_once():
    assert query_type(SCHEMA) is query_type(ServiceSchema.of(STUDENT_SERVICE))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"user_id": -1}, "greater than or equal to 0"),
        ({"user_id": 2**63}, "less than or equal"),
        ({"user_id": 1.5}, "integer"),
        ({"user_id": True}, "integer"),
        ({"surface": 16}, "less than 16"),
        ({"surface": None}, "integer"),
        ({"ad_item": "7"}, "integer"),
        ({"bid_time": "2026-01-01"}, "integer"),
        ({"bid_time": 10**17}, "less than or equal"),
        ({"when": 1}, "Extra inputs"),
        ({"features": []}, "object"),
        ({"features": {"unknown": 1}}, "Extra inputs"),
        ({"features": {"num_events_1d": 0.5}}, "integer"),
        ({"features": {"num_events_1d": -1}}, "greater than or equal to 0"),
        ({"features": {"activity": 16}}, "less than or equal to 15"),
        ({"features": {"mean_engagement_7d": 1.5}}, "less than or equal to 1"),
        ({"features": {"tenure_days": float("nan")}}, "finite"),
        ({"features": {"history_item": 3}}, "list"),
        ({"features": {"history_item": [1, None]}}, "integer"),
        ({"features": {"history_item": [-1]}}, "greater than or equal to 0"),
        ({"features": {"history_surface": [16]}}, "less than or equal to 15"),
        ({"features": {"history_engagement": [1.5]}}, "less than or equal to 1"),
        ({"features": {"return_idle_h": [1e7]}}, "less than or equal to 1000000"),
        ({"features": {"history_item": [1] * (MAX_LIST + 1)}}, f"at most {MAX_LIST}"),
        ({"features": GOOD | {"history_time": [10]}}, "history_item 2.*history_time 1"),
        ({"features": {"history_item": [1, 2], "history_time": []}}, "history_item 2.*history_time 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_is_named(wrong, said):
    with pytest.raises(ValidationError, match=said):
        read(**wrong)


@pytest.mark.parametrize("column", [column.name for column in ONBOARDING.features])
def test_onboarding_content_is_refused_with_the_reason(column):
    with pytest.raises(ValidationError, match=f"{column}: known only after the decision"):
        read(features=GOOD | {column: [1]})


@pytest.mark.parametrize("users", [[], [USER] * (MAX_USERS + 1), {}, None])
def test_the_number_of_users_is_bounded(users):
    with pytest.raises(ValidationError):
        query_type(SCHEMA).model_validate_json(json.dumps({"users": users}))
