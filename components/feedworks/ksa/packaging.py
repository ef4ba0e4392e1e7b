"""KSA (arXiv 2604.24432): the folder that serving loads, and its model card.

package.json              the tag, the limits of the service, and the sha256 of every other file
config.json, generation_config.json, *.safetensors     the model as transformers stores it
tokenizer.json, tokenizer_config.json, ...             the tokenizer as transformers stores it
metrics.json              of the run
README.md                 the model card
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from feedworks.configuration import flatten
from feedworks.errors import ConfigError, ModelError
from feedworks.ksa.config import KsaConfig
from feedworks.ksa.settings import PackageConfig
from feedworks.ksa.vocabulary import CONFIG, GENERATION_FILE, TOKENIZER_CONFIG, TOKENIZER_FILE, Vocabulary
from feedworks.reports.model_card import ModelCard, write_model_card
from feedworks.serving.package import PACKAGE_FILE, check_seal, seal
from feedworks.storage import write_json

if TYPE_CHECKING:
    from feedworks.ksa.model import Qwen3KsaForCausalLM

METRICS, CARD = "metrics.json", "README.md"
TENSORS = "*.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# What transformers may write beside a tokenizer.json.
TOKENIZER_FILES = (
    TOKENIZER_FILE,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
FILES = {
    PACKAGE_FILE: "tag, limits of the service, checksums of the other files",
    CONFIG: "sizes of the model",
    "model.safetensors": "weights",
    TOKENIZER_FILE: "byte-level tokenizer",
    METRICS: "of the run",
}
_LIMITS = "limits"


class Loaded(NamedTuple):
    """What a service needs: the model on its device, its vocabulary, its name and its limits."""

    model: Qwen3KsaForCausalLM
    vocabulary: Vocabulary
    tag: str
    limits: PackageConfig


def write_package(
    folder: Path, model: Path, tokenizer: Path, config: KsaConfig, metrics: Mapping[str, float]
) -> str:
    """Write what serving loads into `folder`; return the tag, which names what the model computes.

    Args:
        folder: where.
        model: as `feedworks.ksa.checkpoint.save` writes it.
        tokenizer: as transformers writes it.
        config: of the run; its `package` are the limits.
        metrics: flat, of the run.

    Raises:
        ModelError: a folder is incomplete, or the model has fewer tokens than the tokenizer.
    """
    tag = write_folder(folder, model, tokenizer, config.package, metrics)
    write_model_card(folder / CARD, _card(tag, config, metrics))
    seal(folder, tag, {_LIMITS: flatten(config.package)})
    return tag


def write_folder(
    folder: Path, model: Path, tokenizer: Path, limits: PackageConfig, metrics: Mapping[str, float]
) -> str:
    """Do the same without a model card, for models that come from no run.

    Raises:
        ModelError: see `write_package`.
    """
    weights = sorted(model.glob(TENSORS))
    if not weights:
        raise ModelError(f"{model} holds no weights; run the step that trains it")
    copied = [*weights, *(model / name for name in (CONFIG, GENERATION_FILE, WEIGHTS_INDEX))]
    copied += [tokenizer / name for name in TOKENIZER_FILES]
    folder.mkdir(parents=True, exist_ok=True)
    for path in copied:
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    write_json(folder / METRICS, dict(metrics))
    _require_tokens(folder)
    tag = content_tag(folder)
    seal(folder, tag, {_LIMITS: flatten(limits)})
    return tag


def load_package(folder: Path, device: torch.device | str) -> Loaded:
    """Load a packaged model for serving.

    Args:
        folder: as `write_package` writes it.
        device: where the model goes.

    Raises:
        ModelError: the folder is missing or damaged.
    """
    from feedworks.ksa.checkpoint import load

    facts = check_seal(folder)
    limits = read_limits(folder, facts)
    model = load(folder, dtype=getattr(torch, limits.dtype), device=device)
    return Loaded(model.eval().requires_grad_(False), Vocabulary(folder), facts["tag"], limits)


def read_limits(folder: Path, facts: Mapping[str, Any]) -> PackageConfig:
    """Read the limits that package.json tells.

    Raises:
        ModelError: there are none, or they are out of range.
    """
    try:
        return PackageConfig(**facts[_LIMITS])
    except (ConfigError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder / PACKAGE_FILE} tells no limits of a service ({error}); package the model again"
        ) from None


def content_tag(folder: Path) -> str:
    """Name what a packaged model computes: metrics and card do not change it."""
    digest = hashlib.sha256()
    for path in _computing(folder):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"ksa:{digest.hexdigest()[:16]}"


def _computing(folder: Path) -> Iterator[Path]:
    names = {CONFIG, GENERATION_FILE, WEIGHTS_INDEX, *TOKENIZER_FILES}
    for path in sorted(folder.iterdir()):
        if path.name in names or path.match(TENSORS):
            yield path


def _require_tokens(folder: Path) -> None:
    from feedworks.ksa.architecture import Qwen3KsaConfig

    num_tokens, size = len(Vocabulary(folder)), Qwen3KsaConfig.from_pretrained(folder).vocab_size
    if num_tokens > size:
        raise ModelError(f"the tokenizer has {num_tokens} tokens, the model {size}; take the model's own")


def _card(tag: str, config: KsaConfig, metrics: Mapping[str, float]) -> ModelCard:
    limits = config.package
    return ModelCard(
        name=tag,
        summary="A language model that reads near text raw and far text through learned summaries of its "
        "chunks, so that its cache grows with a fraction of the text.",
        paper="Kwai Summary Attention Technical Report, arXiv 2604.24432.",
        intended_use="Continuing texts like those it was trained on, and finding facts in long ones.",
        limitations=[
            f"Prompt and answer together have at most {limits.max_context} tokens in the service.",
            "What it says may be false; it was not tuned to follow instructions.",
        ],
        facts={name: str(value) for name, value in flatten(config).items()},
        metrics=_results(metrics),
        files=FILES,
    )


def _results(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Attention -> loss, perplexity and needles, of the many metrics of a run."""
    found: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        group, _, rest = key.partition("/")
        arm, _, name = rest.partition("/")
        if group in ("heldout", "needle") and "/" not in name:
            found.setdefault(arm, {})[f"{group} {name}"] = value
    return found
