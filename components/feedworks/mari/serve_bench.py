"""MaRI (arXiv 2602.23105): the service under load, `python -m feedworks.mari.bench serve`.

Every provider is a server in a process of its own with the same weights; this process sends requests with
the same numbers to them in turns, in short slices, so that a busy machine is equally busy for all. First
all must give the same scores.

Shape legend: B rows, U numbers of the user, I of an item.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from feedworks.errors import FeedworksError
from feedworks.mari.convert import reparameterise
from feedworks.mari.samples import draw, tiled
from feedworks.mari.schema import SIDES_FILE, TWIN_FOLDER, ModelInput, RankerSchema
from feedworks.mari.wire import pack_request, unpack_scores
from feedworks.metrics.latency import device_label, print_rows
from feedworks.serving.load import JSON, Load, load_rows, merge, run_load
from feedworks.serving.package import seal
from feedworks.serving.server import running_server

USER_WIDTH, ITEM_WIDTH = 32, 32
WIDTH = USER_WIDTH + ITEM_WIDTH
HIDDEN = (256, 128)
NUM_REQUESTS = 32
PLAIN = "plain.safetensors"
BYTES = "application/octet-stream"
SCHEMA = RankerSchema(
    inputs=(
        ModelInput(name="user", side="user", shape=(USER_WIDTH,)),
        ModelInput(name="item", side="item", shape=(ITEM_WIDTH,)),
    )
)
Numbers = npt.NDArray[np.float32]


class Ranker(nn.Module):
    """64 -> 256 -> 128 -> 1, the user's 32 numbers first."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, *HIDDEN)
        layers = [
            layer
            for width, following in zip(widths, HIDDEN, strict=False)
            for layer in (nn.Linear(width, following), nn.ReLU())
        ]
        self.layers = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Score rows `(B, U)` and `(B, I)`."""
        return self.score_rows(torch.cat([user, item], dim=1))

    def score_rows(self, row_BF: Tensor) -> Tensor:
        """Score rows of all numbers."""
        score_B1: Tensor = self.layers(row_BF)
        return score_B1[:, 0]


class _Provider(NamedTuple):
    target: str
    path: str
    media_type: str
    body: Callable[[Numbers, Numbers], bytes]
    scores: Callable[[bytes], Any]


def _json(name: str, body: Callable[[Numbers, Numbers], dict[str, Any]]) -> _Provider:
    return _Provider(
        f"feedworks.mari.peer_service:{name}",
        "/score",
        JSON,
        lambda user, item: json.dumps(body(user, item)).encode(),
        json.loads,
    )


def _rows(user_U: Numbers, item_BI: Numbers) -> dict[str, Any]:
    user_BU = np.broadcast_to(user_U, (len(item_BI), len(user_U)))
    return {"rows": np.concatenate([user_BU, item_BI], axis=1).tolist()}


OURS = "feedworks_bytes"
SERVICE = "feedworks.mari.service:MariService"
PROVIDERS = {
    OURS: _Provider(
        SERVICE,
        "/raw/score",
        BYTES,
        lambda user, item: pack_request(SCHEMA, {"user": user}, {"item": item}),
        lambda answer: unpack_scores(answer)[:, 0],
    ),
    "feedworks_json": _Provider(
        SERVICE,
        "/score",
        JSON,
        lambda user, item: json.dumps(
            {"user": {"user": user.tolist()}, "candidates": {"item": item.tolist()}}
        ).encode(),
        lambda answer: json.loads(answer)["scores"],
    ),
    "bentoml_lists": _json("Lists", _rows),
    "bentoml_arrays": _json("Arrays", _rows),
    "bentoml_tiling": _json("Tiling", lambda user, item: {"user": user.tolist(), "item": item.tolist()}),
}


@click.command()
@click.option("--clients", type=int, multiple=True, default=(1, 16, 64), help="may be repeated")
@click.option("--candidates", type=int, default=100, show_default=True, help="in a request")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="of load on each provider")
@click.option("--rounds", type=int, default=5, show_default=True, help="slices that the seconds are cut into")
@click.option("--steady", type=float, default=0.0, help="seconds of a last run of bytes alone, 16 clients")
@click.option("--workers", type=int, default=1, show_default=True, help="processes of each server")
@click.option("--threads", type=int, default=1, show_default=True, help="threads of torch in each of them")
@click.option("--seed", type=int, default=0, show_default=True)
def serve(
    clients: Sequence[int],
    candidates: int,
    seconds: float,
    rounds: int,
    steady: float,
    workers: int,
    threads: int,
    seed: int,
) -> None:
    """POST /raw/score and /score under load, against the framework's own ways; closed loop."""
    requests = random_requests(candidates, seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = {
            "FEEDWORKS_MODEL_DIR": str(write_ranker(folder / "model", seed)),
            "FEEDWORKS_WORKERS": str(workers),
            "OMP_NUM_THREADS": str(threads),
        }
        targets = {provider.target for provider in PROVIDERS.values()}
        addresses = {
            target: stack.enter_context(
                running_server(target, environment, folder / target.rpartition(":")[2])
            )
            for target in sorted(targets)
        }
        run = _Run(addresses, requests, f"{device_label()}, {workers} workers x {threads} threads, {_http()}")
        run.compare()
        for count in clients:
            print_rows(run.measure(count, seconds, rounds))
        if steady:
            load = run.load(OURS, 16, steady)
            print_rows(load_rows("serve_score_steady", run.device, {OURS: load}, OURS))


class _Run:
    """Running servers and what is asked of them."""

    def __init__(
        self, addresses: Mapping[str, str], requests: Sequence[tuple[Numbers, Numbers]], device: str
    ) -> None:
        self.device = device
        self._requests = requests
        self._urls = {name: addresses[each.target] + each.path for name, each in PROVIDERS.items()}
        self._bodies = {
            name: [each.body(*request) for request in requests] for name, each in PROVIDERS.items()
        }

    def compare(self) -> None:
        """Check that all give the same scores.

        Raises:
            FeedworksError: one does not.
        """
        for number in range(len(self._requests)):
            found = {name: self._ask(name, number) for name in PROVIDERS}
            for name, scores in found.items():
                if not np.allclose(scores, found[OURS], rtol=1e-5, atol=1e-5):
                    raise FeedworksError(f"{name} and {OURS} score request {number} differently")

    def measure(self, clients: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
        """Rows of all providers under the same load."""
        names = list(PROVIDERS)
        loads: dict[str, list[Load]] = {name: [] for name in names}
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                loads[name].append(self.load(name, clients, seconds / rounds))
        merged = {name: merge(found) for name, found in loads.items()}
        return load_rows("serve_score", self.device, merged, OURS)

    def load(self, name: str, clients: int, seconds: float) -> Load:
        """One slice of load on one provider."""
        return run_load(
            self._urls[name],
            self._bodies[name],
            clients=clients,
            duration_s=seconds,
            warmup_s=0.5,
            media_type=PROVIDERS[name].media_type,
        )

    def _ask(self, name: str, number: int) -> Any:
        headers = {"Content-Type": PROVIDERS[name].media_type}
        request = urllib.request.Request(self._urls[name], self._bodies[name][number], headers)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=60) as answer:
            return PROVIDERS[name].scores(answer.read())


def random_requests(candidates: int, seed: int) -> list[tuple[Numbers, Numbers]]:
    """Draw users `(U,)` and their candidates `(B, I)`."""
    rng = np.random.default_rng(seed)
    return [
        (
            rng.standard_normal(USER_WIDTH).astype(np.float32),
            rng.standard_normal((candidates, ITEM_WIDTH)).astype(np.float32),
        )
        for _ in range(NUM_REQUESTS)
    ]


def write_ranker(folder: Path, seed: int) -> Path:
    """Write a ranker with random weights: the package of its twin, and beside it the weights as they are."""
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    model = Ranker().eval()
    twin = reparameterise(model, tiled(SCHEMA, draw(SCHEMA, [3])), SCHEMA.sides).twin
    twin.save(folder / TWIN_FOLDER)
    SCHEMA.write(folder / SIDES_FILE)
    seal(folder, "mari:bench", {"merge_requests": True})
    save_file(model.state_dict(), folder / PLAIN)
    return folder


def load_plain(folder: Path) -> Ranker:
    """The ranker that `write_ranker` wrote, as it was before the conversion."""
    from safetensors.torch import load_file

    model = Ranker()
    model.load_state_dict(load_file(folder / PLAIN))
    return model.eval()


def _http() -> str:
    """What reads HTTP in the servers: uvicorn takes the faster parts where they are installed."""
    parts = (("httptools", "h11"), ("uvloop", "asyncio"))
    return " and ".join(fast if importlib.util.find_spec(fast) else slow for fast, slow in parts)
