import re
from pathlib import Path

from feedworks.validation.report import render, write_report
from feedworks.validation.result import Check, GateResult

GOOD = Check(
    table="items", column="item_id", problem="has type int64", success=True, count=0, num_rows=4, mend="-"
)
BAD = Check(
    table="items",
    column="vector",
    problem="hold <b>NaN</b>",
    success=False,
    count=1,
    num_rows=40_000,
    mend="compute & write",
    examples=("row 7: item_id=8",),
    expectation="expect_column_values_to_be_between",
)
WARNING = Check(
    table="users",
    column="segment",
    problem="are null",
    success=False,
    count=2,
    num_rows=4,
    mend="fill",
    severity="warning",
    expectation="expect_column_values_to_not_be_null",
)
RESULT = GateResult(rows={"items": 40_000}, checks=(GOOD, BAD, WARNING))


def test_the_report_says_what_failed_and_how_to_mend_it():
    html = render(RESULT, Path("data"))
    assert "<title>Data validation: failed</title>" in html
    assert "3 checks, 1 failure, 1 warning" in html
    assert html.index("hold &lt;b&gt;NaN") < html.index("has type int64"), "failures come first"
    assert "1 (below 0.01%)" in html
    assert "2 (50.00%)" in html
    assert "row 7: item_id=8" in html
    assert "compute &amp; write" in html
    assert "40,000 rows" in html
    assert "not readable" in html, "users is not among the rows"


def test_the_report_stands_alone():
    html = render(RESULT, Path("<data>"))
    assert "<data>" not in html
    assert not re.search(r"https?://|<script|<link|@import|url\(|src=", html)


def test_warnings_alone_do_not_fail():
    result = GateResult(rows={}, checks=(GOOD, WARNING))
    assert result.success
    assert "<title>Data validation: passed</title>" in render(result, Path("data"))
    assert result.metrics() == {
        "validation/checks": 2.0,
        "validation/failures": 0.0,
        "validation/warnings": 1.0,
    }


def test_a_report_takes_the_place_of_an_earlier_one(tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_report(GateResult(rows={}, checks=()), Path("data"), path)
    write_report(RESULT, Path("data"), path)
    assert path.read_text() == render(RESULT, Path("data"))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_sentences_name_table_column_count_and_mend():
    assert BAD.sentence() == (
        "table items, column vector: 1 of 40,000 rows hold <b>NaN</b> (row 7: item_id=8); compute & write"
    )
    assert RESULT.summary() == BAD.sentence()
