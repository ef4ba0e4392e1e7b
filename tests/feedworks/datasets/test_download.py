"""Downloads against a real HTTP server on this machine that breaks off, lies and changes its files."""

import contextlib
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedworks.datasets.download import SUMS, Patience, fetch
from feedworks.datasets.registry import DataSet, RemoteFile, get, names
from feedworks.errors import DataError

CONTENT = bytes(range(256)) * 4000
SUM = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(attempts=3, first_wait_s=0.001, timeout_s=5)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` and misbehaves as its fields say."""

    content = CONTENT
    cut_after = 0  # bytes of a body after which the connection ends, while cuts > 0
    cuts = 0
    statuses: list[int]
    validator: dict[str, str]
    ranges_known = True
    length_known = True
    wrong_range = False
    stall_s = 0.0

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = []
        self.validator = {"ETag": '"one"'}
        self.requests: list[str | None] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_args):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if server.statuses:
            return self.answer(server.statuses.pop(0), b"", {})
        unchanged = self.headers.get("If-Range") in server.validator.values()
        if asked and server.ranges_known and unchanged:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            size = len(server.content)
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            first = 0 if server.wrong_range else start
            span = {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
            return self.answer(206, server.content[first:], span)
        return self.answer(200, server.content, {})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, **self.server.validator}.items():
            self.send_header(name, value)
        if self.server.length_known:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body and self.server.stall_s:
            time.sleep(self.server.stall_s)
        if body and self.server.cuts > 0:
            self.server.cuts -= 1
            body = body[: self.server.cut_after]
        with contextlib.suppress(ConnectionError):  # a client that gave up
            self.wfile.write(body)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def data_set(server, **changes):
    files = (RemoteFile(url=server.url, name="data.bin", sha256=changes.pop("sha256", SUM)),)
    return DataSet(
        name="tiny",
        title="Tiny data",
        licence="public domain",
        citation="nobody",
        expects="data.bin",
        detect=lambda folder: True,
        convert=lambda folder, out_dir: out_dir,
        **{"files": files, **changes},
    )


def test_a_file_is_downloaded_verified_and_not_asked_for_again(server, tmp_path, capsys):
    folder = fetch(data_set(server), tmp_path, patience=QUICK)
    assert folder == tmp_path / "tiny"
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert sorted(p.name for p in folder.iterdir()) == [".lock", SUMS, "data.bin"]
    shown = capsys.readouterr().err
    assert "Tiny data; licence: public domain" in shown
    assert f"data.bin [bytes]: {len(CONTENT)}/{len(CONTENT)}" in shown
    fetch(data_set(server), tmp_path, patience=QUICK)
    assert server.requests == [None]


def test_the_sums_are_in_the_format_of_sha256sum(server, tmp_path):
    folder = fetch(data_set(server, sha256=None), tmp_path, patience=QUICK)
    assert (folder / SUMS).read_text() == f"{SUM}  data.bin\n"
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder, check=True, capture_output=True)


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(server, tmp_path, capsys):
    server.cut_after, server.cuts = 300_000, 3
    folder = fetch(data_set(server), tmp_path, patience=QUICK)
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert "going on at byte 300,000" in capsys.readouterr().err


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut_after=st.integers(0, len(CONTENT)), cuts=st.integers(0, 3), part=st.integers(0, len(CONTENT)))
def test_wherever_it_breaks_the_file_is_whole_in_the_end(server, tmp_path, cut_after, cuts, part):
    shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "data.bin.part").write_bytes(CONTENT[:part])
    (tmp_path / "tiny" / "data.bin.part.validator").write_text('"one"')
    server.cut_after, server.cuts = cut_after, cuts
    patience = Patience(attempts=5, first_wait_s=0.001, timeout_s=5)
    folder = fetch(data_set(server), tmp_path, patience=patience)
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert not list(folder.glob("*.part*"))


def test_a_later_run_goes_on_where_an_earlier_one_gave_up(server, tmp_path):
    server.cut_after, server.cuts = 400_000, 1
    server.statuses = []
    first = fetch_in_vain(server, tmp_path, then_statuses=[503] * 3)
    assert "(503 Service Unavailable); 400,000 bytes are kept: try again" in first
    assert str(tmp_path / "tiny" / "data.bin") in first
    server.requests.clear()
    folder = fetch(data_set(server), tmp_path, patience=QUICK)
    assert server.requests == ["bytes=400000-"]
    assert (folder / "data.bin").read_bytes() == CONTENT


def fetch_in_vain(server, tmp_path, then_statuses):
    """One cut transfer, then only errors: what the last error says."""

    class Later(list):
        def __bool__(self):
            return len(server.requests) > 1 and len(self) > 0

    server.statuses = Later(then_statuses)
    with pytest.raises(DataError) as caught:
        fetch(data_set(server), tmp_path, patience=QUICK)
    assert not (tmp_path / "tiny" / "data.bin").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_that_changed_meanwhile_is_read_from_the_start(server, tmp_path):
    server.cut_after, server.cuts = 400_000, 1
    fetch_in_vain(server, tmp_path, then_statuses=[500] * 3)
    server.content = CONTENT[::-1]
    server.validator = {"ETag": '"two"'}
    reverse = hashlib.sha256(server.content).hexdigest()
    folder = fetch(data_set(server, sha256=reverse), tmp_path, patience=QUICK)
    assert (folder / "data.bin").read_bytes() == server.content


@pytest.mark.parametrize("validator", [{}, {"ETag": 'W/"weak"'}])
def test_without_a_strong_validator_nothing_is_glued_together(server, tmp_path, validator):
    server.validator = validator
    server.cut_after, server.cuts = 400_000, 1
    folder = fetch(data_set(server), tmp_path, patience=QUICK)
    assert server.requests == [None, None]
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_a_date_is_a_validator_too(server, tmp_path):
    server.validator = {"Last-Modified": "Tue, 01 Jul 2014 00:00:00 GMT"}
    server.cut_after, server.cuts = 400_000, 1
    fetch(data_set(server), tmp_path, patience=QUICK)
    assert server.requests == [None, "bytes=400000-"]


@pytest.mark.parametrize("quirk", ["ranges_known", "length_known", "wrong_range"])
def test_servers_with_quirks(server, tmp_path, quirk):
    setattr(server, quirk, quirk == "wrong_range")
    if quirk != "length_known":  # without a length a short body cannot be told from a whole one
        server.cut_after, server.cuts = 100_000, 1
    folder = fetch(data_set(server), tmp_path, patience=QUICK)
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_accepted(server, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "data.bin.part").write_bytes(CONTENT)
    (folder / "data.bin.part.validator").write_text('"one"')
    fetch(data_set(server), tmp_path, patience=QUICK)
    assert server.requests == [f"bytes={len(CONTENT)}-"]
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "data.bin.part").write_bytes(CONTENT + b"more")
    (folder / "data.bin.part.validator").write_text('"one"')
    fetch(data_set(server), tmp_path, patience=QUICK)
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_a_wrong_sum_is_refused_and_leaves_nothing(server, tmp_path):
    with pytest.raises(DataError, match=f"sha256 is {SUM}, expected 0+; deleted it"):
        fetch(data_set(server, sha256="0" * 64), tmp_path, patience=QUICK)
    assert [p.name for p in (tmp_path / "tiny").iterdir()] == [".lock"]


def test_an_unpinned_file_must_stay_what_it_was_at_first(server, tmp_path):
    folder = fetch(data_set(server, sha256=None), tmp_path, patience=QUICK)
    (folder / "data.bin").unlink()
    server.content = b"something else"
    with pytest.raises(DataError, match=f"the first download had {SUM}; if its owner changed"):
        fetch(data_set(server, sha256=None), tmp_path, patience=QUICK)
    assert not (folder / "data.bin").exists()


def test_a_damaged_file_is_replaced(server, tmp_path):
    folder = fetch(data_set(server), tmp_path, patience=QUICK)
    (folder / "data.bin").write_bytes(b"damaged")
    fetch(data_set(server), tmp_path, patience=QUICK)
    assert (folder / "data.bin").read_bytes() == CONTENT


def test_what_will_not_pass_is_not_tried_again(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(DataError, match=r"cannot download http://127.*data.bin \(404 Not Found\); 0 bytes"):
        fetch(data_set(server), tmp_path, patience=QUICK)
    assert server.requests == [None]


def test_an_ill_server_is_asked_again_until_patience_ends(server, tmp_path):
    server.statuses = [503, 500]
    fetch(data_set(server), tmp_path / "a", patience=QUICK)
    server.statuses = [503] * 3
    server.requests.clear()
    with pytest.raises(DataError, match="503 Service Unavailable"):
        fetch(data_set(server), tmp_path / "b", patience=QUICK)
    assert len(server.requests) == 3


def test_a_server_that_says_nothing_is_left_in_time(server, tmp_path):
    server.stall_s = 0.5
    patience = Patience(attempts=1, first_wait_s=0.001, timeout_s=0.05)
    start = time.monotonic()
    with pytest.raises(DataError, match="timed out"):
        fetch(data_set(server), tmp_path, patience=patience)
    assert time.monotonic() - start < 5


def test_no_server_at_all(server, tmp_path):
    nobody = RemoteFile(url="http://127.0.0.1:1/data.bin", name="data.bin")
    with pytest.raises(DataError, match=r"cannot download .*Connection refused"):
        fetch(data_set(server, files=(nobody,)), tmp_path, patience=QUICK)


def test_an_optional_file_may_be_absent(server, tmp_path, capsys):
    server.statuses = [404]
    optional = RemoteFile(url=server.url, name="extra.bin", required=False)
    present = RemoteFile(url=server.url, name="data.bin", sha256=SUM)
    folder = fetch(data_set(server, files=(optional, present)), tmp_path, patience=QUICK)
    assert not (folder / "extra.bin").exists()
    assert (folder / "data.bin").exists()
    assert "going on without extra.bin: cannot download" in capsys.readouterr().err


def test_a_set_without_address_says_how_to_import_it(tmp_path):
    with pytest.raises(DataError, match=r"s3rec has no public address; import it from a folder with <Name>"):
        fetch(get("s3rec"), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in names() if get(name).files])
def test_the_registered_sets_have_usable_addresses(name):
    files = get(name).files
    assert files[0].required
    assert len({file.name for file in files}) == len(files)
    for file in files:
        assert file.url.startswith("https://")
        commit = re.search(r"/[0-9a-f]{40}/", file.url)
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert (commit is not None) == (file.sha256 is not None), "an address that may change is not pinned"


FETCH = """
import sys
from pathlib import Path
from feedworks.datasets.download import fetch
from feedworks.datasets.registry import DataSet, RemoteFile
url, sha256, cache_dir = sys.argv[1:]
files = (RemoteFile(url=url, name="data.bin", sha256=sha256),)
texts = dict.fromkeys(["name", "title", "licence", "citation", "expects"], "tiny")
fetch(DataSet(files=files, detect=bool, convert=min, **texts), Path(cache_dir))
"""


def test_two_processes_download_once(server, tmp_path):
    server.stall_s = 0.3
    command = [sys.executable, "-c", FETCH, server.url, SUM, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    shown = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], shown
    assert server.requests == [None]
    assert (tmp_path / "tiny" / "data.bin").read_bytes() == CONTENT


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_named(server, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "data.bin.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written .No space left on device"):
        fetch(data_set(server), tmp_path, patience=QUICK)
