"""A packaged twin scores requests as the original model does, alone, together, in any order and number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feedworks.errors import ModelError
from feedworks.mari.request import RequestReader
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.mari.scorer import Scorer

from .asked import SCHEMA, draw, scores_of, seeded_ranker, write_package

READER = RequestReader(SCHEMA)
MODEL = seeded_ranker()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("package"), MODEL, SCHEMA, "mari:abc")


@pytest.fixture(scope="module")
def scorer(package: Path) -> Scorer:
    return Scorer.load(package)


@pytest.mark.parametrize("counts", [[1], [7], [1, 1], [3, 50, 1, 20], [50] * 60], ids=str)
def test_requests_together_score_as_each_alone_by_the_original(scorer: Scorer, counts: list[int]) -> None:
    drawn = [draw(SCHEMA, count, seed) for seed, count in enumerate(counts)]
    found = scorer.score([READER.from_arrays(*each).arrays for each in drawn])
    for scores, each in zip(found, drawn, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, scores_of(MODEL, SCHEMA, *each), rtol=1e-5, atol=1e-5)


def test_earlier_scores_stay_when_the_memory_is_used_again(scorer: Scorer) -> None:
    first, second = (READER.from_arrays(*draw(SCHEMA, 5, seed)).arrays for seed in (1, 2))
    kept = scorer.score([first])[0]
    before = kept.copy()
    scorer.score([second, second])
    assert np.array_equal(kept, before)


def test_no_requests(scorer: Scorer) -> None:
    assert scorer.score([]) == []


class Recorder:
    """Stands for a twin: scores are the only input's first column, as a view of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, user: Tensor, item: Tensor, request_B: Tensor | None = None) -> Tensor:
        self.calls.append((len(user), len(item)))
        if request_B is None:
            assert len(user) == 1
        else:
            assert request_B.dtype == torch.int64
            assert len(request_B) == len(item)
            assert int(request_B.max()) == len(user) - 1
        return item[:, 0]


SMALL = RankerSchema(
    inputs=(ModelInput(name="user", side="user"), ModelInput(name="item", side="item", shape=(2,)))
)


@pytest.mark.parametrize(
    ("counts", "calls"),
    [
        ([4, 4], [(2, 8)]),
        ([4, 4, 4], [(2, 8), (1, 4)]),
        ([11], [(1, 11)]),
        ([1, 30, 9, 1], [(1, 1), (1, 30), (2, 10)]),
    ],
)
def test_a_batch_is_cut_into_calls(counts: list[int], calls: list[tuple[int, int]]) -> None:
    twin = Recorder()
    scorer = Scorer(SMALL, twin, "t", max_rows=10)
    twin.calls.clear()
    requests = [
        (np.float32(0).reshape(()), np.full((count, 2), place, np.float32))
        for place, count in enumerate(counts)
    ]
    found = scorer.score(requests)
    assert twin.calls == calls
    assert [scores.tolist() for scores in found] == [[[i]] * count for i, count in enumerate(counts)]


class Outputs(nn.Module):
    """Two outputs, as a tuple, by name or side by side, or one too many."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, *inputs: Tensor, request_B: Tensor | None = None) -> Any:
        one, other = inputs[1][:, 0], inputs[1][:, 1] * 2
        forms = {
            "tuple": (one, other),
            "of two shapes": (one.unsqueeze(1), other),
            "named": {"click": one, "like": other},
            "columns": torch.stack([one, other], dim=1),
        }
        return forms[self.form]


@pytest.mark.parametrize("form", ["tuple", "of two shapes", "named", "columns"])
def test_several_outputs(form: str) -> None:
    schema = SMALL.model_copy(update={"outputs": ("click", "like")})
    scorer = Scorer(schema, Outputs(form), "t")
    found = scorer.score([(np.zeros((), np.float32), np.array([[1, 2], [3, 4]], np.float32))])[0]
    assert found.tolist() == [[1, 4], [3, 8]]
    with pytest.raises(ModelError, match=r"returns \(3, 2\) for 3 candidates; outputs: score"):
        Scorer(SMALL, Outputs(form), "t")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ranker = seeded_ranker()

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        both = self.ranker(*inputs)
        return {"click": both[:, 0], "like": both[:, 1]}


def test_outputs_by_name_are_served(tmp_path: Path) -> None:
    scorer, asked = Scorer.load(write_package(tmp_path, Named().eval(), SCHEMA)), draw(SCHEMA, 5, 0)
    found = scorer.score([READER.from_arrays(*asked).arrays] * 2)
    for scores in found:
        np.testing.assert_allclose(scores, scores_of(MODEL, SCHEMA, *asked), rtol=1e-5, atol=1e-5)


def test_a_twin_of_another_schema_is_refused(package: Path) -> None:
    twin = Scorer.load(package)._twin
    with pytest.raises(ModelError, match="does not take what its schema says"):
        Scorer(SMALL, twin, "t")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("package.json", None, "no packaged model"),
        ("package.json", b"{", "damaged"),
        ("package.json", b"{}", "damaged"),
        ("package.json", b"[]", "damaged"),
        ("sides.json", b"{}", "not the file that was packaged"),
        ("sides.json", None, "missing"),
        ("twin/one.pt2", b"x", "not the file that was packaged"),
        ("twin/kept.safetensors", None, "missing"),
    ],
)
def test_a_damaged_package_is_refused(
    package: Path, tmp_path: Path, name: str, content: bytes | None, why: str
) -> None:
    for file in package.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(package)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=why):
        Scorer.load(tmp_path)
