"""OCARM (arXiv 2604.25839): the service without its framework: from users to answers, whatever happens.

Features come with the request or from a store. Every answer says what it rests on:

    source      `model`, or `base_rate`: the mean of the training labels, where nothing is known of a user
    degraded    whether the model saw less than it could have
    reasons     `<view>:missing` no row; `<view>:stale` older than its ttl; `<view>:ahead` newer than the bid,
                also of features that came with the request, by their times;
                `<view>:incomplete` without a value that its contract demands; `store:slow` not within the
                deadline; `store:down` it failed; `store:off` it failed before and is not asked for a second;
                `store:wrong` it answered something else; `store:none` there is none; `model:failed` no finite
                answer; `model:slow` none in time
    views       state and age of each view

Shape legend: N users, H horizons.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from feedworks.errors import ConfigError
from feedworks.ocarm.counting import counters
from feedworks.ocarm.known import (
    FRESH,
    GIVEN,
    STATES,
    UNREAD,
    Columns,
    Known,
    join,
    put_given,
    put_rows,
    unknown,
)
from feedworks.ocarm.predictor import Predictor
from feedworks.ocarm.reads import Reads
from feedworks.ocarm.request import User
from feedworks.serving.batching import MicroBatcher, OverloadedError
from feedworks.serving.guard import Guard, UnavailableError

if TYPE_CHECKING:
    from feedworks.features.reading import FeatureSource

MAX_BATCH = 32
# A request of 256 users takes a tenth of a second; who waits longer waits for a model that is overrun.
MODEL_WITHIN_S = 5.0
DEADLINE_S = 0.05
PAUSE_S = 1.0
# Which column of a request says the id of an entity; an ad without an item asks for one that no store has.
ASKED_BY = {"user_id": "user_id", "item_id": "ad_item"}

Ints = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

_log = logging.getLogger(__name__)


class ViewState(NamedTuple):
    """One view of one user; the age is that of the row at bid time, None where there is no row."""

    state: str
    age_s: float | None


class Answer(NamedTuple):
    """The answer about one user, see the top of this file."""

    user_id: int
    probability: dict[str, float]
    source: Literal["model", "base_rate"]
    degraded: bool
    reasons: list[str]
    views: dict[str, ViewState]


class Answering:
    """Answers by one predictor and, where there is one, one feature store; on one event loop.

    Args:
        predictor: the packaged student.
        source: of features; None where all come with the request.
        deadline_s: seconds that the store has.
        pause_s: seconds between two tries of a store that is gone.
        in_thread: see `MicroBatcher`.

    Raises:
        ConfigError: the model reads views of an entity that no request names.
    """

    def __init__(
        self,
        predictor: Predictor,
        source: FeatureSource | None = None,
        *,
        deadline_s: float = DEADLINE_S,
        pause_s: float = PAUSE_S,
        in_thread: bool = True,
    ) -> None:
        self.predictor = predictor
        self.counters = counters()
        self._entities = list(dict.fromkeys(view.entity for view in predictor.schema.views))
        if foreign := sorted(set(self._entities) - ASKED_BY.keys()):
            raise ConfigError(
                f"service {predictor.schema.service} reads by {foreign[0]}, no request tells it"
            )
        # A source tries again by itself, it knows which failures are worth it.
        guard = Guard("the feature store", deadline_s=deadline_s, retries=0, pause_s=pause_s)
        self._reads = None if source is None else Reads(source, guard)
        self._batcher: MicroBatcher[Columns, Probabilities] = MicroBatcher(
            self._predict, max_batch=MAX_BATCH, observe=self.counters.batch_size.observe, in_thread=in_thread
        )

    async def answer(self, users: Sequence[User], now_us: int | None = None) -> list[Answer]:
        """Answer about users, in their order.

        Args:
            users: checked by `feedworks.ocarm.request.query_type`.
            now_us: stands for the time of this call, in microseconds since 1970 UTC.

        Raises:
            OverloadedError: too many requests are waiting.
        """
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        bid_us_N = np.array([now_us if u.bid_time is None else u.bid_time for u in users], np.int64)
        request = _of_request(users, bid_us_N)
        known, store = await self._known(users, request)
        usable_N = known.usable
        p_NH = np.tile(self.predictor.base_rate_H, (len(users), 1))
        good_N, model = usable_N, ""
        if usable_N.any():
            # All rows go, so that no column has to be cut; what nothing is known of costs the model little.
            answered_NH, model = await self._asked({**request, **known.columns})
            good_N = usable_N & np.isfinite(answered_NH).all(axis=1)
            p_NH[good_N] = answered_NH[good_N]
        found = []
        for place, user in enumerate(users):
            views, reasons = self._views(known, place)
            if store and user.features is None:
                reasons.append(store)
            if usable_N[place] and not good_N[place]:
                reasons.append(model or "model:failed")
            found.append(self._answer(user.user_id, p_NH[place], bool(good_N[place]), reasons, views))
        return found

    async def close(self) -> None:
        """End the model's thread and the store's connections."""
        self._batcher.close()
        if self._reads is not None:
            await self._reads.close()

    async def _known(self, users: Sequence[User], request: dict[str, Ints]) -> tuple[Known, str]:
        """Gather the features, and say what was wrong with the store, "" if nothing."""
        bid_us_N = request["bid_time"]
        at_N = np.array([place for place, user in enumerate(users) if user.features is None], np.int64)
        if not len(at_N):
            return self._given(users, bid_us_N), ""
        if self._reads is None:
            return self._given(users, bid_us_N), "store:none"
        keys = {entity: request[ASKED_BY[entity]][at_N].tolist() for entity in self._entities}
        start_s = time.perf_counter()
        try:
            rows = await self._reads.read(keys, int(bid_us_N[at_N].min()))
        except UnavailableError as error:
            self.counters.reads.labels(error.why).inc()
            return self._given(users, bid_us_N), f"store:{error.why}"
        known = self._given(users, bid_us_N)
        try:
            put_rows(known, self.predictor.schema, at_N, rows, bid_us_N[at_N])
        except Exception:  # whatever a store may have answered instead of rows
            _log.exception("the feature store answered something else than rows")
            self.counters.reads.labels("wrong").inc()
            return self._given(users, bid_us_N), "store:wrong"
        self.counters.reads.labels("ok").inc()
        self.counters.read_s.observe(time.perf_counter() - start_s)
        return known, ""

    def _given(self, users: Sequence[User], bid_us_N: Ints) -> Known:
        """The features that came with the request."""
        known = unknown(self.predictor.schema, len(users))
        for place, user in enumerate(users):
            if user.features is not None:
                put_given(known, self.predictor.schema, place, dict(user.features), int(bid_us_N[place]))
        return known

    async def _asked(self, columns: Columns) -> tuple[Probabilities, str]:
        """`(N, H)` from the model and "", or NaN and why there is no answer."""
        nothing = np.full((len(columns["user_id"]), len(self.predictor.base_rate_H)), np.nan)
        try:
            async with asyncio.timeout(MODEL_WITHIN_S):
                return await self._batcher.submit(columns), ""
        except OverloadedError:
            raise
        except TimeoutError:
            return nothing, "model:slow"
        except Exception:  # whatever a model may raise, a bid must not wait for it
            _log.exception("the model broke down; the answer is the base rate")
            return nothing, "model:failed"

    def _predict(self, parts: Sequence[Columns]) -> list[Probabilities]:
        counts = [len(part["user_id"]) for part in parts]
        p_BH = self.predictor.predict(join(parts))
        return np.split(p_BH, np.cumsum(counts)[:-1])

    def _views(self, known: Known, place: int) -> tuple[dict[str, ViewState], list[str]]:
        """The views of one user, and what is wrong with them."""
        views, reasons = {}, []
        for name, state_N in known.state.items():
            state, age_s = int(state_N[place]), float(known.age_s[name][place])
            views[name] = ViewState(STATES[state], None if np.isnan(age_s) else age_s)
            if state not in (FRESH, GIVEN, UNREAD) and name not in self.predictor.never_seen:
                reasons.append(f"{name}:{STATES[state]}")
            if views[name].age_s is not None:
                self.counters.age_s.labels(name).observe(age_s)
        return views, reasons

    def _answer(
        self,
        user_id: int,
        p_H: Probabilities,
        by_model: bool,
        reasons: list[str],
        views: dict[str, ViewState],
    ) -> Answer:
        for reason in reasons:
            self.counters.degraded.labels(reason).inc()
        probability = dict(zip(self.predictor.horizons, p_H.tolist(), strict=True))
        source: Literal["model", "base_rate"] = "model" if by_model else "base_rate"
        return Answer(user_id, probability, source, bool(reasons), reasons, views)


def _of_request(users: Sequence[User], bid_us_N: Ints) -> dict[str, Ints]:
    """The columns of `SAMPLES` that a request itself tells."""
    return {
        "user_id": np.array([user.user_id for user in users], np.int64),
        "bid_time": bid_us_N,
        "surface": np.array([user.surface for user in users], np.int64),
        "ad_item": np.array([-1 if user.ad_item is None else user.ad_item for user in users], np.int64),
    }
