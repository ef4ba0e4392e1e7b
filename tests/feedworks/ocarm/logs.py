"""Small logs of events for the tests of samples, feature tables and their audit."""

import numpy as np
import pyarrow as pa

from feedworks.contracts.files import write_table
from feedworks.contracts.retention import CATALOGUE, EVENTS
from feedworks.contracts.tables import EVENT_TIME

DAY_US = 86_400_000_000
START_US = 1_704_067_200_000_000
NUM_ITEMS = 20


def write_log(folder, events):
    """Writes `(user, day, item)` or `(user, day, item, surface, engagement)` rows; days may be fractions."""
    rows = sorted((*e, 1, 0.5) if len(e) == 3 else e for e in events)
    user, day, item, surface, engagement = zip(*rows, strict=True)
    times = START_US + np.round(np.array(day) * DAY_US).astype(np.int64)
    table = {
        "user_id": np.array(user),
        "item_id": np.array(item),
        "event_time": pa.array(times).cast(EVENT_TIME),
        "surface": np.array(surface),
        "engagement": np.array(engagement, np.float32),
    }
    write_table(EVENTS, pa.table(table), folder)
    ids = np.arange(NUM_ITEMS)
    vectors = [[float(i), 1.0] for i in ids]
    catalogue = {"item_id": ids, "author_id": ids // 4, "category": ids % 7, "vector": vectors}
    write_table(CATALOGUE, pa.table(catalogue), folder)
    return folder


def random_log(folder, seed=0, num_users=40, days=60):
    """Users with bursts of events and gaps of some days, so that every rule about gaps has its cases."""
    rng = np.random.default_rng(seed)
    events = []
    for user in range(1, num_users + 1):
        day = float(rng.uniform(0, 10))
        while day < days:
            for _ in range(int(rng.integers(1, 5))):
                # Whole quarters of a day make ties and windows that end at an event.
                events.append((user, day, int(rng.integers(NUM_ITEMS)), int(rng.integers(16)), rng.random()))
                day += float(rng.choice([0, 0.25, rng.uniform(0, 1.2)]))
            day += float(rng.choice([1, 2, 3, rng.uniform(1, 12)]))
    return write_log(folder, events)
