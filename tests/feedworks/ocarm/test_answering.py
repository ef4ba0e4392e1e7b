"""Answers whatever the store does: with all features, with some, with none, and always saying which."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from feedworks.ocarm import answering
from feedworks.ocarm.answering import Answer, Answering
from feedworks.ocarm.predictor import Predictor
from feedworks.ocarm.request import User, query_type

from . import served, toy

BID_US = toy.START_US + 40 * toy.DAY_US
ROW_US = BID_US - 3600 * 1_000_000
USERS = range(100, 106)  # 101 has no row in any view
COLUMNS = toy.columns(len(USERS), toy.catalogue())
ROWS = served.rows_of(COLUMNS, USERS)
PROFILE, AGGREGATES, AD = (view.name for view in served.SCHEMA.views)
TTL_S = {view.name: view.ttl_s for view in served.SCHEMA.views}


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(served.write_model_package(tmp_path_factory.mktemp("answering") / "model"))


@pytest.fixture
def source() -> served.MemorySource:
    return served.MemorySource(ROWS, ROW_US)


def user(user_id: int, **more: Any) -> User:
    body = {"users": [{"user_id": user_id, "surface": 3, "ad_item": 5, "bid_time": BID_US, **more}]}
    return query_type(served.SCHEMA).model_validate(body).users[0]


def run(
    predictor: Predictor,
    source: served.MemorySource | None,
    asking: Callable[[Answering], Coroutine[Any, Any, Any]],
    **options: Any,
) -> Any:
    async def whole() -> Any:
        answering = Answering(predictor, source, **options)
        try:
            return await asking(answering)
        finally:
            await answering.close()

    return asyncio.run(whole())


def ask(predictor: Predictor, source: served.MemorySource | None, *users: User) -> list[Answer]:
    return run(predictor, source, lambda answering: answering.answer(users))


def expected(
    predictor: Predictor, user_id: int, without: Sequence[str] = (), columns: Sequence[str] = ()
) -> dict[str, float]:
    """What the model says with the rows of a user, but for some views and columns."""
    row = {view: values for view, values in ROWS[user_id].items() if view not in without}
    features = {
        each.name: [None if each.name in columns else row.get(view.name, {}).get(each.name)]
        for view in served.SCHEMA.views
        for each in view.features
    }
    request = {"user_id": [user_id], "bid_time": np.array([BID_US]), "surface": [3], "ad_item": [5]}
    return dict(zip(predictor.horizons, predictor.predict(request | features)[0].tolist(), strict=True))


def without(*views: str) -> dict[int, dict[str, dict[str, Any]]]:
    return {key: {view: row for view, row in of.items() if view not in views} for key, of in ROWS.items()}


def test_fresh_features_of_the_store(predictor, source):
    for answer in ask(predictor, source, user(100), user(103), user(102)):
        assert (answer.source, answer.degraded, answer.reasons) == ("model", False, [])
        assert answer.probability == pytest.approx(expected(predictor, answer.user_id), abs=1e-6)
        assert answer.views == dict.fromkeys(TTL_S, ("fresh", 3600.0))
    assert source.reads == 1


def test_features_of_the_request_answer_the_same_and_the_store_is_not_asked(predictor, source):
    (answer,) = ask(predictor, source, user(999, features=served.as_json(ROWS[104])))
    assert answer.probability == pytest.approx(expected(predictor, 104), abs=1e-6)
    assert (answer.source, answer.degraded, source.reads) == ("model", False, 0)
    assert set(answer.views.values()) == {("given", None)}


@pytest.mark.parametrize("user_id", [101, 12345])
def test_nothing_known_is_the_base_rate(predictor, source, user_id):
    (answer,) = ask(predictor, source, user(user_id))
    assert answer.probability == dict(zip(predictor.horizons, predictor.base_rate_H.tolist(), strict=True))
    assert (answer.source, answer.degraded) == ("base_rate", True)
    assert answer.reasons == [f"{view}:missing" for view in TTL_S]


@pytest.mark.parametrize("gone", [(PROFILE,), (AGGREGATES,), (AD,), (AGGREGATES, AD)])
def test_a_missing_view_is_told_and_the_model_answers_with_the_rest(predictor, gone):
    rows = {
        key: {view: row for view, row in views.items() if view not in gone} for key, views in ROWS.items()
    }
    for given in (False, True):
        more = {"features": served.as_json(rows[102])} if given else {}
        (answer,) = ask(predictor, served.MemorySource(rows, ROW_US), user(102, **more))
        assert (answer.source, answer.degraded) == ("model", True)
        assert answer.reasons == [f"{view}:missing" for view in gone]
        assert answer.probability == pytest.approx(expected(predictor, 102, gone), abs=1e-6)
        assert all(answer.views[view] == ("missing", None) for view in gone)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("column", ["num_events_7d", "return_surface", "history_item"])
def test_a_missing_feature_is_told_and_read_as_missing(predictor, given, column):
    view = AD if column == "return_surface" else AGGREGATES
    gone = ["return_surface", "return_idle_h", "return_time"] if view == AD else [column]
    if column == "history_item":
        gone = [name for name in ROWS[102][view] if name.startswith("history_")]
    row = {name: value for name, value in ROWS[102][view].items() if name not in gone}
    rows = {102: ROWS[102] | {view: row}}
    more = {"features": served.as_json(rows[102])} if given else {}
    (answer,) = ask(predictor, served.MemorySource(rows, ROW_US), user(102, **more))
    assert (answer.source, answer.degraded, answer.reasons) == ("model", True, [f"{view}:incomplete"])
    assert answer.views[view] == ("incomplete", None if given else 3600.0)
    assert answer.probability == pytest.approx(expected(predictor, 102, columns=gone), abs=1e-6)


def test_what_may_be_null_is_no_loss_and_no_zero(predictor):
    row = {name: value for name, value in ROWS[102][PROFILE].items() if name != "tenure_days"}
    (answer,) = ask(predictor, served.MemorySource({102: ROWS[102] | {PROFILE: row}}, ROW_US), user(102))
    assert answer.reasons == []
    assert answer.probability == pytest.approx(expected(predictor, 102, columns=["tenure_days"]), abs=1e-6)


def test_each_bid_has_its_own_time(predictor, source):
    """Three users in one request: one as of now, one when ad context had run out, one before all rows."""
    late_us = ROW_US + (TTL_S[AD] + 1) * 1_000_000
    early_us = ROW_US - 120 * 1_000_000
    fresh, late, early = ask(
        predictor, source, user(100), user(102, bid_time=late_us), user(103, bid_time=early_us)
    )
    assert not fresh.degraded
    assert late.reasons == [f"{AGGREGATES}:stale", f"{AD}:stale"]
    assert late.views[AD] == ("stale", TTL_S[AD] + 1.0)
    assert (late.source, late.views[PROFILE].state) == ("model", "fresh")
    assert early.reasons == [f"{view}:ahead" for view in TTL_S]
    assert early.source == "base_rate"


@pytest.mark.parametrize(
    ("column", "view"),
    [
        ("profile_time", PROFILE),
        ("aggregated_time", AGGREGATES),
        ("history_time", AGGREGATES),
        ("return_time", AD),
    ],
)
def test_given_features_from_after_the_bid_are_not_used(predictor, column, view):
    """As rows of the store: clocks may differ by a minute, not by more."""
    features = served.as_json(ROWS[104])
    for late_us, is_ahead in ((60_000_000, False), (60_000_001, True)):
        time_us = BID_US + late_us
        late = [*features[column][:-1], time_us] if isinstance(features[column], list) else time_us
        (answer,) = ask(predictor, None, user(1, features=features | {column: late}))
        assert answer.source == "model"
        if is_ahead:
            assert answer.reasons == [f"{view}:ahead"]
            assert answer.views[view] == ("ahead", pytest.approx(-60.000001))
            assert answer.probability == pytest.approx(expected(predictor, 104, [view]), abs=1e-6)
        else:
            assert (answer.degraded, answer.views[view].state) == (False, "given")


def test_only_features_from_after_the_bid_are_nothing_known(predictor):
    features = served.as_json({AGGREGATES: ROWS[104][AGGREGATES]})
    early_us = ROWS[104][AGGREGATES]["aggregated_time"] - 61_000_000
    (answer,) = ask(predictor, None, user(1, features=features, bid_time=int(early_us)))
    assert (answer.source, answer.views[AGGREGATES].state) == ("base_rate", "ahead")


def test_clocks_may_differ_a_little(predictor, source):
    (answer,) = ask(predictor, source, user(100, bid_time=ROW_US - 1_000_000))
    assert not answer.degraded


def test_without_a_time_the_bid_is_now(predictor):
    source = served.MemorySource(ROWS, time.time_ns() // 1000 - 5_000_000)
    (answer,) = ask(predictor, source, user(100, bid_time=None))
    assert not answer.degraded
    assert answer.views[PROFILE].age_s == pytest.approx(5, abs=2)


def test_a_slow_store_costs_the_deadline_and_no_more(predictor, source):
    source.wait_s = 10.0

    async def timed(answering: Answering) -> tuple[list[Answer], float]:
        await answering.answer([user(1, features=served.as_json(ROWS[100]))])
        start_s = time.perf_counter()
        return await answering.answer([user(100), user(7, features=served.as_json(ROWS[104]))]), (
            time.perf_counter() - start_s
        )

    (stored, given), seconds = run(predictor, source, timed, deadline_s=0.05)
    assert 0.05 <= seconds < 0.3
    assert (stored.source, stored.degraded, stored.reasons) == ("base_rate", True, ["store:slow"])
    assert {view.state for view in stored.views.values()} == {"unread"}
    assert (given.source, given.degraded) == ("model", False)  # a neighbour with features does not notice
    assert given.probability == pytest.approx(expected(predictor, 104), abs=1e-6)


def test_a_dead_store_costs_nothing_and_is_asked_again_after_a_pause(predictor, source):
    source.error = ConnectionError("refused")

    async def told(answering: Answering) -> list[list[str]]:
        found = [(await answering.answer([user(100)]))[0].reasons for _ in range(7)]
        start_s = time.perf_counter()
        for _ in range(50):
            await answering.answer([user(100)])
        assert time.perf_counter() - start_s < 0.5
        source.error = None
        await asyncio.sleep(0.25)
        return [*found, (await answering.answer([user(100)]))[0].reasons]

    assert run(predictor, source, told, pause_s=0.2) == [["store:down"]] * 5 + [["store:off"]] * 2 + [[]]
    assert source.reads == 6
    assert source.closed


@pytest.mark.parametrize("error", [KeyError("history_item"), ValueError("bytes"), RuntimeError()])
def test_whatever_a_store_raises_is_an_answer(predictor, source, error):
    source.error = error
    (answer,) = ask(predictor, source, user(100))
    assert answer.reasons == ["store:down"]


def test_a_store_that_answers_nonsense_is_told(predictor, source, caplog):
    """Rows without a column that the model reads."""
    read = source.read

    async def nonsense(keys, now_us):
        rows = await read(keys, now_us)
        del rows.columns["history_time"]
        return rows

    source.read = nonsense
    (answer,) = ask(predictor, source, user(100))
    assert (answer.source, answer.reasons) == ("base_rate", ["store:wrong"])
    assert "history_time" in caplog.text


def test_no_store_is_told(predictor):
    (answer,) = ask(predictor, None, user(100))
    assert (answer.source, answer.reasons) == ("base_rate", ["store:none"])


def test_a_model_that_breaks_down_is_told_and_logged(predictor, monkeypatch, caplog):
    def broken(columns: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(predictor, "predict", broken)
    (answer,) = ask(predictor, None, user(1, features=served.as_json(ROWS[100])))
    assert (answer.source, answer.degraded, answer.reasons) == ("base_rate", True, ["model:failed"])
    assert "out of memory" in caplog.text


def test_a_model_that_is_overrun_is_told(predictor, monkeypatch):
    monkeypatch.setattr(answering, "MODEL_WITHIN_S", 0.05)
    predict = predictor.predict

    def slow(columns: Any) -> Any:
        time.sleep(0.2)
        return predict(columns)

    monkeypatch.setattr(predictor, "predict", slow)
    (answer,) = ask(predictor, None, user(1, features=served.as_json(ROWS[100])))
    assert (answer.source, answer.reasons) == ("base_rate", ["model:slow"])


def test_an_answer_that_is_no_number_is_told(predictor, monkeypatch):
    predict = predictor.predict
    monkeypatch.setattr(predictor, "predict", lambda columns: predict(columns) * [np.nan, 1.0])
    (answer,) = ask(predictor, None, user(1, features=served.as_json(ROWS[100])))
    assert (answer.source, answer.reasons) == ("base_rate", ["model:failed"])
    assert all(np.isfinite(p) for p in answer.probability.values())


def test_a_view_that_training_never_had_is_no_loss(tmp_path, source):
    predictor = Predictor.load(served.write_model_package(tmp_path / "model", drop=[PROFILE]))
    (answer,) = ask(predictor, served.MemorySource(without(PROFILE), ROW_US), user(100))
    assert (answer.degraded, answer.reasons) == (False, [])
    assert answer.views[PROFILE] == ("missing", None)


def test_requests_at_once_get_their_own_answers(predictor, source):
    async def many(answering: Answering) -> list[list[Answer]]:
        requests = [[user(100 + (place + step) % 6) for step in range(1 + place % 3)] for place in range(40)]
        return await asyncio.gather(*(answering.answer(users) for users in requests))

    for place, answers in enumerate(run(predictor, source, many, deadline_s=5.0)):
        assert [answer.user_id for answer in answers] == [
            100 + (place + step) % 6 for step in range(1 + place % 3)
        ]
        for answer in answers:
            if answer.user_id != 101:
                assert answer.probability == pytest.approx(expected(predictor, answer.user_id), abs=1e-5)
