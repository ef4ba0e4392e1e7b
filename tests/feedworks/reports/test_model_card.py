"""The model card: what it holds, what it leaves out, that text cannot break it."""

import yaml

from feedworks.metrics.ranking import Interval
from feedworks.reports.model_card import ModelCard, render_model_card, write_model_card


def test_a_full_card():
    card = ModelCard(
        name="recochain",
        summary="Generates candidates and reranks them.",
        paper="Harmonizing Generative Retrieval and Ranking, arXiv 2604.25787",
        licence="apache-2.0",
        data="Amazon Beauty, leave-one-out",
        intended_use="Top-k items for a user's history.",
        limitations=["Items without a vector are skipped.", "Line\nbreak and <b>tag</b>."],
        facts={"items": 12101, "semantic ID": "3 levels of 256", "p|q": 0.5},
        metrics={"rerank": {"recall@10": Interval(0.0669, 0.0637, 0.0702)}, "sasrec": {"ndcg@10": 0.03}},
        files={"model.safetensors": "weights"},
    )
    text = render_model_card(card)
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {"license": "apache-2.0", "library_name": "feedworks"}
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# recochain",
        "## Paper",
        "## Intended use",
        "## Data",
        "## Results",
        "## Limits",
        "## Facts",
        "## Files",
    ]
    assert "| method | Recall@10 | NDCG@10 |\n| --- | --- | --- |\n" in body
    assert "| rerank | 0.0669 (0.0637 to 0.0702) | – |\n| sasrec | – | 0.0300 |" in body
    assert "- Line break and &lt;b>tag&lt;/b>." in body
    assert "| items | 12,101 |" in body
    assert "| p\\|q | 0.5000 |" in body
    assert "| `model.safetensors` | weights |" in body


def test_empty_parts_are_left_out(tmp_path):
    write_model_card(tmp_path / "README.md", ModelCard(name="m", summary="s"))
    assert (tmp_path / "README.md").read_text() == '---\nlibrary_name: "feedworks"\n---\n\n# m\n\ns\n'
