"""Run the chain in a process of its own: `run_chain.py DATA OUT [key=value ...]`."""

from __future__ import annotations

import sys
from pathlib import Path

from feedworks.configuration import with_overrides
from feedworks.recochain import chain
from feedworks.recochain.config import tiny

# Seconds for a run; steps are written often, so that a kill falls between two of them.
QUICK = (
    *("model.width=16", "model.hidden=32", "model.num_layers=1", "tokenizer.codes=8", "search.beam=10"),
    *("generator.epochs=3", "joint.epochs=2", "sasrec_training.epochs=1", "sasrec.width=8"),
    *("generator.checkpoint_every_s=0", "joint.checkpoint_every_s=0"),
    *("evaluation.sweep_beams=", "evaluation.sweep_retrieved=", "evaluation.bootstrap=20"),
    "gate.min_gain=-1",
)


def run(data: Path, out: Path, *overrides: str) -> dict[str, float]:
    return chain.run(data, out, with_overrides(tiny(), [*QUICK, *overrides]))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
