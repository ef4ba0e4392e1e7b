import json

import pytest
import torch
from torch import nn

from feedworks.errors import ModelError
from feedworks.training.checkpoint import (
    load_config_json,
    load_extra,
    load_model,
    load_tensors,
    read_tensors,
    save_model,
    save_tensors,
)


class Tied(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(6, width)
        self.out = nn.Linear(width, 6, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("empty", torch.zeros(0, 2))
        self.register_buffer("empty_too", torch.zeros(0, 2))


def test_a_model_round_trips_with_tied_weights(tmp_path):
    module = Tied()
    save_model(tmp_path / "m", module, '{"width": 4}', {"valid/ndcg@10": 0.1})
    other = Tied()
    load_model(tmp_path / "m", other)
    for name, tensor in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert other.out.weight is other.table.weight
    assert load_tensors(tmp_path / "m").keys() == module.state_dict().keys()
    assert load_config_json(tmp_path / "m") == '{"width": 4}'
    assert load_extra(tmp_path / "m") == {"valid/ndcg@10": 0.1}


def test_equal_models_give_equal_bytes_of_nothing_but_numbers_and_json(tmp_path):
    module = Tied()
    for name in ("a", "b"):
        save_model(tmp_path / name, module, "{}")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + header_bytes])
    assert set(header) == {"table.weight", "count", "empty", "empty_too"}
    assert len(weights) == 8 + header_bytes + 6 * 4 * 4 + 8


def test_bfloat16_views_and_transposes_are_stored_as_values(tmp_path):
    base = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    save_tensors(tmp_path / "t.safetensors", {"transposed": base.T, "half": base.clone()[1:]})
    found = read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(found["transposed"], base.T)
    assert torch.equal(found["half"], base[1:])


def damage_weights(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def remove_config(folder):
    (folder / "config.json").unlink()


def truncate_config(folder):
    (folder / "config.json").write_text('{"format": 1,')


def other_config(folder):
    (folder / "config.json").write_text('{"hidden_size": 8}')


def other_format(folder):
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"format": 2}))


def other_types(folder):
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"extra": [1]}))


def lost_tensor(folder):
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(facts | {"tied": {"a": "nowhere"}}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_weights, r"model.safetensors is damaged \(sha256"),
        (truncate_weights, r"model.safetensors is damaged"),
        (remove_weights, r"model.safetensors is missing"),
        (remove_config, r"config.json is missing"),
        (truncate_config, r"config.json cannot be read"),
        (other_config, r"config.json is not a model config of format 1"),
        (other_format, r"config.json is not a model config of format 1"),
        (other_types, r"config.json is not a model config of format 1"),
        (lost_tensor, r"config.json names the tensor nowhere"),
    ],
)
def test_a_harmed_folder_is_refused_in_one_line(tmp_path, harm, words):
    save_model(tmp_path / "m", Tied(), "{}")
    harm(tmp_path / "m")
    with pytest.raises(ModelError, match=words) as caught:
        load_model(tmp_path / "m", Tied())
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_file_without_structure(tmp_path):
    with pytest.raises(ModelError, match=r"model folder .* is missing"):
        load_tensors(tmp_path / "absent")
    (tmp_path / "t.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ModelError, match="cannot be read"):
        read_tensors(tmp_path / "t.safetensors")


def test_another_model_is_refused(tmp_path):
    save_model(tmp_path / "m", Tied(), "{}")
    with pytest.raises(ModelError, match=r"table.weight is \(6, 4\), this model has \(6, 5\)"):
        load_model(tmp_path / "m", Tied(5))
    with pytest.raises(ModelError, match=r"missing \['bias', 'weight'\], unknown \['count'"):
        load_model(tmp_path / "m", nn.Linear(2, 2))
