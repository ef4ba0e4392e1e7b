import io
import re
import tarfile

import pytest

from feedworks.datasets.archive import unpack
from feedworks.errors import DataError

WANTED = re.compile(r"log_\w+\.csv")


def archive(path, *members):
    """A tar.gz of `(name, content)`; content may be a tarfile type with a target, for links."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return path


def test_only_what_is_wanted_is_written_without_its_folders(tmp_path):
    path = archive(
        tmp_path / "a.tar.gz", ("X/data/log_a.csv", b"1"), ("X/run.py", b"import os"), ("log_b.csv", b"2")
    )
    out = unpack(path, WANTED, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {"log_a.csv": b"1", "log_b.csv": b"2"}


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (("../log_x.csv", b"1"), "leads out of the archive"),
        (("X/../../log_x.csv", b"1"), "leads out of the archive"),
        (("/tmp/log_x.csv", b"1"), "leads out of the archive"),
        (("../anything.txt", b"1"), "leads out of the archive"),
        (("log_x.csv", (tarfile.SYMTYPE, "/etc/passwd")), "is no regular file"),
        (("log_x.csv", (tarfile.LNKTYPE, "log_a.csv")), "is no regular file"),
        (("log_x.csv", (tarfile.FIFOTYPE, "")), "is no regular file"),
        (("Y/log_a.csv", b"again"), "cannot be unpacked .*exists"),
    ],
)
def test_a_hostile_archive_leaves_nothing_behind(tmp_path, member, said):
    path = archive(tmp_path / "a.tar.gz", ("X/log_a.csv", b"1"), member)
    with pytest.raises(DataError, match=said):
        unpack(path, WANTED, tmp_path / "in" / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name != "in"] == ["a.tar.gz"]
    assert list((tmp_path / "in").iterdir()) == []


def test_a_truncated_archive_and_one_without_the_files_are_told(tmp_path):
    path = archive(tmp_path / "a.tar.gz", ("log_a.csv", bytes(range(256)) * 4000))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(path, WANTED, tmp_path / "out")
    with pytest.raises(DataError, match="holds no file called like"):
        unpack(archive(tmp_path / "b.tar.gz", ("x.csv", b"1")), WANTED, tmp_path / "out")
    (tmp_path / "c.tar.gz").write_bytes(b"no archive at all")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "c.tar.gz", WANTED, tmp_path / "out")
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tmp_path / "absent.tar.gz", WANTED, tmp_path / "out")
    assert not (tmp_path / "out").exists()
