import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from feedworks.errors import ConfigError, ModelError
from feedworks.storage import read_json
from feedworks.training.loop import fit

from . import toy
from .test_loop import LONG, SHORT, assert_same_bits, weights
from .toy import CONFIG, Toy

SCRIPT = Path(toy.__file__)


def start(*arguments: str, **options) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(SCRIPT), *arguments]
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def result(state_dir: Path) -> dict[str, object]:
    position = read_json(state_dir / "final" / "state.json")["position"]
    return {name: value for name, value in position.items() if name != "seconds"}


def final_bytes(state_dir: Path) -> bytes:
    return (state_dir / "final" / "tensors.safetensors").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    state_dir = tmp_path_factory.mktemp("uninterrupted") / "s"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    toy.train(state_dir, LONG)
    torch.set_num_threads(threads)
    return state_dir


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_it_ends_with_the_same_bits(tmp_path, uninterrupted, seed):
    with start("kills", str(tmp_path / "s"), "8", str(seed)) as process:
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert printed.count("killed after step") == 8
    assert final_bytes(tmp_path / "s") == final_bytes(uninterrupted)
    assert result(tmp_path / "s") == result(uninterrupted)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["final", "run.json"]


def test_a_process_of_its_own_goes_on_where_the_killed_one_was(tmp_path, uninterrupted):
    state_dir = tmp_path / "s"
    with start("train", str(state_dir)) as process:
        wait_for(lambda: any(state_dir.glob("step-00000000[2-9]*")), process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (state_dir / "final").exists()
    with start("train", str(state_dir), "checkpoint_every_s=3600") as process:
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0, printed
    assert final_bytes(state_dir) == final_bytes(uninterrupted)
    assert result(state_dir) == result(uninterrupted)


def wait_for(holds, process: subprocess.Popen[str]) -> None:
    give_up_s = time.monotonic() + 120
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


@pytest.fixture
def interrupted(tmp_path):
    """A state folder of a run that an error stopped in its third epoch."""

    def loss(module, batch):
        if module.num_calls == 18:
            raise KeyboardInterrupt
        return toy.loss(module, batch)

    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path / "s", replace(SHORT, checkpoint_every_s=0), loss=loss)
    assert sorted(path.name for path in (tmp_path / "s").glob("step-*")) == [
        "step-0000000017",
        "step-0000000018",
    ]
    return tmp_path / "s"


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def remove(path: Path) -> None:
    path.unlink()


HARM = pytest.mark.parametrize("harm", [damage, truncate, remove])
FILES = pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])


@HARM
@FILES
def test_a_damaged_state_is_passed_over_without_harm(tmp_path, interrupted, capsys, harm, name):
    harm(interrupted / "step-0000000018" / name)
    module, found = toy.train(interrupted, SHORT)
    assert "passed over" in capsys.readouterr().err
    expected, same = toy.train(tmp_path / "expected", SHORT)
    assert_same_bits(weights(module), weights(expected))
    assert found.history == same.history


def test_only_damaged_states_are_an_error(interrupted):
    for folder in interrupted.glob("step-*"):
        truncate(folder / "tensors.safetensors")
    with pytest.raises(ModelError, match=r"every training state in .* is damaged; remove it"):
        toy.train(interrupted, SHORT)


@HARM
@FILES
def test_a_damaged_result_is_an_error(tmp_path, harm, name):
    toy.train(tmp_path / "s", SHORT)
    harm(tmp_path / "s" / "final" / name)
    with pytest.raises(ModelError, match=r"final.*(damaged|missing|cannot be read)") as caught:
        toy.train(tmp_path / "s", SHORT)
    assert "\n" not in str(caught.value)


def other_order(epoch):
    return toy.batches(epoch + 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": replace(SHORT, lr=0.5)}, r"with lr=0.02 \(now 0.5\)"),
        ({"config": replace(SHORT, seed=3, epochs=9)}, r"with epochs=3 \(now 9\), seed=0 \(now 3\)"),
        ({"batches": other_order}, "with first_batch="),
        ({"monitor": "valid/x"}, "with monitor="),
        ({"num_batches": 3}, "with num_batches="),
        ({"evaluate": None}, "with monitor="),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_another_run_in_the_folder_is_refused(interrupted, changes, words, finished):
    if finished:
        toy.train(interrupted, SHORT)
    with pytest.raises(ConfigError, match=words) as caught:
        toy.train(interrupted, **({"config": SHORT} | changes))
    assert "use another" in str(caught.value)


def test_another_model_in_the_folder_is_refused(interrupted, monkeypatch):
    monkeypatch.setattr(toy, "WIDTH", 8)
    with pytest.raises(ConfigError, match="with model="):
        toy.train(interrupted, SHORT)


def test_where_it_runs_and_how_often_it_saves_may_change(tmp_path, interrupted):
    settings = replace(SHORT, checkpoint_every_s=7.0, accelerator="cpu", devices="1")
    module, _ = toy.train(interrupted, settings)
    expected, _ = toy.train(tmp_path / "expected", SHORT)
    assert_same_bits(weights(module), weights(expected))


def test_two_runs_cannot_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("feedworks.training.state._LOCK_WAIT_S", 0.2)

    def loss(module, batch):
        with pytest.raises(ConfigError, match="another process trains in"):
            toy.train(tmp_path / "s", SHORT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path / "s", SHORT, loss=loss)
    toy.train(tmp_path / "s", SHORT)


def test_who_waited_for_a_run_takes_its_result(tmp_path):
    """The second run starts while the first trains, waits for the folder, and finds it done."""
    second: list[object] = []

    def loss(module, batch):
        if not second:
            module_2 = Toy()
            second.extend([module_2, threading.Thread(target=lambda: second.append(again(module_2)))])
            second[1].start()
            time.sleep(0.3)
        return toy.loss(module, batch)

    def again(module):
        arguments = {"batches": toy.batches, "num_batches": toy.NUM_BATCHES, "evaluate": toy.evaluate}
        return fit(module, loss=toy.loss, config=SHORT, state_dir=tmp_path / "s", **arguments)

    module, first = toy.train(tmp_path / "s", SHORT, loss=loss)
    second[1].join()
    assert second[2] == first
    assert_same_bits(weights(second[0]), weights(module))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on file sizes is one of Linux")
def test_a_full_disk_is_one_line_and_the_run_goes_on_afterwards(tmp_path, uninterrupted):
    """No file may grow over 8 kB, which stops the write of the tensors as a full disk would."""
    state_dir = tmp_path / "s"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with start("train", str(state_dir), preexec_fn=limit) as process:
        printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert "ModelError: cannot write the training state to" in printed.splitlines()[-1]
    assert "File too large" in printed.splitlines()[-1]
    assert [path.name for path in state_dir.iterdir()] == ["run.json"]
    toy.train(state_dir, LONG)
    assert result(state_dir) == result(uninterrupted)


def test_an_unwritable_folder_leaves_the_states_before(interrupted, monkeypatch):
    before = {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("feedworks.training.state.write_tensors", full)
        with pytest.raises(ModelError, match=r"no space left on .*free space there and start again"):
            toy.train(interrupted, SHORT)
    assert {path: path.read_bytes() for path in interrupted.rglob("*") if path.is_file()} == before
    module, _ = toy.train(interrupted, SHORT)
    shutil.rmtree(interrupted)
    expected, _ = toy.train(interrupted, SHORT)
    assert_same_bits(weights(module), weights(expected))


def test_the_toy_holds_what_could_break_resume():
    module = Toy()
    assert CONFIG.patience
    assert CONFIG.schedule == "cosine"
    assert any(isinstance(part, torch.nn.Dropout) for part in module.modules())
    assert module.out.weight is module.table.weight
