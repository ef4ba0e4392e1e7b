"""The freshness report: shares of stale and missing rows, and a file that needs nothing else."""

import asyncio
import re

import numpy as np
import pytest
import redis

from feedworks.contracts.features import INTERACTION_AGGREGATES, STUDENT_SERVICE, USER_PROFILE
from feedworks.errors import DataError
from feedworks.features.freshness import entities, measure, report_on, write_report
from feedworks.features.local_redis import running_redis
from feedworks.features.packed_redis import write_rows
from feedworks.features.reading import PackedSource, layout_of
from feedworks.features.schema import ServiceSchema, ViewSchema

from .rows import DAY, START, write

SCHEMA = ServiceSchema.of(STUDENT_SERVICE)


@pytest.fixture(scope="module")
def server():
    """Profiles of 100 users, 25 of whom are past their year, and of 50 of them aggregates."""
    with running_redis() as server, redis.Redis(port=server.port) as client:
        profile, aggregates = (layout_of(ViewSchema.of(t)) for t in (USER_PROFILE, INTERACTION_AGGREGATES))
        for layout, keys in ((profile, range(100)), (aggregates, range(50))):
            ages = [400 * DAY if layout is profile and key < 25 else key * DAY // 10 for key in keys]
            rows = [layout.encode([None] * len(layout.fields), START - age) for age in ages]
            write_rows(client, "feedworks", layout, keys, rows)
        yield server


def measured(server, keys):
    async def run():
        source = PackedSource(server.url, SCHEMA, timeout_s=5.0)
        try:
            return await measure(source, SCHEMA, keys, START)
        finally:
            await source.close()

    return {view.view: view for view in asyncio.run(run())}


def test_shares_and_ages(server):
    found = measured(server, range(100))
    assert list(found) == [view.name for view in SCHEMA.views]
    profile, aggregates, context = found.values()
    assert (profile.num_rows, profile.stale_share, profile.missing_share) == (100, 0.25, 0.0)
    assert profile.age_s.max() == pytest.approx(400 * 86_400)
    assert (aggregates.stale_share, aggregates.missing_share) == (0.0, 0.5)
    np.testing.assert_allclose(np.sort(aggregates.age_s), np.arange(50) * 8640)
    assert (context.missing_share, len(context.age_s)) == (1.0, 0)


def test_the_report_is_one_file(server, tmp_path):
    write_report(tmp_path / "report.html", SCHEMA.service, list(measured(server, range(100)).values()), START)
    html = (tmp_path / "report.html").read_text()
    for expected in (
        "Freshness of ocarm_student_v1",
        "user_profile",
        "25.0 %",
        "100.0 %",
        "As of 2023-11-14",
    ):
        assert expected in html
    assert html.count("<svg") == 3
    # The names of the SVG format look like addresses and are none.
    assert not re.search(r'(src|href)="(?!#)|url\((?!#)|@import', html)


def test_entities_come_from_the_feature_tables(server, tmp_path):
    with pytest.raises(DataError, match="holds no table of ocarm_student_v1"):
        entities(SCHEMA, tmp_path)
    write(USER_PROFILE, tmp_path, [5, 5, 3], [START - DAY, START, START])
    write(INTERACTION_AGGREGATES, tmp_path, [9], [START])
    assert entities(SCHEMA, tmp_path) == [3, 5, 9]
    found = report_on(f"packed+{server.url}", SCHEMA, tmp_path, tmp_path / "now.html")
    assert [view.num_rows for view in found] == [3, 3, 3]
    assert (tmp_path / "now.html").is_file()


def test_a_store_without_rows(tmp_path):
    with running_redis() as server:
        write_report(tmp_path / "report.html", "empty", list(measured(server, [1, 2]).values()), START)
        assert "100.0 %" in (tmp_path / "report.html").read_text()
