"""RecoChain (arXiv 2604.25787): the service under load, `python -m feedworks.recochain.bench serve`.

Every provider is a server in a process of its own with the same model; this process sends the same requests
to them in turns, in short slices, so that a busy machine is equally busy for all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from feedworks.metrics.latency import device_label, print_rows
from feedworks.recochain.catalogue import Catalogue
from feedworks.serving.load import Load, load_rows, merge, run_load
from feedworks.serving.server import running_server

OURS = "feedworks"
TARGETS = {
    OURS: "feedworks.recochain.service:RecoChainService",
    "bentoml_unbatched": "feedworks.recochain.peer_service:Unbatched",
    "bentoml_batchable": "feedworks.recochain.peer_service:Batchable",
}
NUM_HISTORIES = 512
HISTORY_LENGTHS = (2, 20)
K = 10
QUERIES: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    OURS: lambda history: {"history": history, "k": K},
    "bentoml_unbatched": lambda history: {"history": history, "k": K},
    "bentoml_batchable": lambda history: {"histories": [history]},
}


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--clients", type=int, multiple=True, default=(1, 16), help="may be repeated")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="of load on each provider")
@click.option("--rounds", type=int, default=4, show_default=True, help="slices that the seconds are cut into")
@click.option("--workers", type=int, default=1, show_default=True, help="processes of each server")
@click.option("--threads", type=int, default=1, show_default=True, help="threads of torch in each of them")
@click.option("--ours-only", is_flag=True, help="leave out the peers")
@click.option("--seed", type=int, default=0, show_default=True)
def serve(
    model: Path,
    clients: Sequence[int],
    seconds: float,
    rounds: int,
    workers: int,
    threads: int,
    ours_only: bool,
    seed: int,
) -> None:
    """POST /recommend under load, against the framework's own ways; closed loop."""
    histories = random_histories(model, seed)
    bodies = {
        name: [json.dumps(query(history)).encode() for history in histories]
        for name, query in QUERIES.items()
    }
    environment = {
        "FEEDWORKS_MODEL_DIR": str(model.resolve()),
        "FEEDWORKS_WORKERS": str(workers),
        "OMP_NUM_THREADS": str(threads),
    }
    device = f"{device_label()}, {workers} workers x {threads} threads"
    names = [OURS] if ours_only else list(TARGETS)
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = {
            name: stack.enter_context(running_server(TARGETS[name], environment, logs / name))
            for name in names
        }
        for count in clients:
            loads: dict[str, list[Load]] = {name: [] for name in names}
            for turn in range(rounds):
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    url = f"{addresses[name]}/recommend"
                    slice_s = seconds / rounds
                    loads[name].append(
                        run_load(url, bodies[name], clients=count, duration_s=slice_s, warmup_s=1.0)
                    )
            merged = {name: merge(found) for name, found in loads.items()}
            print_rows(load_rows("serve_recommend", device, merged, OURS))


def random_histories(model: Path, seed: int) -> list[list[int]]:
    """Draw item ids by their training counts, as a model's users would send them."""
    catalogue = Catalogue.load(model)
    count_N = catalogue.count_N[: catalogue.num_known].double().numpy() + 1e-9
    item_id_N = catalogue.item_id_N.numpy()
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*HISTORY_LENGTHS, size=NUM_HISTORIES, endpoint=True)
    return [rng.choice(item_id_N, size=length, p=count_N / count_N.sum()).tolist() for length in lengths]
