"""MaRI (arXiv 2602.23105): the ranker that a config and a schema ask for."""

from __future__ import annotations

from torch import nn

from feedworks.errors import ModelError
from feedworks.mari.config import RankerConfig
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.nn.rankers import DIN, MLP, DCNv2, Features, MMoE, PPNet, Tower
from feedworks.training.seed import seed_everything

KNOWN = ("user", "item", "history", "user_number", "item_number")


def build_ranker(config: RankerConfig, schema: RankerSchema, *, seed: int = 0) -> nn.Module:
    """Build an untrained ranker whose `forward` takes the schema's inputs.

    Args:
        config: architecture and widths.
        schema: ids `user` (B, U) and `item` (B, I), and where there are such `history` (B, L) for `din` and
            the numbers `user_number` (B, P) and `item_number` (B, Q), in this order.
        seed: of the weights; also seeds the global streams.

    Raises:
        ModelError: the schema has other inputs than the architecture can take.
    """
    given = {each.name: each for each in schema.inputs}
    _require_known(config, list(given))
    features = Features(
        user_sizes=_sizes(given["user"]),
        item_sizes=_sizes(given["item"]),
        width=config.width,
        user_numbers=given["user_number"].width if "user_number" in given else 0,
        item_numbers=given["item_number"].width if "item_number" in given else 0,
    )
    seed_everything(seed)
    tower = _tower(config, config.hidden)
    match config.arch:
        case "mlp":
            return MLP(features, tower)
        case "mmoe":
            expert = _tower(config, config.expert_hidden)
            num_tasks = len(schema.outputs)
            return MMoE(features, expert, tower, num_experts=config.num_experts, num_tasks=num_tasks)
        case "din":
            return DIN(features, tower, attention=config.attention, has_history="history" in given)
        case "dcn":
            return DCNv2(features, tower, num_cross=config.num_cross)
        case "ppnet":
            return PPNet(features, tower, gate_hidden=config.gate_hidden)


def _tower(config: RankerConfig, hidden: tuple[int, ...]) -> Tower:
    return Tower(hidden=hidden, dropout=config.dropout, batch_norm=config.batch_norm)


def _sizes(ids: ModelInput) -> tuple[int, ...]:
    """The size of each field; one size may stand for all."""
    if ids.dtype != "int64" or len(ids.shape) != 1 or not ids.sizes:
        raise ModelError(f"input {ids.name}: a ranker of this house takes ids (B, fields) with their sizes")
    return ids.sizes if len(ids.sizes) == ids.shape[0] else ids.sizes * ids.shape[0]


def _require_known(config: RankerConfig, names: list[str]) -> None:
    allowed = [name for name in KNOWN if name != "history" or config.arch == "din"]
    expected = [name for name in allowed if name in names]
    if names != expected or not {"user", "item"} <= set(names):
        raise ModelError(
            f"ranker.arch={config.arch} takes the inputs user and item, and of {', '.join(allowed[2:])} what "
            f"there is, in this order; the schema has {', '.join(names)}"
        )
