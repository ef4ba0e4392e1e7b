"""The dashboard asks for nothing that no service exports, and Grafana's sidecar finds it."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedworks.papers import PAPERS
from feedworks.serving.server import get_text, running_server

from .rendered import of_kind, overlay

# What Prometheus itself adds to each target.
OWN = {"up"}
FUNCTIONS = {"sum", "rate", "max", "histogram_quantile", "label_values", "by"}
TOY = """
import bentoml

@bentoml.service
class Toy:
    @bentoml.api
    def double(self, number: int) -> int:
        return 2 * number
"""


def dashboard() -> Any:
    (found,) = [
        each
        for each in of_kind(overlay("gpu"), "ConfigMap")
        if each["metadata"]["name"] == "feedworks-dashboard"
    ]
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    return json.loads(found["data"]["feedworks.json"])


def expressions(board: Any) -> list[str]:
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    variables = [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    return asked + variables


def test_series_keep_the_labels_that_panels_group_by() -> None:
    """Prometheus puts the port's name in the place of a label `endpoint`, if not told to leave it."""
    for monitor in of_kind(overlay("gpu"), "ServiceMonitor"):
        assert all(each["honorLabels"] for each in monitor["spec"]["endpoints"]), monitor["metadata"]["name"]


def metrics_in(expression: str) -> set[str]:
    """The names of metrics in an expression of PromQL, those of a pattern `(a|b)_c` one by one."""
    names: set[str] = set()
    for pattern in re.findall(r'__name__=~"([^"]*)"', expression):
        parts = [part.strip("()").split("|") for part in re.split(r"(\([^)]*\))", pattern) if part]
        names |= {"".join(each) for each in itertools.product(*parts)}
    bare = re.sub(r"\{[^}]*\}", "{}", expression)
    bare = re.sub(r"\bby \([^)]*\)|\[[^]]*\]|(?<=, )\w+(?=\))", "", bare)
    return names | {word for word in re.findall(r"[a-z_]\w*", bare) if word not in FUNCTIONS}


def names_of(families: Any) -> Iterator[str]:
    for family in families:
        yield from (sample.name for sample in family.samples)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of what our code counts, of what a real BentoML server says, and of what Feast's code has."""
    return {*_of_papers(), *_of_bentoml(tmp_path_factory.mktemp("toy")), *_of_feast()}


def _of_papers() -> Iterator[str]:
    from feedworks.serving.counters import counters

    for name, paper in PAPERS.items():
        try:
            made = paper.part("counting").counters()
        except ModuleNotFoundError:
            made = counters(name)
        for each in made:
            yield from _samples(each)


def _samples(collector: Any) -> Iterator[str]:
    """The names of a counter's samples, also where its labels have no values yet."""
    for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        yield from (family.name + ending for ending in endings)


def _of_bentoml(folder: Path) -> set[str]:
    from prometheus_client.parser import text_string_to_metric_families

    (folder / "toy.py").write_text(TOY)
    with running_server("toy:Toy", {"PYTHONPATH": str(folder)}, folder / "log.txt") as address:
        get_text(f"{address}/readyz")
        return set(names_of(text_string_to_metric_families(get_text(f"{address}/metrics"))))


def _of_feast() -> Iterator[str]:
    spec = importlib.util.find_spec("feast.metrics")
    assert spec is not None
    assert spec.origin is not None
    for kind, name in re.findall(r"= (Counter|Histogram|Gauge)\(\s*\"(\w+)\"", Path(spec.origin).read_text()):
        endings = ("_bucket", "_sum", "_count") if kind == "Histogram" else ("",)
        yield from (name + ending for ending in endings)


def test_every_metric_is_exported(exported: set[str]) -> None:
    asked = set().union(*map(metrics_in, expressions(dashboard())))
    assert len(asked) > 20
    assert asked - exported - OWN == set()


def test_a_metric_that_nothing_exports_is_seen(exported: set[str]) -> None:
    board = dashboard()
    board["panels"][1]["targets"][0]["expr"] = 'sum(rate({__name__=~"(ksa|mari)_request_total", a="b"}[5m]))'
    asked = set().union(*map(metrics_in, expressions(board)))
    assert asked - exported - OWN == {"ksa_request_total", "mari_request_total"}


def test_every_paper_is_on_it() -> None:
    asked = set().union(*map(metrics_in, expressions(dashboard())))
    assert {f"{paper}_requests_total" for paper in PAPERS} <= asked


def test_panels_do_not_overlap_and_have_titles() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["title"]
        taken |= cells


def test_names_are_read_out_of_expressions() -> None:
    assert metrics_in('sum by (job, le) (rate({__name__=~"(a|b)_c_total", x=~"$y"}[5m])) / up{j="k"}') == {
        *("a_c_total", "b_c_total", "up")
    }
    assert metrics_in('histogram_quantile(0.5, sum by (job, le) (rate(x_bucket{a="b"}[5m])))') == {"x_bucket"}
    assert metrics_in('label_values(up{namespace="$namespace"}, job)') == {"up"}
