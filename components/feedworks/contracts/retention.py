"""A retention data folder: event logs of users who leave and come back, and the samples made from them.

events.parquet and catalogue.parquet, and profiles.parquet where something is known about users. A sample is
one conversion: the first event of a user after days without any. Shown in the order of time:

    history ... bid_time < content_start <= content < content_end <= label_start ... label windows

What a model may read at bid time lies left of `bid_time`; labels are counted strictly after the content.
"""

from __future__ import annotations

import pyarrow as pa

from feedworks.contracts.tables import EVENT_TIME, Column, Side, Table

# Days over which revisits are counted.
HORIZONS = (1, 7, 30)
NUM_SURFACES = 16
NUM_CATEGORIES = 512
SPLITS = ("train", "valid", "test")
# A training set: what models read at bid time with the samples, and apart from it what came after.
OBSERVABLES_FILE, CONTENT_FILE = "observables.parquet", "content.parquet"


def label_of(days: int) -> str:
    """Column with the revisit frequency over `days` days."""
    return f"lt{days}"


def _id(name: str, side: Side, description: str) -> Column:
    return Column(name=name, type=pa.int64(), side=side, minimum=0, description=description)


def _code(name: str, size: int, side: Side, description: str) -> Column:
    return Column(
        name=name,
        type=pa.int64(),
        side=side,
        minimum=0,
        maximum=size - 1,
        description=description,
    )


EVENTS = Table(
    name="events",
    kind="retention",
    description="One row for each item that a user met.",
    columns=(
        _id("user_id", "user", "Who."),
        Column(
            name="item_id",
            type=pa.int64(),
            side="item",
            minimum=0,
            refers_to="catalogue",
            description="Which item.",
        ),
        Column(name="event_time", type=EVENT_TIME, side="context", description="When, in UTC."),
        _code("surface", NUM_SURFACES, "context", "Where in the product: page, tab or campaign."),
        Column(
            name="engagement",
            type=pa.float32(),
            side="context",
            minimum=0,
            maximum=1,
            description="How much of it the user took: share watched, rating over its maximum.",
        ),
    ),
    key=(),
    sorted_by=("user_id", "event_time"),
    event_time="event_time",
)

CATALOGUE = Table(
    name="catalogue",
    kind="retention",
    description="One row for each item that occurs in the events.",
    columns=(
        _id("item_id", "item", "Key of the item."),
        _id("author_id", "item", "Who made it; 0 where that is not known."),
        _code("category", NUM_CATEGORIES, "item", "Kind of the item; 0 where that is not known."),
        Column(
            name="vector",
            type=pa.list_(pa.float32()),
            side="content",
            description="What the item is about; one width in the table, all values finite.",
        ),
    ),
    key=("item_id",),
    sorted_by=("item_id",),
)

PROFILES = Table(
    name="profiles",
    kind="retention",
    description="One row for each user about whom something is known; codes are 0 where that is not known.",
    columns=(
        _id("user_id", "user", "Key of the user."),
        _code("activity", 16, "user", "Degree of activity that the platform assigns."),
        _code("segment", 256, "user", "A group of users."),
        _code("follows", 16, "user", "Range of the number of accounts followed."),
        _code("fans", 16, "user", "Range of the number of followers."),
        _code("friends", 16, "user", "Range of the number of mutual followers."),
        Column(
            name="tenure_days",
            type=pa.float32(),
            side="user",
            minimum=0,
            nullable=True,
            description="Days between registration and the first day of the log.",
        ),
    ),
    key=("user_id",),
    sorted_by=("user_id",),
    required=False,
)

RETENTION_FOLDER: tuple[Table, ...] = (EVENTS, CATALOGUE, PROFILES)

SAMPLES = Table(
    name="samples",
    kind="retention",
    description="One row for each conversion.",
    columns=(
        _id("sample_id", "context", "Key, in the order of bid_time and user."),
        _id("user_id", "user", "Who came back."),
        Column(name="bid_time", type=EVENT_TIME, side="context", description="When the model is asked, UTC."),
        _code("surface", NUM_SURFACES, "context", "Where the user comes back to."),
        Column(
            name="ad_item",
            type=pa.int64(),
            side="context",
            minimum=0,
            nullable=True,
            description="Item of the ad; null where the ad is not known.",
        ),
        Column(name="content_start", type=EVENT_TIME, side="label", description="The conversion itself."),
        Column(name="content_end", type=EVENT_TIME, side="label", description="End of the content window."),
        Column(
            name="label_start", type=EVENT_TIME, side="label", description="Where revisits start to count."
        ),
        *(
            Column(
                name=label_of(days),
                type=pa.float32(),
                side="label",
                minimum=0,
                maximum=1,
                nullable=True,
                description=f"Share of the {days} 24-hour periods from label_start on with an event; null "
                "where the log ends before they do, or nobody asked for them.",
            )
            for days in HORIZONS
        ),
        Column(
            name="split", type=pa.string(), side="label", description="train, valid or test, by bid_time."
        ),
    ),
    key=("sample_id",),
    sorted_by=("sample_id",),
    event_time="bid_time",
)
