"""The bench harness: order of calls, quantiles, rows."""

import gc
import json
import time

import pytest

from feedworks.metrics import latency
from feedworks.metrics.latency import Timing


def test_providers_take_turns_and_none_always_follows_the_same():
    calls = []
    providers = {name: lambda name=name: calls.append(name) for name in "abc"}
    latency.interleave(providers, repeats=5, warmup=1)
    assert "".join(calls) == "abc" + "bca" + "cab" + "cba" + "acb" + "bac"


def test_times_what_it_calls():
    timings = latency.interleave(
        {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.002)}, repeats=5, warmup=0
    )
    for name, seconds in (("slow", 0.02), ("fast", 0.002)):
        assert seconds <= timings[name].p20_s <= timings[name].p50_s <= timings[name].p80_s < seconds + 0.05
    assert timings["fast"].p50_s < timings["slow"].p50_s


def test_synchronise_is_inside_the_clock():
    timings = latency.interleave(
        {"launch": lambda: None}, repeats=3, warmup=0, synchronise=lambda: time.sleep(0.005)
    )
    assert 0.005 <= timings["launch"].p50_s < 0.05


def test_quantiles_by_hand():
    assert latency._quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))


def test_the_collector_is_on_again_after_an_error():
    def broken():
        assert not gc.isenabled()
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        latency.interleave({"broken": broken})
    assert gc.isenabled()


BAD_COUNTS = [({}, 1, 1), ({"a": id}, 0, 1), ({"a": id}, 1, -1)]


@pytest.mark.parametrize(("providers", "repeats", "warmup"), BAD_COUNTS)
def test_bad_counts_are_refused(providers, repeats, warmup):
    with pytest.raises(ValueError, match="expected providers"):
        latency.interleave(providers, repeats=repeats, warmup=warmup)


def test_rows(capsys):
    timings = {"ours": Timing(0.0009, 0.001, 0.0011), "peer": Timing(0.002, 0.0031234567, 0.004)}
    rows = latency.json_rows("decode", {"codes": 256}, "cpu", timings, "ours", {"ours": 0.0})
    latency.print_rows(rows)
    ours, peer = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ours == {
        "op": "decode",
        "provider": "ours",
        "shape": {"codes": 256},
        "device": "cpu",
        "p20_s": 0.0009,
        "p50_s": 0.001,
        "p80_s": 0.0011,
        "error": 0.0,
        "speedup": {"peer": 3.123},
    }
    assert peer["p50_s"] == 0.003123
    assert "speedup" not in peer
    assert "error" not in peer


def test_rows_as_a_table():
    rows = [
        {"op": "a", "shape": {"n": 8}, "rate": 1234.5678, "bytes": 123_456, "speedup": {"peer": 2.0}},
        {"op": "b", "shape": {"n": 9}, "back_s": None, "rate": 123456.5},
    ]
    assert latency.markdown_table(rows).splitlines() == [
        "| op | n | rate | bytes | speedup peer | back_s |",
        "| --- | --- | --- | --- | --- | --- |",
        "| a | 8 | 1235 | 123456 | 2 |  |",
        "| b | 9 | 123456.5 |  |  |  |",
    ]


def test_rows_need_our_provider():
    with pytest.raises(ValueError, match="was not timed"):
        latency.json_rows("decode", "s", "cpu", {"peer": Timing(1, 1, 1)}, "ours")


def test_device_label_names_processor_and_cores():
    label = latency.device_label()
    assert label.endswith(" cores")
    assert len(label) > len("1 cores")
