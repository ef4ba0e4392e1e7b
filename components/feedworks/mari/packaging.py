"""MaRI (arXiv 2602.23105): the folder that serving loads, and its model card.

package.json   the tag, the sha256 of every other file, and what the twin was made from
sides.json     what the model takes
twin/          the twin: programs as .pt2, and where the model's own weights are in it
sites.json     the site report
metrics.json   of the run
README.md      the model card
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from feedworks.configuration import flatten
from feedworks.mari.config import MariConfig
from feedworks.mari.schema import ONNX_FOLDER, PACKAGE_FILE, SIDES_FILE, TWIN_FOLDER, RankerSchema
from feedworks.metrics.ranking import read_back
from feedworks.reports.model_card import ModelCard, write_model_card
from feedworks.serving.package import seal, sha256
from feedworks.storage import read_json

FILES = {
    PACKAGE_FILE: "tag, checksums, what the twin was made from",
    SIDES_FILE: "the model's inputs, and whose they are",
    f"{TWIN_FOLDER}/one.pt2": "the program for one request",
    f"{TWIN_FOLDER}/many.pt2": "the program for several requests in one batch",
    f"{TWIN_FOLDER}/origin.json": "where the model's own weights are in the twin's",
    f"{TWIN_FOLDER}/kept.safetensors": "those of the model's weights that are not",
    f"{ONNX_FOLDER}/one.onnx": "the program for one request as ONNX, if the settings asked for it",
    f"{ONNX_FOLDER}/many.onnx": "the program for several requests as ONNX, likewise",
    "sites.json": "the coloured graph, the cut products, operations before and after",
    "metrics.json": "metrics of the run",
}


def write_package(folder: Path, cfg: MariConfig) -> str:
    """Write card and package.json into `folder`, beside schema, twin and reports; return the tag.

    The tag names the content of schema and twin, so equal twins have equal tags.
    """
    served = [
        folder / SIDES_FILE,
        *sorted(path for path in (folder / TWIN_FOLDER).rglob("*") if path.is_file()),
    ]
    lines = "\n".join(f"{path.relative_to(folder)} {sha256(path)}" for path in served)
    tag = f"mari:{hashlib.sha256(lines.encode()).hexdigest()[:16]}"
    write_model_card(folder / "README.md", _card(tag, folder, cfg))
    made_from = cfg.outside.model.rpartition("/")[2] or f"ranker {cfg.ranker.arch}, trained"
    merges = read_json(folder / "metrics.json")["equal/requests_apart"] == 1
    seal(folder, tag, {"made_from": made_from, "merge_requests": merges})
    return tag


def _card(tag: str, folder: Path, cfg: MariConfig) -> ModelCard:
    metrics: dict[str, float] = read_json(folder / "metrics.json")
    schema = RankerSchema.read(folder / SIDES_FILE)
    sides = {
        f"input {each.name}": f"{each.side}, {each.dtype}, shape {list(each.shape)}" for each in schema.inputs
    }
    facts: dict[str, Any] = {"outputs": ", ".join(schema.outputs), **sides}
    facts |= {key: metrics[key] for key in metrics if key.partition("/")[0] in ("equal", "flops", "graph")}
    # Where a model from outside lay is nobody's business, and another place makes no other twin.
    settings = {name: value for name, value in flatten(cfg).items() if not name.startswith("outside.")}
    return ModelCard(
        name=tag,
        summary="The re-parameterised twin of a ranking model: it scores many candidates for one user, and "
        "computes what depends on the user alone once per request.",
        paper="Accelerating Ranking Model Inference via Structural Re-parameterization in Large Scale "
        "Recommendation System, arXiv 2602.23105.",
        data=f"Made from {cfg.outside.model.rpartition('/')[2]}." if cfg.outside.model else "",
        intended_use="Ranking of candidates that are given with the request.",
        limitations=[
            "Sums are taken in another order than in the model: scores differ in the last digits.",
            "Weights cannot be trained further here; train the model and convert it again.",
        ],
        facts={**facts, **{name: str(value) for name, value in settings.items()}},
        metrics=read_back(metrics, "test"),
        files={
            name: what for name, what in FILES.items() if name == PACKAGE_FILE or (folder / name).exists()
        },
    )
