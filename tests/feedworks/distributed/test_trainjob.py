"""The TrainJob object: what it says, and that the real definition takes it and refuses what is not in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from feedworks import images
from feedworks.distributed.launcher import job_name, launch_words
from feedworks.distributed.trainjob import Nodes, build, own_limits
from feedworks.errors import ConfigError

from ...manifests.crds import problems

WORDS = launch_words("recochain", "train_generator", ["/workspace/a", "/workspace/b"], ("tiny", ["seed=3"]))


def job(nodes: Nodes, limits: dict[str, str] | None = None):
    name = job_name("recochain", "train_generator", "0123456789ab")
    labels = {"feedworks/run": "0123456789ab"}
    return build(name, WORDS, nodes, namespace="feedworks", labels=labels, limits=limits or {})


@pytest.mark.parametrize("limits", [{}, {"cpu": "2000m", "memory": "8589934592"}])
@pytest.mark.parametrize(
    "nodes",
    [Nodes(num_nodes=2), Nodes(num_nodes=4, gpus_per_node=8), Nodes(num_nodes=2, processes_per_node=2)],
)
def test_the_definition_takes_it(nodes, limits):
    assert problems(job(nodes, limits)) == []


@pytest.mark.parametrize(
    "place", ["spec", "spec.trainer", "spec.trainer.resourcesPerNode", "spec.runtimeRef"]
)
def test_an_unknown_field_is_refused(place):
    made = job(Nodes(num_nodes=2, gpus_per_node=1))
    inner = made
    for name in place.split("."):
        inner = inner[name]
    inner["numGpus"] = 2
    assert any(place in each and "numGpus" in each for each in problems(made))


def test_what_it_asks_for():
    made = job(Nodes(num_nodes=4, gpus_per_node=8), {"cpu": "2000m", "memory": "1024"})
    trainer = made["spec"]["trainer"]
    assert made["metadata"]["name"] == "recochain-train-generator-0123456789ab"
    assert made["spec"]["runtimeRef"] == {"name": "feedworks-torch"}
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (4, 8, images.GPU)
    asked = {"cpu": "2000m", "memory": "1024", "nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"limits": asked, "requests": asked}
    assert trainer["command"][:3] == ["python", "-m", "torch.distributed.run"]
    assert trainer["args"] == WORDS
    assert not any(each["name"].startswith("PET_") for each in trainer["env"]), "Trainer refuses these"


def test_without_gpus_it_trains_on_cpus_with_the_resources_of_the_runtime():
    trainer = job(Nodes(num_nodes=2, processes_per_node=3))["spec"]["trainer"]
    assert (trainer["numProcPerNode"], trainer["image"]) == (3, images.CPU)
    assert "resourcesPerNode" not in trainer


def test_the_gpu_has_the_name_that_the_cluster_gives_it():
    made = job(Nodes(num_nodes=2, gpus_per_node=1, gpu_type="amd.com/gpu"))
    assert made["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"amd.com/gpu": "1"}


@pytest.mark.parametrize("wrong", [{"num_nodes": 0}, {"num_nodes": 2, "gpus_per_node": -1}])
def test_counts_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="expected at least"):
        Nodes(**wrong)


@pytest.mark.parametrize("paper", ["recochain", "a_very_long_name_of_a_paper_with_2_numbers"])
def test_names_are_those_of_dns(paper):
    name = job_name(paper, "train_generator", "0123456789ab")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(f"{name}-node-0-0") <= 63 - 10
    assert name.endswith("-0123456789ab")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000", "memory.max": "1048576"}, {"cpu": "1500m", "memory": "1048576"}),
        ({"cpu.max": "max 100000", "memory.max": "max"}, {}),
        (
            {
                "cpu/cpu.cfs_quota_us": "200000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "2097152",
            },
            {"cpu": "2000m", "memory": "2097152"},
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": "9223372036854771712"}, {}),
        ({}, {}),
    ],
)
def test_each_machine_gets_the_limits_of_the_task(tmp_path: Path, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert own_limits(tmp_path) == expected


def test_a_machine_has_for_each_process_what_the_task_has(tmp_path: Path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("1048576\n")
    assert own_limits(tmp_path, processes=8) == {"cpu": "12000m", "memory": str(8 * 1048576)}
