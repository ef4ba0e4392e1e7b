"""Stores for tests: repositories that are copies of the committed one, servers on spare loopback ports."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOST = "127.0.0.1"
REDIS_ADDRESS = "127.0.0.1:6379"
POSTGRES_ADDRESS = "127.0.0.1:5432/feast"
READY_WITHIN_S = 30.0


@dataclass(frozen=True)
class Server:
    """A server on loopback; `url` is how its own clients name it."""

    port: int
    url: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(answers: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not answers():
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.05)


def ends(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """An empty Redis that keeps nothing on disk; tests share it, each in a project of its own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on the PATH; apt-get install redis-server")
    port = free_port()
    words = [program, "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no"]

    def answers() -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([*words, "--dir", folder], stdout=subprocess.DEVNULL)
        try:
            wait_until(answers, process)
            yield Server(port, f"redis://{HOST}:{port}/0")
        finally:
            ends(process)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """An empty PostgreSQL with the database and the user `feast`, who needs no password."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if not shutil.which("initdb") else [Path()]
    if not programs:
        pytest.skip("no initdb; apt-get install postgresql")
    folder = tempfile.mkdtemp(prefix="postgres-", dir="/tmp")
    # The server refuses to run as root; Debian makes this user for it.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)
    port, data = free_port(), str(Path(folder) / "data")
    run = {"user": user, "stdout": subprocess.DEVNULL, "cwd": "/"}
    make = [programs[-1] / "initdb", "-D", data, "-U", "feast", "--auth=trust", "--no-sync", "-E", "UTF8"]
    process = None
    try:
        subprocess.run([str(word) for word in make], check=True, **run)
        words = [programs[-1] / "postgres", "-D", data, "-h", HOST, "-p", port, "-k", folder, "-F"]
        process = subprocess.Popen([str(word) for word in words], stderr=subprocess.DEVNULL, **run)
        wait_until(lambda: make_database(port), process)
        yield Server(port, f"postgresql+psycopg://feast:feast@{HOST}:{port}/feast")
    finally:
        if process is not None:
            ends(process)
        shutil.rmtree(folder, ignore_errors=True)


def make_database(port: int) -> bool:
    import psycopg

    try:
        with psycopg.connect(host=HOST, port=port, user="feast", dbname="postgres", autocommit=True) as found:
            found.execute("CREATE DATABASE feast")
            return True
    except psycopg.OperationalError:
        return False


@pytest.fixture
def spark(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository in its Spark form; what runs Spark does so in a process of its own."""
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("no pyspark; pip install 'feedworks[spark]'")
    if shutil.which("java") is None:
        pytest.skip("no java on the PATH; apt-get install openjdk-17-jre-headless")
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "spark.yaml")
    return repo


def copy_repository(folder: Path) -> Path:
    """The committed repository, without what was applied there, as a clean clone would have it."""
    return shutil.copytree(
        ROOT / "feature_repo", folder / "feature_repo", ignore=shutil.ignore_patterns("data")
    )


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that nothing was applied to, in its embedded form."""
    for name in ("FEAST_FS_YAML_FILE_PATH", "FEEDWORKS_FEATURES"):
        monkeypatch.delenv(name, raising=False)
    return copy_repository(tmp_path)


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that was applied in its embedded form; for tests that write nothing to it."""
    from feedworks.features.repo import apply

    folder = copy_repository(tmp_path_factory.mktemp("applied"))
    apply(folder)
    return folder


@pytest.fixture
def use_redis(
    repo: Path, redis_server: Server, postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The same repository in its Redis form, by the one variable; the addresses are those of the test."""
    text = (repo / "redis.yaml").read_text()
    for address, port in ((REDIS_ADDRESS, redis_server.port), (POSTGRES_ADDRESS, postgres_server.port)):
        host, _, rest = address.partition(":")
        assert text.count(address) == 1
        text = text.replace(address, f"{host}:{port}{rest[4:]}")
    # A database server is shared by the tests: each has its own project there.
    text = text.replace("project: feedworks\n", f"project: {(project := f'feedworks_{repo.parent.name}')}\n")
    module = repo / "project.py"
    module.write_text(module.read_text().replace('name="feedworks"', f'name="{project}"'))
    (repo / "redis-of-the-test.yaml").write_text(text)
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "redis-of-the-test.yaml")
    return repo
