"""The proof of equality accepts a true twin and refuses a wrong one; programs survive their files."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feedworks.errors import ModelError
from feedworks.mari import Twin, flops, reparameterise
from feedworks.mari.onnx_file import save_onnx, save_twin
from feedworks.mari.programs import load_program, save_program
from feedworks.mari.samples import draw, export_ranker, tiled
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.mari.scorer import Scorer
from feedworks.mari.verify import requests_apart, swapped_pairs, verify, verify_onnx

SCHEMA = RankerSchema(
    inputs=(
        ModelInput(name="item", side="item", shape=(24,)),
        ModelInput(name="user", side="user", shape=(40,)),
        ModelInput(name="ids", side="user", dtype="int64", shape=(3,), sizes=(9, 4, 2)),
    )
)
SEVERAL = draw(SCHEMA, [7, 0, 5, 1], seed=3)


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 8)
        self.net = nn.Sequential(
            nn.BatchNorm1d(88), nn.Linear(88, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1)
        )

    def forward(self, item: Tensor, user: Tensor, ids: Tensor) -> Tensor:
        x = torch.cat([user.float(), item, self.embedding(ids).flatten(1)], dim=1)
        return self.net(x).squeeze(1)


@pytest.fixture(scope="module")
def pair():
    model = Ranker().eval()
    program = export_ranker(model, SCHEMA)
    twin, _ = reparameterise(program, tiled(SCHEMA, draw(SCHEMA, [5])), SCHEMA.sides)
    return program, twin


def test_a_true_twin_is_equal_in_every_type(pair):
    found = verify(*pair, SCHEMA, [draw(SCHEMA, [50]), SEVERAL])
    assert [(each.dtype, each.graph) for each in found] == [
        (dtype, graph) for graph in ("one", "many") for dtype in ("float32", "bfloat16", "float16")
    ]
    assert all(each.equal for each in found), found
    assert all(each.twin_error < 1e-5 for each in found if each.dtype == "float32")


def test_a_twin_with_a_wrong_column_is_refused(pair):
    program, _ = pair
    twin, _ = reparameterise(program, tiled(SCHEMA, draw(SCHEMA, [5])), SCHEMA.sides)
    name = next(
        name for name in twin.state_dict() if name.startswith("cut_") and twin.get_buffer(name).ndim == 2
    )
    twin.get_buffer(name)[:, 5] += 0.1
    assert not all(each.equal for each in verify(program, twin, SCHEMA, [draw(SCHEMA, [50])]))


def test_swapped_pairs_are_those_of_a_brute_force():
    torch.manual_seed(0)
    for _ in range(50):
        truth = torch.randint(12, (30,)).float()
        other = truth + torch.randn(30) * 2
        request = torch.randint(3, (30,))
        expected = sum(
            any(
                request[i] == request[j] and truth[i] - truth[j] >= 3 and other[i] <= other[j]
                for j in range(30)
            )
            for i in range(30)
        )
        assert swapped_pairs(truth[:, None], other[:, None], request, gap=2.5) == expected


def test_flops_are_those_of_the_formula(pair):
    program, twin = pair
    sample = draw(SCHEMA, [100])
    later = 2 * 100 * (16 * 8 + 8)
    assert flops.counted(program, tiled(SCHEMA, sample)) == 2 * 100 * 88 * 16 + later
    assert flops.counted(twin.programs[0], sample.inputs) == 2 * (64 + 100 * 24) * 16 + later


@pytest.mark.parametrize("other", [1, 40, 4000])
def test_the_ratio_grows_with_rows_and_with_the_users_share(other: int):
    by_rows = [flops.ratio(400, other, rows) for rows in (1, 2, 10, 1000)]
    by_width = [flops.ratio(width, other, 100) for width in (0, 1, 10, 1000)]
    assert by_rows == sorted(by_rows)
    assert by_width == sorted(by_width)
    assert min(by_rows + by_width) == 1.0


def test_a_saved_twin_scores_the_same_and_merges_back(pair, tmp_path):
    _, twin = pair
    twin.save(tmp_path)
    again = Twin.load(tmp_path)
    sample = draw(SCHEMA, [6], seed=1)
    assert torch.equal(again(*sample.inputs), twin(*sample.inputs))
    several = {"request_B": SEVERAL.request_B}
    assert torch.equal(again(*SEVERAL.inputs, **several), twin(*SEVERAL.inputs, **several))
    own = Ranker().state_dict()
    assert own.keys() == again.merged_state().keys()
    assert all(torch.equal(again.merged_state()[name], tensor) for name, tensor in own.items())


def test_onnx_scores_the_same(pair, tmp_path):
    program, twin = pair
    save_twin(twin, tmp_path)
    samples = [*(draw(SCHEMA, [rows]) for rows in (1, 2, 9)), SEVERAL]
    found = verify_onnx(program, tmp_path, SCHEMA, samples)
    assert [(each.dtype, each.graph) for each in found] == [("onnx", "one")] * 3 + [("onnx", "many")]
    assert all(each.equal for each in found), found
    save_onnx(twin.programs[1], tmp_path / "one.onnx")
    (tmp_path / "many.onnx").unlink()
    with pytest.raises(ModelError, match=r"many.onnx.*cannot be read"):
        verify_onnx(program, tmp_path, SCHEMA, samples)


class Share(nn.Module):
    """Each candidate's share among all rows."""

    def __init__(self, ranker: nn.Module) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, item: Tensor, user: Tensor, ids: Tensor) -> Tensor:
        return self.ranker(item, user, ids).softmax(dim=0)


def test_requests_that_look_at_each_other_are_told_from_those_that_do_not(pair):
    assert requests_apart(pair[0], SCHEMA, [SEVERAL])
    share = export_ranker(Share(Ranker()).eval(), SCHEMA)
    assert not requests_apart(share, SCHEMA, [SEVERAL])
    assert requests_apart(share, SCHEMA, [draw(SCHEMA, [9])])


def test_requests_that_look_at_each_other_are_scored_apart():
    model = Share(Ranker()).eval()
    twin, _ = reparameterise(model, tiled(SCHEMA, draw(SCHEMA, [5])), SCHEMA.sides)
    samples = [draw(SCHEMA, [rows], seed=rows) for rows in (4, 7)]
    requests = [
        [x.numpy()[0] if i.of_user else x.numpy() for x, i in zip(s.inputs, SCHEMA.inputs, strict=True)]
        for s in samples
    ]
    expected = [model(*tiled(SCHEMA, sample)).detach().numpy()[:, None] for sample in samples]
    found = Scorer(SCHEMA, twin, "apart", merge=False).score(requests)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    merged = Scorer(SCHEMA, twin, "together").score(requests)
    assert abs(merged[0] - expected[0]).max() > 1e-3


@pytest.mark.parametrize("rows", [0, 1, 2, 1000])
def test_any_number_of_rows_and_requests(pair, rows: int):
    program, twin = pair
    sample = draw(SCHEMA, [rows])
    expected = program.module(check_guards=False)(*tiled(SCHEMA, sample)) if rows else torch.zeros(0)
    torch.testing.assert_close(twin(*sample.inputs), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        twin(*sample.inputs, request_B=sample.request_B), expected, rtol=1e-5, atol=1e-5
    )


def test_a_user_of_two_rows_in_one_request_is_refused(pair):
    _, twin = pair
    with pytest.raises(ValueError, match="give 1, or the request of each row"):
        twin(*SEVERAL.inputs)
    with pytest.raises(ValueError, match="2 inputs; expected 3: item, user, ids"):
        twin(*SEVERAL.inputs[:2])


class TestFiles:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ModelError, match="no such file"):
            load_program(tmp_path / "model.pt2")

    @pytest.mark.parametrize("keep", [0, 10, 1000, -100])
    def test_a_cut_file(self, pair, tmp_path, keep: int):
        path = tmp_path / "model.pt2"
        save_program(pair[0], path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(ModelError, match="cannot be read"):
            load_program(path)

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [
            ("sample_inputs/model.pt", b"", b"anything"),
            ("model.json", b"positive=True", b"positive=().__class__"),
            ("model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true'),
        ],
    )
    def test_what_could_run_code_is_not_read(self, pair, tmp_path, name: str, old: bytes, new: bytes):
        good, bad = tmp_path / "good.pt2", tmp_path / "bad.pt2"
        save_program(pair[0], good)
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith(name):
                    assert old in content
                    content = content.replace(old, new) if old else new
                target.writestr(entry.filename, content)
        load_program(good)
        with pytest.raises(ModelError, match="could run code"):
            load_program(bad)

    def test_no_path_of_this_machine_is_in_a_file(self, pair, tmp_path):
        save_program(pair[0], tmp_path / "model.pt2")
        assert b"site-packages" not in (tmp_path / "model.pt2").read_bytes()
