"""Seeded event logs of users who leave and come back, with a planted intent, for the demo and the tests.

Every return of a user has an intent, a hidden point z of a few dimensions, and the user stays with the
probability `sigmoid(w . z + c + segment)`: the next day (LT1), or at least some day soon (LT7), each with a w
and c of its own. Of z one can see

* *after* the return, in the items of the content window: each item is a point of the same space, its vector
  is that point turned and stretched into more dimensions, and the user takes those near z. Every further day
  z drifts a little. This is easy to read: a model needs a few numbers.
* *before* the return, in what the user looked at before leaving, the trail: items of categories that are
  drawn with `softmax(A f(z))`, where f bends z through many waves. Each event says little, and what its
  category says has to be learned for each of them. The surface of the return is a weak and simple view.

So a model that knows how z is put together learns the trail from fewer rows than one that has only the yes
and no of the label: this is what distillation can win. What the trail does not say about z it cannot win,
however it is trained: that part of the gap to a model that sees the content is lost for everybody. The trail
is made so long that this part is small, on purpose, and so hard to read that a few thousand labels do not
suffice for it: real logs promise neither. `noise` sets how much one event of the trail says.

`planted_retention` gives both ends for each return: the probability given z, and given everything that can be
seen before the return. At the default size the first has AUC .742 (LT1) and .762 (LT7), the second .735 and
.756 with low and middle noise, .725 and .746 with high noise; no model can do better but by luck.

How the waves happen to lie to w is drawn with the seed, and decides how much of the gap a student can win:
of 3,000 users' logs with middle noise OCARM wins about 60 % at seed 0, 55 % at seed 2 and 35 % at seed 100.

Nothing else says anything: items of the trail have random vectors, engagement, follows, fans, friends and
tenure are drawn apart from all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.retention import CATALOGUE, EVENTS, PROFILES
from feedworks.contracts.tables import EVENT_TIME
from feedworks.errors import ConfigError

Noise = Literal["low", "middle", "high"]
# How strongly a category of the trail depends on the intent.
TRAIL_GAIN: dict[str, float] = {"low": 1.4, "middle": 1.0, "high": 0.6}
INTENT = 3
WAVES = 16
WAVE_LENGTH = 2.0
NUM_TRAIL_CATEGORIES = 128
NUM_CONTENT_CATEGORIES = 32
NUM_SURFACES = 8
SURFACE_GAIN = 0.5
NUM_SEGMENTS = 12
VECTOR_WIDTH = 16
TRAIL, CONTENT = 20, 8  # events of a session
CONTENT_NOISE = 0.6
DRIFT = 0.3
LABEL_GAIN = 1.0
SEGMENT_GAIN = 0.2
BIAS = (-0.4, -0.6)
MORE_DAYS = 2
MIN_ITEMS = 300
START_S = 1_704_067_200  # 2024-01-01 00:00 UTC
STAGGER_DAYS = 14
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
DRAWS = 4096

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class Planted(NamedTuple):
    """What was planted in each return, `(N,)` each unless said; `content_start_us_N` is when it happened.

    `p_1_N` and `p_7_N` are the probabilities of any event in the label window of one and of seven days given
    the intent; `seen_1_N` and `seen_7_N` given all that can be seen before the return (by weighting 4,096
    draws of the intent, so up to a small error of simulation). `intent_NK` is the intent itself.
    """

    user_id_N: IntArray
    content_start_us_N: IntArray
    intent_NK: FloatArray
    p_1_N: FloatArray
    p_7_N: FloatArray
    seen_1_N: FloatArray
    seen_7_N: FloatArray


class _World(NamedTuple):
    gain: float
    label_HK: FloatArray
    wave_KW: FloatArray
    phase_W: FloatArray
    trail_WC: FloatArray
    surface_KS: FloatArray
    segment_G: FloatArray
    trail_item_T: IntArray
    trail_category_T: IntArray
    content_item_I: IntArray
    point_IK: FloatArray
    vectors_NV: FloatArray
    category_N: IntArray


class _Return(NamedTuple):
    """One step of all users: their sessions from a return to the next one."""

    start_us_U: IntArray
    intent_UK: FloatArray
    surface_U: IntArray
    trail_UT: IntArray
    num_days_U: IntArray
    sessions: pa.Table


def write_synthetic_retention(
    out_dir: Path,
    *,
    num_users: int = 1_500,
    num_items: int = 1_000,
    num_days: int = 75,
    noise: Noise = "middle",
    seed: int = 0,
) -> Path:
    """Writes a retention data folder of invented users; equal arguments give equal bytes.

    Args:
        out_dir: Folder to write into; made if it does not exist.
        num_users: Users; each has about one return in 12 days.
        num_items: Items, at least 300; half of them belong to the trail.
        num_days: Length of the log, at least 30.
        noise: How little one event of the trail says about the intent.
        seed: Any non-negative integer.

    Raises:
        ConfigError: An argument is out of its range.
    """
    _require(num_users, num_items, num_days, noise, seed)
    world = _world(num_items, noise, seed)
    segment_U = np.random.default_rng([seed, 1]).integers(1, NUM_SEGMENTS + 1, num_users)
    events = pa.concat_tables([r.sessions for r in _returns(world, segment_U, num_days, seed)])
    user_E, time_E = events["user_id"].to_numpy(), events["time"].to_numpy()
    order = np.lexsort((time_E, user_E))
    events = events.take(pa.array(order))
    events = events.append_column("event_time", events["time"].cast(EVENT_TIME)).drop_columns(["time"])
    write_table(EVENTS, events, out_dir)
    write_table(CATALOGUE, _catalogue(world), out_dir)
    write_table(PROFILES, _profiles(segment_U, np.random.default_rng([seed, 2])), out_dir)
    return out_dir


def planted_retention(
    *,
    num_users: int = 1_500,
    num_items: int = 1_000,
    num_days: int = 75,
    noise: Noise = "middle",
    seed: int = 0,
) -> Planted:
    """What was planted in the returns of `write_synthetic_retention` with the same arguments."""
    _require(num_users, num_items, num_days, noise, seed)
    world = _world(num_items, noise, seed)
    segment_U = np.random.default_rng([seed, 1]).integers(1, NUM_SEGMENTS + 1, num_users)
    end_us = START_S * SECOND_US + num_days * DAY_US
    steps = list(_returns(world, segment_U, num_days, seed))
    found = []
    for before, now in itertools.pairwise(steps):
        users = np.flatnonzero(now.start_us_U < end_us)
        exact_H = _any_return(world, now.intent_UK[users], world.segment_G[segment_U[users]])
        seen_H = _seen(world, before, now, segment_U, users, seed)
        found.append((users + 1, now.start_us_U[users], now.intent_UK[users], *exact_H, *seen_H))
    return Planted(*(np.concatenate(columns) for columns in zip(*found, strict=True)))


def _require(num_users: int, num_items: int, num_days: int, noise: str, seed: int) -> None:
    for name, value, least in (
        ("num_users", num_users, 1),
        ("num_items", num_items, MIN_ITEMS),
        ("num_days", num_days, 30),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"synthetic retention data: {name} is {value}, it must be at least {least}")
    if noise not in get_args(Noise):
        raise ConfigError(f"synthetic retention data: noise is {noise!r}, known are low, middle, high")


def _world(num_items: int, noise: str, seed: int) -> _World:
    rng = np.random.default_rng([seed, 0])
    ids = rng.permutation(num_items) + 1  # so that an id says nothing about its item
    trail_item_T, content_item_I = ids[: num_items // 2], ids[num_items // 2 :]
    trail_category_T = 1 + np.arange(len(trail_item_T)) % NUM_TRAIL_CATEGORIES
    point_IK = 1.3 * rng.standard_normal((len(content_item_I), INTENT))
    centre_CK = 1.3 * rng.standard_normal((NUM_CONTENT_CATEGORIES, INTENT))
    turned_KV = rng.standard_normal((INTENT, VECTOR_WIDTH)) / np.sqrt(INTENT)
    vectors_NV = rng.standard_normal((num_items + 1, VECTOR_WIDTH))
    vectors_NV[content_item_I] *= 0.2
    vectors_NV[content_item_I] += point_IK @ turned_KV
    category_N = np.zeros(num_items + 1, np.int64)
    category_N[trail_item_T] = trail_category_T
    nearest_I = _nearest(point_IK, centre_CK)
    category_N[content_item_I] = 1 + NUM_TRAIL_CATEGORIES + nearest_I
    label_HK = rng.standard_normal((2, INTENT))
    label_HK[1] += label_HK[0]
    return _World(
        gain=TRAIL_GAIN[noise],
        label_HK=LABEL_GAIN * label_HK / np.linalg.norm(label_HK, axis=1, keepdims=True),
        wave_KW=WAVE_LENGTH * rng.standard_normal((INTENT, WAVES)) / np.sqrt(INTENT),
        phase_W=rng.uniform(0, 2 * np.pi, WAVES),
        trail_WC=rng.standard_normal((WAVES, NUM_TRAIL_CATEGORIES)) * np.sqrt(2 * INTENT / WAVES),
        surface_KS=SURFACE_GAIN * rng.standard_normal((INTENT, NUM_SURFACES)),
        segment_G=SEGMENT_GAIN * rng.standard_normal(NUM_SEGMENTS + 1),
        trail_item_T=trail_item_T,
        trail_category_T=trail_category_T,
        content_item_I=content_item_I,
        point_IK=point_IK,
        vectors_NV=vectors_NV,
        category_N=category_N,
    )


def _returns(world: _World, segment_U: IntArray, num_days: int, seed: int) -> Iterator[_Return]:
    """All users' first visits, then their returns in turn, until the log ends for the last of them."""
    rng = np.random.default_rng([seed, 3])
    num_users = len(segment_U)
    end_us = START_S * SECOND_US + num_days * DAY_US
    start_us_U = START_S * SECOND_US + rng.integers(0, STAGGER_DAYS * DAY_US, num_users)
    intent_UK = rng.standard_normal((num_users, INTENT))
    while (start_us_U < end_us).any():
        p_UH = _stays(world, intent_UK, world.segment_G[segment_U])
        stays_UH = rng.random(p_UH.shape) < p_UH
        num_days_U = 1 + np.where(stays_UH[:, 0], rng.integers(1, MORE_DAYS + 1, num_users), 0)
        surface_U = _draw(_softmax(intent_UK @ world.surface_KS), rng, 1)[:, 0]
        next_UK = rng.standard_normal((num_users, INTENT))
        trail_UT = _draw(_trail(world, next_UK), rng, TRAIL * (1 + MORE_DAYS))
        now = _Return(start_us_U, intent_UK, surface_U, trail_UT, num_days_U, pa.table({}))
        yield now._replace(sessions=_sessions(world, now, end_us, rng))
        # 3 to 5 days after the last session: an idle gap of more than 2 days, yet within the week.
        gap_U = np.where(stays_UH[:, 1], rng.integers(3, 6, num_users), 10 + rng.geometric(0.2, num_users))
        start_us_U = start_us_U + (num_days_U - 1 + gap_U) * DAY_US + _minutes(rng, num_users, 0, 480)
        intent_UK = next_UK


def _stays(world: _World, intent_NK: FloatArray, segment_N: FloatArray) -> FloatArray:
    """Probability of staying for the next day, and of coming back soon, `(N, 2)`."""
    logit_NH = intent_NK @ world.label_HK.T + np.array(BIAS) + segment_N[:, None]
    return np.asarray(1 / (1 + np.exp(-logit_NH)))


def _any_return(world: _World, intent_NK: FloatArray, segment_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Probability of any event in the label windows of one and of seven days."""
    p_NH = _stays(world, intent_NK, segment_N)
    return p_NH[:, 0], 1 - (1 - p_NH[:, 0]) * (1 - p_NH[:, 1])


def _trail(world: _World, intent_NK: FloatArray) -> FloatArray:
    """Probability of each category of the trail, `(N, C)`."""
    wave_NW = np.sin(intent_NK @ world.wave_KW + world.phase_W)
    return _softmax(world.gain * wave_NW @ world.trail_WC)


def _seen(
    world: _World, before: _Return, now: _Return, segment_U: IntArray, users: IntArray, seed: int
) -> tuple[FloatArray, FloatArray]:
    """The probabilities given the trail, the surface and the segment: a mean over weighted draws of z."""
    drawn_DK = np.random.default_rng([seed, 4]).standard_normal((DRAWS, INTENT))
    log_trail_DC = np.log(_trail(world, drawn_DK))
    log_surface_DS = np.log(_softmax(drawn_DK @ world.surface_KS))
    count_UC = np.zeros((len(users), NUM_TRAIL_CATEGORIES))
    length_U = TRAIL * before.num_days_U[users]
    held_UT = np.arange(before.trail_UT.shape[1]) < length_U[:, None]
    row_UT = np.broadcast_to(np.arange(len(users))[:, None], held_UT.shape)
    np.add.at(count_UC, (row_UT[held_UT], before.trail_UT[users][held_UT]), 1)
    log_UD = count_UC @ log_trail_DC.T + log_surface_DS.T[now.surface_U[users]]
    weight_UD = _softmax(log_UD)
    seen = np.empty((2, len(users)))
    for segment in np.unique(segment_U[users]):
        of = segment_U[users] == segment
        exact = _any_return(world, drawn_DK, np.full(DRAWS, world.segment_G[segment]))
        seen[:, of] = [weight_UD[of] @ p_D for p_D in exact]
    return seen[0], seen[1]


def _sessions(world: _World, now: _Return, end_us: int, rng: np.random.Generator) -> pa.Table:
    """The events of a return and of the days after it, until the user leaves."""
    parts = []
    drift_UK = now.intent_UK
    for day in range(1 + MORE_DAYS):
        late_us_U = _minutes(rng, len(now.start_us_U), 30, 360) if day else 0
        start_us_U = now.start_us_U + day * DAY_US + late_us_U
        drawn = _session(world, drift_UK, now.trail_UT[:, day * TRAIL : (day + 1) * TRAIL], rng)
        users = np.flatnonzero((day < now.num_days_U) & (start_us_U < end_us))
        item_UE, engagement_UE, offset_us_UE = (column[users] for column in drawn)
        surface_UE = np.zeros_like(item_UE)
        surface_UE[:, :CONTENT] = now.surface_U[users, None]
        parts.append(
            pa.table(
                {
                    "user_id": np.repeat(users + 1, CONTENT + TRAIL),
                    "item_id": item_UE.ravel(),
                    "time": (start_us_U[users, None] + offset_us_UE).ravel(),
                    "surface": surface_UE.ravel(),
                    "engagement": engagement_UE.ravel(),
                }
            )
        )
        step_UK = rng.standard_normal(drift_UK.shape)
        drift_UK = np.sqrt(1 - DRIFT**2) * drift_UK + DRIFT * step_UK
    return pa.concat_tables(parts)


def _session(
    world: _World, intent_UK: FloatArray, trail_UT: IntArray, rng: np.random.Generator
) -> tuple[IntArray, npt.NDArray[np.float32], IntArray]:
    """Items, engagement and microseconds since the start of a session: first the content, then the trail."""
    num_users = len(intent_UK)
    wanted = np.repeat(intent_UK, CONTENT, axis=0)
    wanted = wanted + CONTENT_NOISE * rng.standard_normal(wanted.shape)
    content_UE = world.content_item_I[_nearest(wanted, world.point_IK)].reshape(num_users, CONTENT)
    per_category = len(world.trail_item_T) // NUM_TRAIL_CATEGORIES
    place_UT = trail_UT + NUM_TRAIL_CATEGORIES * rng.integers(0, per_category, trail_UT.shape)
    item_UE = np.concatenate([content_UE, world.trail_item_T[place_UT]], axis=1)
    engagement_UE = rng.beta(2, 2, item_UE.shape).astype(np.float32)
    gap_us_UE = _minutes(rng, item_UE.size, 1, 6).reshape(item_UE.shape)
    return item_UE, engagement_UE, np.cumsum(gap_us_UE, axis=1) - gap_us_UE[:, :1]


def _catalogue(world: _World) -> pa.Table:
    num_items = len(world.category_N) - 1
    vectors = world.vectors_NV[1:].astype(np.float32)
    return pa.table(
        {
            "item_id": np.arange(1, num_items + 1),
            "author_id": 1 + np.arange(num_items) % max(1, num_items // 10),
            "category": world.category_N[1:],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), VECTOR_WIDTH),
        }
    )


def _profiles(segment_U: IntArray, rng: np.random.Generator) -> pa.Table:
    num_users = len(segment_U)
    codes = {name: rng.integers(0, 8, num_users) for name in ("activity", "follows", "fans", "friends")}
    return pa.table(
        {
            "user_id": np.arange(1, num_users + 1),
            **codes,
            "segment": segment_U,
            "tenure_days": rng.integers(1, 2_000, num_users).astype(np.float32),
        }
    )


def _minutes(rng: np.random.Generator, count: int, low: int, high: int) -> IntArray:
    """Microseconds, uniform between two numbers of minutes."""
    return rng.integers(low * 60, high * 60, count) * SECOND_US


def _nearest(point_NK: FloatArray, of_IK: FloatArray) -> IntArray:
    """The row of `of_IK` closest to each point."""
    return np.asarray((point_NK @ of_IK.T - (of_IK**2).sum(1) / 2).argmax(axis=1))


def _softmax(logit_NC: FloatArray) -> FloatArray:
    raised_NC = np.exp(logit_NC - logit_NC.max(axis=1, keepdims=True))
    return np.asarray(raised_NC / raised_NC.sum(axis=1, keepdims=True))


def _draw(p_NC: FloatArray, rng: np.random.Generator, count: int) -> IntArray:
    """`count` independent draws from each row's distribution, `(N, count)`."""
    num_rows, num_classes = p_NC.shape
    row_N1 = np.arange(num_rows)[:, None]
    below_NC = np.cumsum(p_NC, axis=1) / p_NC.sum(axis=1, keepdims=True) + row_N1
    drawn = np.searchsorted(below_NC.ravel(), (rng.random((num_rows, count)) + row_N1).ravel(), side="right")
    return np.asarray((drawn.reshape(num_rows, count) - row_N1 * num_classes).clip(0, num_classes - 1))
