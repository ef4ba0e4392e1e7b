"""Model folders: a Qwen3 checkpoint is converted or refused in one line; what is saved is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from feedworks.errors import ConfigError, ModelError
from feedworks.ksa import checkpoint
from feedworks.ksa.checkpoint import as_qwen3, check_qwen3, from_qwen3, load, save
from feedworks.ksa.model import Qwen3KsaForCausalLM

from . import decoders

EVERYTHING: list[int | None] = [9, None, 10, 40]  # 40 tokens in chunks of 4: all of them is W = 9 chunks
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1000.0}
IDS = decoders.tokens(2, 40)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize(
    ("shard", "dtype", "settings"),
    [
        ("5GB", torch.float32, {}),
        ("20KB", torch.float32, {"tie_word_embeddings": True}),
        ("5GB", torch.bfloat16, {"tie_word_embeddings": True}),
        ("20KB", torch.float64, {"attention_bias": True}),
        ("5GB", torch.float32, {"rope_parameters": YARN, "max_position_embeddings": 64}),
    ],
    ids=["plain", "tied-sharded", "bf16", "biased-sharded", "yarn"],
)
def test_converted_where_all_is_read_equals_transformers(
    tmp_path: Path, shard: str, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    folder = decoders.published(tmp_path, shard=shard, dtype=dtype, **settings)
    assert (folder / "model.safetensors.index.json").exists() == (shard == "20KB")
    source = Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model = from_qwen3(folder, chunk=4, windows=EVERYTHING)
    assert model.dtype == dtype
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == source.config.tie_word_embeddings
    # In fp64 the two may differ by what the order of sums makes, and by no more.
    model, source = model.double(), source.double()
    torch.testing.assert_close(logits(model), logits(source), atol=1e-10, rtol=0)
    if "rope_parameters" in settings:
        assert model.config.rope_parameters == source.config.rope_parameters
        other = from_qwen3(folder, chunk=4, windows=EVERYTHING, rope_parameters={"rope_theta": 1e6})
        assert (logits(other) - logits(source)).abs().max() > 1e-3


def test_copies_and_draws_of_what_is_added(tmp_path: Path) -> None:
    folder = decoders.published(tmp_path, attention_bias=True)
    model = from_qwen3(folder, chunk=4, summaries=2, windows=decoders.HYBRID)
    names = {name for name, _ in model.summary_parameters()}
    assert len(names) == 1 + 4 * 3 * 2
    attention = model.model.layers[2].self_attn
    for name in ("q", "k", "v"):
        own, base = getattr(attention, f"{name}_summary"), getattr(attention, f"{name}_proj")
        assert torch.equal(own.weight, base.weight)
        assert torch.equal(own.bias, base.bias)
        assert own.weight.data_ptr() != base.weight.data_ptr()
    mean_D = model.model.embed_tokens.weight.mean(0)
    torch.testing.assert_close(model.model.summary_embedding.weight, mean_D.expand(2, -1))
    drawn = from_qwen3(folder, chunk=4, windows=decoders.HYBRID, init="random", dtype=torch.bfloat16)
    weight = drawn.model.layers[0].self_attn.k_summary.weight
    assert weight.dtype == torch.bfloat16
    assert 0.2 < weight.float().std().item() < 0.4  # initializer_range is 0.3
    assert not drawn.model.layers[0].self_attn.k_summary.bias.any()
    assert model.model.layers[0].self_attn.k_proj.bias.all()


@pytest.mark.parametrize("sizes", [{"summaries": 0}, {"summary_projections": False}])
def test_converted_without_projections_of_its_own(tmp_path: Path, sizes: dict[str, Any]) -> None:
    model = from_qwen3(decoders.published(tmp_path), chunk=4, windows=decoders.HYBRID, **sizes)
    assert len(list(model.summary_parameters())) == sizes.get("summaries", 1)
    assert model.config.summary_weight == 0


def test_settings_as_they_stand_in_public_checkpoints(tmp_path: Path) -> None:
    folder = decoders.published(tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    del facts["rope_parameters"], facts["layer_types"], facts["dtype"]
    facts |= {"rope_theta": 5000, "rope_scaling": None, "torch_dtype": "float32", "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [96, 3], "top_k": 20}))
    model = from_qwen3(folder, chunk=4, windows=EVERYTHING)
    assert model.config.rope_parameters["rope_theta"] == 5000
    assert (model.generation_config.eos_token_id, model.generation_config.top_k) == ([96, 3], 20)
    torch.testing.assert_close(logits(model), logits(Qwen3ForCausalLM.from_pretrained(folder)))


def test_the_head_of_tied_weights_may_be_stored(tmp_path: Path) -> None:
    folder = decoders.published(tmp_path, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    assert from_qwen3(folder).lm_head.weight.shape == (decoders.VOCAB, 32)
    save_file(weights | {"lm_head.weight": head + 1}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        from_qwen3(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"summaries": 2, "attention_bias": True, "summary_weight": 0.25},
        {"summaries": 0, "raw_window": "token"},
        {"summary_projections": False, "summary_bypass": True},
    ],
)
def test_saved_is_read_back_bit_by_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = decoders.decoder(**settings)
    model.generation_config.eos_token_id = decoders.EOS
    save(model, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    save(model, tmp_path)  # over an earlier one; what else lies there stays
    assert (tmp_path / "tokenizer.json").exists()
    back, auto = load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    for found in (back, auto):
        assert type(found) is Qwen3KsaForCausalLM
        assert torch.equal(logits(found), logits(model))
        assert found.generation_config.eos_token_id == decoders.EOS
    assert back.config.to_dict() == model.config.to_dict()
    assert load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_saved_over_another_model_it_is_what_was_saved(tmp_path: Path) -> None:
    model = decoders.decoder()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    with torch.no_grad():
        model.model.norm.weight.fill_(3)
    save(model, tmp_path)
    assert load(tmp_path).model.norm.weight.eq(3).all()


def test_without_summaries_the_decoder_is_qwen3(tmp_path: Path) -> None:
    model = decoders.decoder(tie_word_embeddings=True)
    plain = as_qwen3(model)
    assert plain.model.embed_tokens.weight is plain.lm_head.weight
    assert plain.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()
    with torch.no_grad():
        teacher = model.lm_head(model.model.text_states(IDS, full=True))
    torch.testing.assert_close(logits(plain), teacher)
    save(plain, tmp_path)
    again = from_qwen3(tmp_path, chunk=4, windows=EVERYTHING)
    torch.testing.assert_close(logits(again), teacher, atol=1e-5, rtol=0)


def changed(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return run


def settings(**facts: Any) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return run


def cut(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


NORM = "model.norm.weight"
DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (changed(lambda w: w.pop(NORM)), "lacks the tensor model.norm.weight"),
    (changed(lambda w: [w.pop(name) for name in list(w) if "mlp" in name]), "down_proj.weight and 11 more"),
    (changed(lambda w: w.update(score=torch.zeros(3))), "has a tensor that .* has not: score"),
    (changed(lambda w: w.update({NORM: torch.zeros(5)})), r"model.norm.weight .*\(5,\), expected \(32,\)"),
    (changed(lambda w: w.update({NORM: torch.zeros(32).int()})), "model.norm.weight holds I32, expected"),
    (changed(lambda w: w[NORM][3].fill_(torch.nan)), "model.norm.weight holds NaN or infinite"),
    (changed(lambda w: w[NORM][3].fill_(-torch.inf)), "model.norm.weight holds NaN or infinite"),
    (cut, "model.safetensors cannot be read .*: copy it again"),
    (lambda folder: (folder / "model.safetensors").unlink(), "only safetensors are read"),
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "model_type is None, expected"),
    (settings(model_type="llama"), "model_type is 'llama', expected"),
    (settings(hidden_size="wide"), "hidden_size"),
    (settings(num_hidden_layers=3, layer_types=None, windows=None), "has a tensor .*layers.3.*and 10 more"),
    (settings(quantization_config={"bits": 4}), "weights are quantised"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGE)
@pytest.mark.parametrize("read", [load, from_qwen3])
def test_a_damaged_folder_is_refused_in_one_line(
    tmp_path: Path, read: Callable[[Path], Any], damage: Callable[[Path], Any], said: str
) -> None:
    if read is load:
        save(decoders.decoder(summary_projections=False), tmp_path)
    else:
        decoders.published(tmp_path)
    read(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=said) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    if read is from_qwen3 and "NaN" not in said:
        with pytest.raises(ModelError, match=said):
            check_qwen3(tmp_path)


def test_a_checkpoint_is_checked_without_its_numbers(tmp_path: Path) -> None:
    decoders.published(tmp_path)
    changed(lambda weights: weights[NORM][3].fill_(torch.nan))(tmp_path)
    assert check_qwen3(tmp_path) == 4


def index(**changes: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        facts = json.loads(path.read_text())
        facts["weight_map"] |= {NORM: changes[NORM]} if NORM in changes else changes
        path.write_text(json.dumps(facts))

    return run


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (index(**{NORM: "model-00001-of-00008.safetensors"}), "lacks the tensor model.norm.weight, which"),
        (index(**{NORM: "../secret.safetensors"}), "expected one in the same folder"),
        (index(**{NORM: "nowhere.safetensors"}), "nowhere.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "expected a JSON object"),
        (lambda folder: (folder / "model-00002-of-00008.safetensors").unlink(), "copy the whole"),
    ],
)
def test_a_damaged_index_is_refused_in_one_line(
    tmp_path: Path, damage: Callable[[Path], Any], said: str
) -> None:
    folder = decoders.published(tmp_path, shard="20KB")
    assert (folder / "model-00008-of-00008.safetensors").exists()
    damage(folder)
    with pytest.raises(ModelError, match=said):
        from_qwen3(folder)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"chunk": 0}, "chunk=0: expected a whole number from 1 on"),
        ({"chunk": "8"}, "chunk"),
        ({"summaries": -1}, "summaries=-1"),
        ({"windows": [1, 2]}, "for each of the 4 layers"),
        ({"windows": [1, 2, -3, None]}, "for each of the 4 layers"),
        ({"summary_weight": 1.5}, "summary_weight=1.5"),
        ({"window": 3}, "window=3: Qwen3KsaConfig has no such size"),
        ({"init": "zeros"}, "expected copy or random"),
    ],
)
def test_sizes_that_make_no_model(tmp_path: Path, sizes: dict[str, Any], said: str) -> None:
    folder = decoders.published(tmp_path)
    with pytest.raises(ConfigError, match=said):
        from_qwen3(folder, **sizes)


def test_of_the_other_kind(tmp_path: Path) -> None:
    folder = decoders.published(tmp_path / "qwen3")
    with pytest.raises(ModelError, match="convert it with from_qwen3"):
        load(folder)
    save(decoders.decoder(), tmp_path / "ksa")
    with pytest.raises(ModelError, match="read it with load"):
        from_qwen3(tmp_path / "ksa")
    settings(use_sliding_window=True, sliding_window=8, layer_types=None)(folder)
    with pytest.raises(ModelError, match="sliding window"):
        from_qwen3(folder)


def test_a_conversion_reads_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are drawn or held twice: the model is made empty and each tensor is read when it is due."""
    folder, made = decoders.published(tmp_path, shard="20KB"), []
    whole = Qwen3KsaForCausalLM.__init__
    monkeypatch.setattr(
        Qwen3KsaForCausalLM, "__init__", lambda self, config: made.append(whole(self, config))
    )
    reads: list[str] = []
    read = checkpoint.TensorFiles.read

    def counted(files: checkpoint.TensorFiles, name: str) -> Tensor:
        reads.append(name)
        return read(files, name)

    monkeypatch.setattr(checkpoint.TensorFiles, "read", counted)
    model = from_qwen3(folder, chunk=4, windows=decoders.HYBRID)
    assert len(made) == 1
    added = len(list(model.summary_parameters()))
    assert len(reads) == len(model.state_dict())
    assert len(set(reads)) == len(reads) - added
