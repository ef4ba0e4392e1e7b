"""The production form: its file is one that Feast takes, and a registry server serves what was applied."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from feedworks.contracts.features import FEATURE_TABLES
from feedworks.features.repo import offline_of, open_store, store_file

from .conftest import HOST, ROOT, ends, free_port, wait_until

ADDRESSES = {"FEAST_REGISTRY": "registry:6570", "FEAST_REDIS": "redis:6379,ssl=true", "SPARK_MASTER": "yarn"}


@pytest.fixture
def production(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEAST_FS_YAML_FILE_PATH", "production.yaml")
    for name, value in ADDRESSES.items():
        monkeypatch.setenv(name, value)
    return repo


def test_its_addresses_come_from_variables(production: Path) -> None:
    text = (production / "production.yaml").read_text()
    assert not [value for value in ADDRESSES.values() if value in text]
    config = yaml.safe_load(os.path.expandvars(text))
    assert config["registry"]["path"] == "registry:6570"
    assert config["online_store"]["connection_string"] == "redis:6379,ssl=true"
    assert config["offline_store"]["spark_conf"]["spark.master"] == "yarn"
    assert offline_of(production) == "spark"


def test_feast_takes_the_file(production: Path) -> None:
    pytest.importorskip("grpc", reason="a remote registry wants grpcio; pip install 'feast[grpcio]'")
    from feast.repo_config import load_repo_config

    config = load_repo_config(production, store_file(production))
    assert config.registry.registry_type == "remote"
    assert config.online_store.connection_string == "redis:6379,ssl=true"


@pytest.mark.slow
def test_a_registry_server_serves_what_was_applied(
    applied: Path, production: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc", reason="a remote registry wants grpcio; pip install 'feast[grpcio]'")
    port = free_port()
    paths = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    environment = {name: value for name, value in os.environ.items() if name != "FEAST_FS_YAML_FILE_PATH"}
    server = subprocess.Popen(
        [str(Path(sys.executable).parent / "feast"), "serve_registry", "--port", str(port)],
        cwd=applied,
        env={**environment, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    try:
        wait_until(answers, server)
        monkeypatch.setenv("FEAST_REGISTRY", f"{HOST}:{port}")
        with open_store(production) as store:
            names = {view.name for view in store.list_feature_views()}
            assert names == {table.name for table in FEATURE_TABLES}
    finally:
        ends(server)
