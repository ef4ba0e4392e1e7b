"""The job of a Ray cluster: what it runs, with which Ray, and what it must not leave open."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path

import pytest

from feedworks.papers import PAPERS

from .crds import problems
from .rendered import ROOT, Object, of_kind, render, templates


@pytest.fixture
def job(whole: Path) -> Object:
    (found,) = of_kind(render(whole), "RayJob")
    spec: Object = found["spec"]
    return spec


def test_it_runs_a_step_with_settings_that_exist(job: Object) -> None:
    python, flag, module, *words = shlex.split(job["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "feedworks.launch")
    preset, *overrides = [word.partition("=")[2] for word in words if word.startswith("--")]
    paper, step, *paths = [word for word in words if not word.startswith("--")]
    config = PAPERS[paper].part("config").resolve(preset, overrides)
    assert (config.prepare.engine, config.prepare.address) == ("ray", "auto")
    assert callable(getattr(PAPERS[paper].part("steps"), step))
    assert len(paths) == 2
    for template in templates([{"kind": "RayJob", "metadata": {"name": ""}, "spec": job}]):
        (container,) = template.containers
        mounts = [f"{mount['mountPath']}/" for mount in container["volumeMounts"]]
        assert all(any(path.startswith(mount) for mount in mounts) for path in paths)


def test_nothing_runs_and_nothing_stays_without_a_word(job: Object) -> None:
    assert job["suspend"] is True
    assert job["shutdownAfterJobFinishes"] is True


def test_it_names_the_version_of_the_image_and_asks_for_a_token(job: Object) -> None:
    assert f"ray=={job['rayClusterSpec']['rayVersion']}" in (ROOT / "constraints.txt").read_text().split()
    assert job["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_an_unknown_field_is_refused(whole: Path) -> None:
    (found,) = of_kind(render(whole), "RayJob")
    wrong = copy.deepcopy(found)
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParameters"] = {}
    (problem,) = problems(wrong)
    assert "'rayStartParameters' was unexpected" in problem
