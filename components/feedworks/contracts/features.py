"""Feature tables: what the feature store holds about users, items, authors and live rooms.

A feature table is a contract with what a store needs besides: the entity that a row is about, how long a
row may be used, and who answers for it. A row's `event_time` is when it became known. Nothing relative to the
time of a request is stored: lists of times and the `*_time` columns are absolute, in microseconds since 1970
UTC, and ages are computed where they are used, by the same code in training and serving.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from feedworks.contracts.retention import NUM_CATEGORIES, PROFILES
from feedworks.contracts.tables import EVENT_TIME, Column, Side, Table

MINUTE_S = 60
DAY_S = 24 * 60 * MINUTE_S
LIST_OF_INTS = pa.list_(pa.int64())
LIST_OF_FLOATS = pa.list_(pa.float32())


@dataclass(frozen=True, kw_only=True)
class FeatureTable(Table):
    """A table of the feature store; its key is the entity's column and `event_time`.

    Attributes:
        entity: column of the entity: user_id, item_id, author_id or room_id.
        ttl_s: seconds for which a row may be used; older ones read as missing.
        owner: who answers for it.
        tags: words to find it by.
        training_only: known after the decision that a model is asked about, so no served model may read it.
        stream: rows are pushed as they happen.
    """

    entity: str
    ttl_s: int
    owner: str
    tags: dict[str, str]
    training_only: bool = False
    stream: bool = False

    @property
    def features(self) -> tuple[Column, ...]:
        """All columns but the key."""
        return tuple(column for column in self.columns if column.name not in self.key)


def feature_table(
    name: str,
    *columns: Column,
    entity: str,
    description: str,
    ttl_s: int,
    owner: str,
    domain: str,
    training_only: bool = False,
    stream: bool = False,
) -> FeatureTable:
    """A feature table whose first columns are the entity's id and `event_time`, sorted by both."""
    side: Side = "user" if entity == "user_id" else "item"
    key = (
        Column(name=entity, type=pa.int64(), side=side, minimum=0, description="Whom the row is about."),
        Column(
            name="event_time", type=EVENT_TIME, side="context", description="When the row became known, UTC."
        ),
    )
    return FeatureTable(
        name=name,
        columns=(*key, *columns),
        key=(entity, "event_time"),
        sorted_by=(entity, "event_time"),
        event_time="event_time",
        description=description,
        kind="features",
        required=False,
        entity=entity,
        ttl_s=ttl_s,
        owner=owner,
        tags={"domain": domain, "use": "training-only" if training_only else "serving"},
        training_only=training_only,
        stream=stream,
    )


def _count(name: str, side: Side, description: str) -> Column:
    return Column(name=name, type=pa.int64(), side=side, minimum=0, description=description)


def _number(name: str, side: Side, description: str, maximum: float | None = None) -> Column:
    return Column(
        name=name,
        type=pa.float32(),
        side=side,
        nullable=True,
        minimum=0,
        maximum=maximum,
        description=description,
    )


def _time(name: str, side: Side, description: str) -> Column:
    return Column(
        name=name,
        type=pa.int64(),
        side=side,
        nullable=True,
        minimum=0,
        description=f"{description}, in microseconds since 1970 UTC.",
    )


def _list(name: str, type_: pa.DataType, side: Side, description: str) -> Column:
    return Column(name=name, type=type_, side=side, description=description, any_width=True)


USER_PROFILE = feature_table(
    "user_profile",
    *(column for column in PROFILES.columns if column.name != "user_id"),
    _time("profile_time", "user", "When the profile was read"),
    entity="user_id",
    description="What the platform knows about a user, whatever the user does.",
    ttl_s=365 * DAY_S,
    owner="growth",
    domain="profile",
)

INTERACTION_AGGREGATES = feature_table(
    "interaction_aggregates",
    _count("num_events_1d", "user", "Events in the 24 hours up to aggregated_time."),
    _count("num_events_7d", "user", "Events in the 7 days up to it."),
    _count("num_events_28d", "user", "Events in the 28 days up to it."),
    _count("num_days_7d", "user", "Of those 7 days, the ones with an event."),
    _count("num_days_28d", "user", "Of those 28 days, the ones with an event."),
    _number("mean_engagement_7d", "user", "Mean engagement of the events of those 7 days.", maximum=1),
    _list("history_item", LIST_OF_INTS, "user", "The latest items, oldest first."),
    _list("history_category", LIST_OF_INTS, "user", "Their categories."),
    _list("history_surface", LIST_OF_INTS, "user", "Where they were met."),
    _list("history_engagement", LIST_OF_FLOATS, "user", "How much of them was taken."),
    _list("history_time", LIST_OF_INTS, "user", "When, in microseconds since 1970 UTC."),
    _time("aggregated_time", "user", "The last event that the row counts"),
    entity="user_id",
    description="What a user did up to an event: counts, and the latest events. One row per active day.",
    ttl_s=180 * DAY_S,
    owner="growth",
    domain="interactions",
)

AD_CONTEXT = feature_table(
    "ad_context",
    _count("num_returns", "user", "Times the user came back so far."),
    _list(
        "return_surface", LIST_OF_INTS, "user", "Where the user came back to, the latest times, oldest first."
    ),
    _list("return_idle_h", LIST_OF_FLOATS, "user", "Hours without an event before each."),
    _list("return_time", LIST_OF_INTS, "user", "When, in microseconds since 1970 UTC."),
    entity="user_id",
    description="Earlier returns of a user and what brought them about.",
    ttl_s=180 * DAY_S,
    owner="growth",
    domain="ads",
)

ONBOARDING = feature_table(
    "onboarding",
    _list("content_item", LIST_OF_INTS, "content", "Items met in the content window, oldest first."),
    _list("content_category", LIST_OF_INTS, "content", "Their categories."),
    _list("content_engagement", LIST_OF_FLOATS, "content", "How much of them was taken."),
    _list("content_time", LIST_OF_INTS, "content", "When, in microseconds since 1970 UTC."),
    entity="user_id",
    description="What a user met after coming back. Known only when it is too late to decide.",
    ttl_s=DAY_S,
    owner="growth",
    domain="onboarding",
    training_only=True,
)

LIVE_STREAM = feature_table(
    "live_stream",
    _count("author_id", "item", "Who streams."),
    _count("num_viewers", "item", "Viewers now."),
    _count("num_comments_1m", "item", "Comments of the last minute."),
    _count("num_comments_5m", "item", "Comments of the last five minutes."),
    _count("num_gifts_5m", "item", "Gifts of the last five minutes."),
    _number("gift_value_5m", "item", "Their worth."),
    _count("num_follows_5m", "item", "New followers of the last five minutes."),
    _number("watch_share_5m", "item", "Mean share of the last five minutes that viewers stayed.", maximum=1),
    _time("started_time", "item", "When the stream began"),
    _count("anchor_version", "item", "Version of the semantic anchor."),
    _list("anchor_codes", LIST_OF_INTS, "item", "The semantic anchor: what is on now."),
    entity="room_id",
    description="A live room now: rolling counts and the current semantic anchor.",
    ttl_s=10 * MINUTE_S,
    owner="live",
    domain="live",
    stream=True,
)

ITEM_PROFILE = feature_table(
    "item_profile",
    Column(
        name="item_category",
        type=pa.int64(),
        side="item",
        minimum=0,
        maximum=NUM_CATEGORIES - 1,
        description="Kind of the item.",
    ),
    _count("item_author_id", "item", "Who made it."),
    _count("item_num_events_7d", "item", "Events of the 7 days before item_counted_time."),
    _number("item_mean_engagement_7d", "item", "Mean engagement of those.", maximum=1),
    _time("item_counted_time", "item", "The end of the day that the row counts last"),
    entity="item_id",
    description="An item and how it fares.",
    ttl_s=30 * DAY_S,
    owner="growth",
    domain="items",
)

AUTHOR_PROFILE = feature_table(
    "author_profile",
    _count("num_items", "item", "Items met so far."),
    _count("num_events_7d", "item", "Events on them of the 7 days up to the row."),
    _number("mean_engagement_7d", "item", "Mean engagement of those.", maximum=1),
    entity="author_id",
    description="An author and how the author's items fare.",
    ttl_s=30 * DAY_S,
    owner="growth",
    domain="authors",
)

FEATURE_TABLES: tuple[FeatureTable, ...] = (
    USER_PROFILE,
    INTERACTION_AGGREGATES,
    AD_CONTEXT,
    ONBOARDING,
    LIVE_STREAM,
    ITEM_PROFILE,
    AUTHOR_PROFILE,
)
# What a model may read, by the name of its feature service. The second version reads the landing item of the
# ad besides; a model without one keeps to the first, and to its reads.
STUDENT_SERVICE, TEACHER_SERVICE, LIVE_SERVICE = "ocarm_student_v1", "ocarm_teacher_v1", "live_stream_v1"
STUDENT_ITEM_SERVICE, TEACHER_ITEM_SERVICE = "ocarm_student_v2", "ocarm_teacher_v2"
_OF_USERS = (USER_PROFILE, INTERACTION_AGGREGATES, AD_CONTEXT)
SERVICES: dict[str, tuple[FeatureTable, ...]] = {
    STUDENT_SERVICE: _OF_USERS,
    TEACHER_SERVICE: (*_OF_USERS, ONBOARDING),
    STUDENT_ITEM_SERVICE: (*_OF_USERS, ITEM_PROFILE),
    TEACHER_ITEM_SERVICE: (*_OF_USERS, ITEM_PROFILE, ONBOARDING),
    LIVE_SERVICE: (LIVE_STREAM,),
}
# The lists of one row of a table that must be equally long.
PARALLEL_LISTS: dict[str, tuple[str, ...]] = {
    table.name: tuple(c.name for c in table.columns if c.is_vector and c.name != "anchor_codes")
    for table in FEATURE_TABLES
}


def student_service(landing_item: bool) -> str:
    """The service of a student, whose samples have a landing item or have none."""
    return STUDENT_ITEM_SERVICE if landing_item else STUDENT_SERVICE


def teacher_service(landing_item: bool) -> str:
    """That of its teacher."""
    return TEACHER_ITEM_SERVICE if landing_item else TEACHER_SERVICE
