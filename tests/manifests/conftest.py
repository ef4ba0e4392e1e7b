"""The rendered overlays, and one kustomization with every component but GPUs, as a user would write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from .rendered import Object, kustomization_with, overlay, render

COMPONENTS = ["trainer", "ray", "monitoring", "images"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kustomization_with(tmp_path_factory.mktemp("whole"), COMPONENTS)


@pytest.fixture(params=["kind", "gpu", "whole"])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    if request.param == "whole":
        return render(request.getfixturevalue("whole"))
    return overlay(request.param)
