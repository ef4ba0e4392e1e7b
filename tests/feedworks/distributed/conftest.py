"""A Kubernetes API on loopback for tests of the launcher."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .api import Api


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A server that $KUBECONFIG points to."""
    server = Api()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield server
    server.close()
