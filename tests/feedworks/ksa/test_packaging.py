"""The folder that serving loads: sealed, named by its contents, refused where it is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from feedworks.errors import ModelError
from feedworks.ksa.checkpoint import save
from feedworks.ksa.config import tiny
from feedworks.ksa.packaging import load_package, write_package
from feedworks.serving.package import seal
from feedworks.storage import read_json

from . import served


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    save(served.model(), tmp_path / "trained")
    return tmp_path / "trained", served.write_tokenizer(tmp_path / "tokenizer")


def test_a_package_loads_as_it_was_trained(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    config = tiny()
    tag = write_package(tmp_path / "package", *parts, config, {"test/loss": 1.5})
    loaded = load_package(tmp_path / "package", "cpu")
    assert (loaded.tag, loaded.limits) == (tag, config.package)
    token_BT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    assert torch.equal(loaded.model(token_BT).logits, served.model()(token_BT).logits)
    assert loaded.vocabulary.has_chat
    assert tag in (tmp_path / "package" / "README.md").read_text()
    # Metrics do not change what it computes.
    assert write_package(tmp_path / "again", *parts, config, {}) == tag


def test_weights_of_another_type(tmp_path: Path) -> None:
    from dataclasses import replace

    folder = served.write_package(tmp_path / "model", replace(served.LIMITS, dtype="bfloat16"))
    assert load_package(folder, "cpu").model.dtype == torch.bfloat16


def test_a_tokenizer_that_is_too_large(tmp_path: Path, parts: tuple[Path, Path]) -> None:
    from .decoders import decoder

    save(decoder(vocab_size=100), tmp_path / "small")
    with pytest.raises(ModelError, match="the model 100"):
        write_package(tmp_path / "package", tmp_path / "small", parts[1], tiny(), {})
    (parts[0] / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        write_package(tmp_path / "package", *parts, tiny(), {})


@pytest.mark.parametrize("limits", [None, {}, {"max_streams": 0}, {"frob": 1}, "many"])
def test_limits_that_are_none(tmp_path: Path, limits: object) -> None:
    folder = served.write_package(tmp_path / "model")
    seal(folder, str(read_json(folder / "package.json")["tag"]), {"limits": limits})
    if limits == {}:
        assert load_package(folder, "cpu").limits.max_streams == 8  # what is not told is as in the settings
        return
    with pytest.raises(ModelError, match=r"package\.json"):
        load_package(folder, "cpu")
