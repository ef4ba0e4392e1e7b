import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from feedworks.errors import DataError, FeedworksError
from feedworks.storage import _exchange, atomic_folder, only_writer, read_json, write_bytes, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole_under_new_parents(tmp_path):
    target = tmp_path / "a" / "b"
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x").write_text("1")
        assert not target.exists()
    assert (target / "deep" / "x").read_text() == "1"
    assert names(target.parent) == ["b"]


def test_a_good_result_is_replaced_as_a_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "r") as folder:
            (folder / name).write_text(name)
    assert names(tmp_path / "r") == ["new"]
    assert names(tmp_path) == ["r"]


def test_an_error_leaves_the_earlier_result(tmp_path):
    with atomic_folder(tmp_path / "r") as folder:
        (folder / "old").write_text("old")
    with pytest.raises(FileNotFoundError, match="absent"), atomic_folder(tmp_path / "r") as folder:
        (folder / "new").write_text((tmp_path / "absent").read_text())
    assert names(tmp_path / "r") == ["old"]
    assert names(tmp_path) == ["r"]


def test_without_the_exchange_of_names_the_result_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("feedworks.storage._exchange", lambda first, second: False)
    test_a_good_result_is_replaced_as_a_whole(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is a call of Linux")
def test_linux_exchanges_names_in_one_call(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was-{name}").touch()
    assert _exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["was-b"]
    assert not _exchange(tmp_path / "a", tmp_path / "absent")


def test_what_a_killed_writer_left_goes_and_a_living_writer_stays(tmp_path):
    script = (
        "import sys, time\nfrom feedworks.storage import atomic_folder\n"
        f"with atomic_folder({str(tmp_path / 'r')!r}) as folder:\n"
        "    (folder / 'half').touch(); print('ready', flush=True); time.sleep(60)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == b"ready\n"
    with atomic_folder(tmp_path / "r"):
        assert len(names(tmp_path)) == 2, "the folder of a living writer was removed"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 2
    with atomic_folder(tmp_path / "r"):
        pass
    assert names(tmp_path) == ["r"]


def test_results_are_readable_by_others_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "r") as folder:
            write_json(folder / "x.json", {})
            (folder / "deep").mkdir()
            save_file({"x": torch.zeros(2)}, folder / "deep" / "x.safetensors")  # makes private files
        assert (tmp_path / "r").stat().st_mode & 0o777 == 0o755
        assert (tmp_path / "r" / "x.json").stat().st_mode & 0o777 == 0o644
        assert (tmp_path / "r" / "deep" / "x.safetensors").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)


def test_json_round_trips_with_equal_bytes(tmp_path):
    write_json(tmp_path / "deep" / "a.json", {"b": 0.1 + 0.2, "a": [1, None]})
    write_json(tmp_path / "b.json", {"a": [1, None], "b": 0.1 + 0.2})
    assert read_json(tmp_path / "b.json") == {"a": [1, None], "b": 0.1 + 0.2}
    assert (tmp_path / "deep" / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_json_that_cannot_be_written_leaves_the_earlier_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_bytes(tmp_path / "taken", b"x")
    assert names(tmp_path) == ["taken"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is missing"), (b'{"a": ', "cannot be read as JSON"), (b"[" * 100_000, "cannot be read as JSON")],
)
def test_reading_says_what_is_wrong(tmp_path, content, words):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_json(path)
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_swapping_a_hundred_files_takes_no_time(tmp_path):
    start = time.monotonic()
    with atomic_folder(tmp_path / "r", durable=False) as folder:
        for index in range(100):
            (folder / str(index)).touch()
    assert time.monotonic() - start < 1


def test_a_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "disk" / "folder")
    (tmp_path / "file").symlink_to(tmp_path / "disk" / "file")
    for _ in range(2):
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "x").write_text("1")
        write_json(tmp_path / "file", 1)
    assert (tmp_path / "disk" / "folder" / "x").read_text() == "1"
    assert (tmp_path / "disk" / "file").read_text() == "1\n"
    assert names(tmp_path) == ["disk", "file", "folder"]
    assert names(tmp_path / "disk") == ["file", "folder"]


def test_a_result_takes_the_place_of_its_own_kind_only(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotADirectoryError, match="is no folder"), atomic_folder(tmp_path / "file"):
        pass
    for name in ("folder", "pipe"):
        with pytest.raises(FileExistsError, match="is no regular file"):
            write_json(tmp_path / name, 1)
    assert names(tmp_path) == ["file", "folder", "pipe"]
    assert (tmp_path / "file").read_text() == "mine"


def test_one_process_at_a_time_may_hold_a_folder(tmp_path):
    held = "from feedworks.storage import only_writer\nwith only_writer(Path('w')): print('held'); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path\n{held}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(FeedworksError, match="another process is writing to"), only_writer(tmp_path / "w"):
        pass
    other.kill()
    other.communicate()
    with only_writer(tmp_path / "w"):
        pass
