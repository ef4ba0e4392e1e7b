"""Models that nobody here wrote, converted as their packages have them: equal scores, and sites found.

torch-rechub (datawhalechina) takes a dict of tensors; DeepCTR-Torch (shenweichen) takes one tensor, of which
every feature is a slice of columns, so there a wrapper joins the user's and the item's.
"""

from __future__ import annotations

import importlib
import threading
import warnings
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from feedworks.mari.convert import reparameterise

REQUEST_B = torch.tensor([0, 2, 1, 1, 2, 0, 0])
ROWS, WORDS = 7, 20


def peer(name: str):
    """A module of a peer; DeepCTR-Torch asks the package index for its newest version when it is imported."""
    with mock.patch.object(threading.Thread, "start"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"{error}; install the extra peers")


def settled(model: nn.Module) -> nn.Module:
    """Weights of a size that matters, and running statistics as after training."""
    torch.manual_seed(0)
    for tensor in model.parameters():
        nn.init.normal_(tensor, std=0.5)
    for name, tensor in model.named_buffers():
        if name.endswith("running_mean"):
            tensor.normal_()
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
    return model.eval()


def rows_of(inputs: dict[str, Tensor], sides: dict[str, str], choose) -> dict[str, Tensor]:
    return {name: choose(x) if sides[name] == "user" else x for name, x in inputs.items()}


def check(model: nn.Module, inputs: dict[str, Tensor], sides: dict[str, str], *, keyed: bool):
    """Equal for one request and for three, in single and in double precision; returns the report."""
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = model.to(dtype)
        given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}

        def call(run, of, **options):
            return run(of, **options) if keyed else run(*of.values(), **options)

        one = rows_of(given, sides, lambda x: x[:1].expand(ROWS, *x.shape[1:]))
        example = [one] if keyed else list(one.values())
        twin, report = reparameterise(model, example, sides)
        with torch.no_grad():
            scores = call(twin, rows_of(given, sides, lambda x: x[:1]))
            torch.testing.assert_close(scores, call(model, one), rtol=tolerance, atol=tolerance)
            scores = call(twin, rows_of(given, sides, lambda x: x[:3]), request_B=REQUEST_B)
            several = call(model, rows_of(given, sides, lambda x: x[:3][REQUEST_B]))
            torch.testing.assert_close(scores, several, rtol=tolerance, atol=tolerance)
            assert scores.std() > 1e-3
    return report


def cuts(report) -> list[tuple[int, int]]:
    return [(site.user_width, site.other_width) for site in report.sites if site.cut]


def sums(report) -> list[tuple[int, int]]:
    return [(site.user_width, site.other_width) for site in report.sites if site.kind == "sum"]


# Embeddings of 8 numbers: 3 fields of the user, 2 of the item, and one plain number of each.
USER, ITEM = ("u0", "u1", "u2"), ("i0", "i1")
WIDTHS = (3 * 8 + 1, 2 * 8 + 1)


def rechub_case(name: str):
    features = peer("torch_rechub.basic.features")
    ranking, tasks = peer("torch_rechub.models.ranking"), peer("torch_rechub.models.multi_task")
    sparse = [features.SparseFeature(field, WORDS, 8) for field in USER + ITEM]
    every = [*sparse, features.DenseFeature("du"), features.DenseFeature("di")]
    mlp, two = {"dims": [16, 8]}, ["classification", "classification"]
    history = [features.SequenceFeature("history", WORDS, 8, pooling="concat", shared_with="i0")]
    attention = {"dims": [16], "use_softmax": True}
    towers = [{"dims": [8]}, {"dims": [8]}]
    cases = {
        "DCNv2": lambda: ranking.DCNv2(every, 2, mlp, "parallel", use_low_rank_mixture=False),
        "DCNv2 stacked": lambda: ranking.DCNv2(every, 2, mlp, "stacked", use_low_rank_mixture=False),
        "DCNv2 low rank": lambda: ranking.DCNv2(every, 2, mlp, low_rank=4, num_experts=2),
        "DeepFM": lambda: ranking.DeepFM(every, sparse, mlp),
        "MMoE": lambda: tasks.MMOE(every, two, 3, mlp, towers),
        "PLE": lambda: tasks.PLE(every, two, 2, 1, 1, mlp, towers),
        "DIN": lambda: ranking.DIN(sparse[:3] + sparse[4:], history, [sparse[3]], mlp, attention),
    }
    model = cases[name]()
    torch.manual_seed(1)
    inputs = {field: torch.randint(WORDS, (ROWS,)) for field in USER + ITEM}
    if name == "DIN":
        inputs["history"] = torch.randint(WORDS, (ROWS, 9))
    else:
        inputs |= {"du": torch.randn(ROWS), "di": torch.randn(ROWS)}
    sides = {field: "item" if field in (*ITEM, "di") else "user" for field in inputs}
    return settled(model), inputs, sides


# Products cut by side: (user, item) columns, in the order of the graph.
RECHUB = {
    "DCNv2": [WIDTHS] * 2,  # the first cross layer, the tower beside it
    "DCNv2 stacked": [WIDTHS],
    "DCNv2 low rank": [WIDTHS] * 5,  # two gates and two experts, the tower beside them
    "DeepFM": [(24, 16), WIDTHS],
    "MMoE": [WIDTHS] * 5,  # three experts, two gates
    "PLE": [WIDTHS] * 6,  # three experts, three gates
    "DIN": [(8, 16), (24, 24)],  # k (W2 - W3) beside q (W1 + W3) and (q * k) W4; the tower
}


@pytest.mark.parametrize("name", RECHUB)
def test_torch_rechub(name):
    report = check(*rechub_case(name), keyed=True)
    assert cuts(report) == RECHUB[name]
    # An FM sums its fields and their squares, those of the user once.
    assert not name.endswith("FM") or sums(report)[:2] == [(3, 2)] * 2
    assert all(refusal.reason for refusal in report.refusals)


class Wide(nn.Module):
    """One tensor of columns of features, those of the user first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.model(torch.cat([user, item], dim=1))


def deepctr_case(name: str):
    given, models = peer("deepctr_torch.inputs"), peer("deepctr_torch.models")
    tasks = peer("deepctr_torch.models.multitask")
    user = [given.SparseFeat(field, WORDS, 8) for field in USER] + [given.DenseFeat("du", 1)]
    item = [given.SparseFeat(field, WORDS, 8) for field in ITEM] + [given.DenseFeat("di", 1)]
    every = user + item
    deep = {"dnn_hidden_units": (16, 8), "dnn_use_bn": True}
    two = {"task_types": ["binary"] * 2, "task_names": ["click", "like"]}
    experts = {"expert_dnn_hidden_units": (16,), "gate_dnn_hidden_units": (), "tower_dnn_hidden_units": (8,)}
    sequence = given.VarLenSparseFeat(
        given.SparseFeat("hist_i0", WORDS, 8, embedding_name="i0"), maxlen=4, length_name="length"
    )
    cases = {
        "DCN": lambda: models.DCN(every, every, **deep),
        "DCNv2": lambda: models.DCN(every, every, cross_parameterization="matrix", **deep),
        "DCN-Mix": lambda: models.DCNMix(every, every, low_rank=4, num_experts=2, **deep),
        "DeepFM": lambda: models.DeepFM(every, every, **deep),
        "MMoE": lambda: tasks.MMOE(every, num_experts=3, **experts, **two),
        "PLE": lambda: tasks.PLE(every, **experts, **two),
        "DIN": lambda: models.DIN(
            [user[0], sequence, *item[:1]], ["i0"], dnn_hidden_units=(16, 8), att_hidden_size=(16, 8)
        ),
    }
    model = cases[name]()
    torch.manual_seed(1)
    words = torch.randint(1, WORDS, (ROWS, 5)).float()
    numbers = torch.randn(ROWS, 2)
    inputs = {
        "user": torch.cat([words[:, :3], numbers[:, :1]], dim=1),
        "item": torch.cat([words[:, 3:], numbers[:, 1:]], dim=1),
    }
    if name == "DIN":
        lengths = torch.randint(1, 5, (ROWS, 1)).float()
        inputs = {
            "user": torch.cat([words, lengths], dim=1),
            "item": torch.randint(1, WORDS, (ROWS, 1)).float(),
        }
    return settled(Wide(model)), inputs, {"user": "user", "item": "item"}


DEEPCTR = {
    "DCN": [(1, 1), WIDTHS, WIDTHS],  # the linear part's plain numbers, the tower, the first cross layer
    "DCNv2": [(1, 1), WIDTHS, WIDTHS],
    "DCN-Mix": [(1, 1), *[WIDTHS] * 5],
    "DeepFM": [(1, 1), WIDTHS],
    "MMoE": [WIDTHS] * 5,
    "PLE": [WIDTHS] * 6,
    "DIN": [(8, 16), (8, 16)],
}


@pytest.mark.parametrize("name", DEEPCTR)
def test_deepctr_torch(name):
    report = check(*deepctr_case(name), keyed=False)
    assert cuts(report) == DEEPCTR[name]
    # Every linear part sums the first-order weights of its fields; an FM two more.
    fields = {"DCN": 1, "DCNv2": 1, "DCN-Mix": 1, "DeepFM": 3}.get(name, 0)
    assert sums(report)[:fields] == [(3, 2)] * fields
    assert all(refusal.reason for refusal in report.refusals)
