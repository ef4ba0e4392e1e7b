"""A pod that is killed in the middle of training: the next one of its Job goes on to the same weights."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .jobs import Workplace
from .kubectl import kubectl, wait_for
from .papers import Papers
from .tasks import Task, changed

pytestmark = [pytest.mark.kind, pytest.mark.timeout(900)]

# The state is written after every step, so that there is something to lose and to go on from.
SETTINGS = ["generator.epochs=12", "generator.patience=12", "generator.checkpoint_every_s=0"]
KILLED_AT_STEP = 6


@pytest.fixture(scope="module")
def training(paper: Papers) -> Task:
    return paper("recochain").tasks["train-generator"]


@pytest.fixture(scope="module")
def undisturbed(training: Task, work: Workplace) -> dict[str, str]:
    """Checksums of what the training makes if nobody kills it."""
    out = work.path / "undisturbed"
    work.run(
        "undisturbed", training.image, changed(training, out, SETTINGS), environment=training.environment
    )
    return work.checksums(out / "generator")


def states(work: Workplace, out: Path) -> list[int]:
    """Steps after which a training state lies on the claim."""
    found = work.sh(f"find /workspace/.state{out} -name 'step-*' -not -name '*tmp*'", check=False)
    return [int(number) for number in re.findall(r"step-(\d+)$", found, flags=re.MULTILINE)]


@pytest.mark.parametrize("way", ["SIGKILL", "deleted by force"])
def test_the_next_pod_goes_on_to_the_same_weights(
    training: Task, undisturbed: dict[str, str], work: Workplace, way: str
) -> None:
    name = f"killed-{way.lower().replace(' ', '-')}"
    out = work.path / name
    spec = work.pod(training.image, changed(training, out, SETTINGS), environment=training.environment)
    work.start(name, spec, retries=2)

    def far_enough() -> list[int] | None:
        found = states(work, out)
        return found if found and max(found) >= KILLED_AT_STEP else None

    wait_for(far_enough, "a state of the training", within_s=180, namespace=work.namespace)
    (pod,) = [each["metadata"]["name"] for each in work.pods(name)]
    if way == "SIGKILL":
        # All processes of the container but the first, a shell that then ends with code 137.
        kubectl("exec", pod, "--", "sh", "-c", "kill -9 -1", namespace=work.namespace, check=False)
    else:
        kubectl("delete", "pod", pod, "--grace-period=0", "--force", namespace=work.namespace)
    assert work.sh(f"[ -e {out}/generator ] || echo nothing") == "nothing\n"

    succeeded, said = work.end(name, within_s=300)
    assert succeeded, said
    *first, last = work.pods(name)
    assert last["metadata"]["name"] != pod
    if way == "SIGKILL":
        ended = first[0]["status"]["containerStatuses"][0]["state"]["terminated"]
        assert ended["exitCode"] == 137
    counts = [int(count) for count in re.findall(r"train: +(\d+)/\d+", said)]
    assert counts, said
    assert min(counts) >= KILLED_AT_STEP, said
    assert work.checksums(out / "generator") == undisturbed
    assert states(work, out) == []
