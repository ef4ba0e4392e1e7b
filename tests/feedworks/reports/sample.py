"""A report with every kind of part in it, built from seeded numbers, that the tests take apart."""

import numpy as np

from feedworks.metrics.ranking import Interval, summarise
from feedworks.reports import figures
from feedworks.reports.html import Published, Report

HISTORY = [
    {"epoch": e, "train/loss": 8 * 0.9**e + 3, **({"valid/ndcg@10": 0.04 - 0.04 * 0.8**e} if e % 2 else {})}
    for e in range(1, 41)
]
TIGER = Published("TIGER", {"recall@10": 0.0648, "ndcg@10": 0.0384}, "arXiv 2305.05065, table 1")


def methods() -> dict[str, dict[str, Interval]]:
    rng = np.random.default_rng(0)
    shares = {"popularity": 0.012, "sasrec": 0.058, "generation": 0.062, "rerank": 0.072}
    return {
        name: summarise(np.where(rng.random(20_000) < share, rng.integers(1, 11, 20_000), 0), num_samples=100)
        for name, share in shares.items()
    }


def sample_report(text: str = "plain") -> Report:
    """Put `text` wherever a caller may put text."""
    rng = np.random.default_rng(1)
    values = methods()
    slices = {f"all {text}": {text: Interval(0.06, 0.05, 0.07), "b": 0.05}, "novel": {text: 0.04}}
    report = Report(f"RecoChain {text}", f"seed 0 {text}")
    report.add_highlights({f"Recall@10 {text}": (values["rerank"]["recall@10"], text), "tag": (text, "")})
    report.add_text(f"About {text}", f"One paragraph {text}.\n\nAnother.")
    report.add_metrics("Results", {**values, text: {f"{text}@3": 0.5}}, published=[TIGER], ours=["rerank"])
    report.add_metrics("More", {"a": {"loss": 2.0}, "b": {"loss": 1.0}}, lower_is_better=["loss"], note=text)
    report.add_figure(
        "Curves",
        figures.curves(f"Loss {text}", HISTORY, ["train/loss"]),
        figures.curves("Both", HISTORY, ["train/loss", "valid/ndcg@10"], log_y=True),
        note=text,
    )
    bars = {text: Interval(2, 1, 3), "b": 1.5}
    report.add_figure("Bars", figures.bars(text, bars, x_label=text, ours=["b"]))
    report.add_figure("Slices", figures.grouped_bars("Slices", slices, y_label=text))
    sizes = rng.geometric(0.5, 500)
    report.add_figure("Codes", figures.histogram("Items", sizes, x_label=text, y_label=text))
    settings = [["lr", 0.001], [text, None], ["on", True]]
    report.add_table(f"Set {text}", ["Setting", text], settings, folded=True)
    return report
