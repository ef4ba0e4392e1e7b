"""What the compiled pipelines ask of a cluster: stated for every task, and by parameters that exist there."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from feedworks import images
from feedworks.papers import PAPERS

ROOT = Path(__file__).resolve().parents[2]
COMPILED = ROOT / "pipelines" / "compiled"
PLACEHOLDER = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{20}|gh[pousr]_[A-Za-z0-9]{20}|AKIA[0-9A-Z]{16}|-----BEGIN|eyJ[\w-]{10,}\.eyJ"
    r"|(?i:password|passwd|token|secret|api[-_]?key)['\"]?\s*[:=]\s*['\"]?(?!null)[A-Za-z0-9/+_-]{12,}"
)
# Names of things, and code, in which words stand like `secret_name: secret_name`.
NO_SECRETS = re.compile(r"(secretKey|envVar|secret_name|componentInputParameter|constantValue): [A-Za-z_-]+")
Document = dict[str, Any]
Check = Callable[["Pipeline"], None]


class Pipeline:
    """A compiled file: its two documents and what tasks there are."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.spec, self.platform = yaml.safe_load_all(text)
        self.executors: Document = self.spec["deploymentSpec"]["executors"]
        self.pods: Document = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]

    def dags(self) -> Iterator[tuple[Document, Document]]:
        """Yield each graph with the parameters that it has."""
        for component in (self.spec["root"], *self.spec["components"].values()):
            if "dag" in component:
                yield component["dag"], component.get("inputDefinitions", {}).get("parameters", {})

    def tasks(self) -> Iterator[tuple[str, Document, str, Document]]:
        """Yield name, task, executor and the parameters of the graph around it, for each task with a pod."""
        for dag, parameters in self.dags():
            for name, task in dag["tasks"].items():
                component = self.spec["components"][task["componentRef"]["name"]]
                if "executorLabel" in component:
                    yield name, task, component["executorLabel"], parameters


def images_are_ours(pipeline: Pipeline) -> None:
    for name, executor in pipeline.executors.items():
        assert executor["container"]["image"] in images.ALLOWED, name
        assert "pip install" not in " ".join(executor["container"]["command"]), name
        told = {each["name"]: each["value"] for each in executor["container"]["env"]}
        assert told.pop("FEEDWORKS_STATE") == "/workspace/.state", name
        assert set(told) <= {"OMP_NUM_THREADS"}, name


def threads_are_as_many_as_cores(pipeline: Pipeline) -> None:
    """Torch would start one for each core of the node, and the kernel then stops them most of the time.

    Tasks whose cores a parameter says, and no others, count them when they start (`use_own_cores`).
    """
    for name, executor in pipeline.executors.items():
        told = {each["name"]: each["value"] for each in executor["container"]["env"]}
        program = executor["container"]["command"][-1]
        counts = "run_step(" in program or "use_own_cores()" in program
        assert counts == (executor["container"]["image"] == images.GPU), name
        if counts:
            assert "OMP_NUM_THREADS" not in told, name
            continue
        cores = float(executor["container"]["resources"]["cpuLimit"])
        assert int(told["OMP_NUM_THREADS"]) == max(1, int(cores)), name


def cpu_and_memory_are_stated(pipeline: Pipeline) -> None:
    for name, executor in pipeline.executors.items():
        resources = executor["container"]["resources"]
        for kind in ("Cpu", "Memory"):
            assert resources[f"resource{kind}Request"] == resources[f"resource{kind}Limit"], name


def what_models_need_comes_by_text_parameters(pipeline: Pipeline) -> None:
    """Kubeflow's driver makes an empty text of a number, and asks for no GPU then."""
    for name, task, executor, parameters in pipeline.tasks():
        container = pipeline.executors[executor]["container"]
        resources = container["resources"]
        assert ("accelerator" in resources) == (container["image"] == images.GPU), name
        if "accelerator" not in resources:
            continue
        others = [resources[f"resource{kind}Limit"] for kind in ("Cpu", "Memory")]
        for wanted in (*resources["accelerator"].values(), *others):
            found = PLACEHOLDER.fullmatch(wanted)
            assert found, f"{name}: {wanted} is no parameter"
            source = task["inputs"]["parameters"][found.group(1)]["componentInputParameter"]
            assert parameters[source]["parameterType"] == "STRING", f"{name}: {source}"


def memory_for_a_model_is_a_parameter(pipeline: Pipeline) -> None:
    """Every task that is handed a model loads it, and how large it is the pipeline cannot know."""
    for name, task, executor, _ in pipeline.tasks():
        component = pipeline.spec["components"][task["componentRef"]["name"]]
        inputs = component.get("inputDefinitions", {}).get("artifacts", {}).values()
        if any(each["artifactType"]["schemaTitle"] == "system.Model" for each in inputs):
            memory = pipeline.executors[executor]["container"]["resources"]["resourceMemoryLimit"]
            assert "model_memory" in memory, f"{name}: {memory}"


def tasks_are_retried_within_their_time(pipeline: Pipeline) -> None:
    """Argo counts the longest time of retries from the start of the first try, running included."""
    for name, task, executor, _ in pipeline.tasks():
        policy, pod = task["retryPolicy"], pipeline.pods[executor]
        tries = policy["maxRetryCount"] + 1
        assert tries >= 2, name
        assert float(policy["backoffDuration"].removesuffix("s")) >= 10, name
        longest_s = float(policy["backoffMaxDuration"].removesuffix("s"))
        assert longest_s > tries * int(pod["activeDeadlineSeconds"]) > 0, name


def caching_is_stated_without_a_key(pipeline: Pipeline) -> None:
    """A key of one's own replaces image, code and inputs: an old result would stand for every new one."""
    for name, task, executor, _ in pipeline.tasks():
        assert "cacheKey" not in task["cachingOptions"], name
        cached = task["cachingOptions"].get("enableCache", False)
        writes_outside = name in ("gate", "package", "materialize", "benchmark")
        assert cached != writes_outside, f"{name} {executor}"


def parameters_of_pods_exist(pipeline: Pipeline) -> None:
    """The driver looks a parameter up in the graph around the task, and fails where it is not there."""
    kinds = {"workspace_pvc": "STRING", "secret_name": "STRING", "tolerations": "LIST"}
    kinds |= {"node_selector": "STRUCT", "gpu_node_selector": "STRUCT"}
    for name, _, executor, parameters in pipeline.tasks():
        pod = pipeline.pods[executor]
        on_gpu = pipeline.executors[executor]["container"]["image"] == images.GPU
        selector = "gpu_node_selector" if on_gpu else "node_selector"
        for wanted, value in {
            "workspace_pvc": pod["pvcMount"][0]["pvcNameParameter"],
            "secret_name": pod["secretAsEnv"][0]["secretNameParameter"],
            "tolerations": pod["tolerations"][0]["tolerationJson"],
            selector: pod["nodeSelector"]["nodeSelectorJson"],
        }.items():
            source = value["componentInputParameter"]
            assert source.removeprefix("pipelinechannel--") == wanted, f"{name}: {source}"
            assert parameters[source]["parameterType"] == kinds[wanted], f"{name}: {source}"
    # An empty name fails in the driver, an empty list or object asks for nothing.
    defaults = pipeline.spec["root"]["inputDefinitions"]["parameters"]
    assert all(defaults[key]["defaultValue"] for key in ("workspace_pvc", "secret_name", "gpu_type"))
    assert [defaults[key]["defaultValue"] for key in ("node_selector", "tolerations")] == [{}, []]


def pods_are_described(pipeline: Pipeline) -> None:
    assert pipeline.pods.keys() == pipeline.executors.keys()
    for name, pod in pipeline.pods.items():
        (mount,) = pod["pvcMount"]
        assert mount["mountPath"] == "/workspace", name
        assert all(secret["optional"] for secret in pod["secretAsEnv"]), name
        (shared,) = pod["emptyDirMounts"]
        assert (shared["mountPath"], shared["medium"]) == ("/dev/shm", "Memory"), name
        # Where a parameter says the memory, all of it may be taken.
        memory = pipeline.executors[name]["container"]["resources"]["resourceMemoryLimit"]
        assert bool(shared.get("sizeLimit")) != bool(PLACEHOLDER.fullmatch(memory)), name
        assert pod["imagePullPolicy"] == "IfNotPresent", name
        security = pod["securityContext"]
        assert security == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}, name
        labels = {
            "app.kubernetes.io/part-of": "feedworks",
            "feedworks/paper": pipeline.spec["pipelineInfo"]["name"],
        }
        assert pod["podMetadata"] == {"labels": labels}, name


def nothing_secret_is_written(pipeline: Pipeline) -> None:
    text = NO_SECRETS.sub("", pipeline.text)
    assert not (found := SECRETS.search(text)), found.group()


CHECKS: tuple[Check, ...] = (
    images_are_ours,
    cpu_and_memory_are_stated,
    threads_are_as_many_as_cores,
    what_models_need_comes_by_text_parameters,
    memory_for_a_model_is_a_parameter,
    tasks_are_retried_within_their_time,
    caching_is_stated_without_a_key,
    parameters_of_pods_exist,
    pods_are_described,
    nothing_secret_is_written,
)


@pytest.fixture(scope="module", params=sorted(PAPERS))
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return Pipeline((COMPILED / f"{request.param}.yaml").read_text())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_compiled_pipeline(pipeline: Pipeline, check: Check) -> None:
    check(pipeline)


_SPEC, _POD = "deploymentSpec/executors/exec-train-joint/container", "exec-train-joint"
_CPU = "deploymentSpec/executors/exec-fit-tokenizer/container"
_PACKAGE = "deploymentSpec/executors/exec-package/container"
_TASK = "root/dag/tasks/train-joint"
_BY_PARAMETERS = what_models_need_comes_by_text_parameters
# Where the compiled pipeline of RecoChain is broken, with what, and who must see it.
BROKEN: list[tuple[Check, str, str, Any]] = [
    (images_are_ours, "spec", f"{_SPEC}/image", "python:3.11"),
    (images_are_ours, "spec", f"{_SPEC}/image", "feedworks/python-gpu:latest"),
    (images_are_ours, "spec", f"{_SPEC}/command", ["sh", "-c", "pip install kfp"]),
    (images_are_ours, "spec", f"{_SPEC}/env", [{"name": "HF_TOKEN", "value": "a"}]),
    (cpu_and_memory_are_stated, "spec", f"{_SPEC}/resources/resourceCpuLimit", None),
    (threads_are_as_many_as_cores, "spec", f"{_CPU}/resources/cpuLimit", 4.0),
    (threads_are_as_many_as_cores, "spec", f"{_CPU}/env", []),
    (threads_are_as_many_as_cores, "spec", f"{_SPEC}/command", ["python", "steps.train_joint()"]),
    (threads_are_as_many_as_cores, "spec", f"{_SPEC}/env", [{"name": "OMP_NUM_THREADS", "value": "2"}]),
    (cpu_and_memory_are_stated, "spec", f"{_SPEC}/resources/resourceMemoryRequest", "1Gi"),
    (_BY_PARAMETERS, "spec", f"{_SPEC}/resources/accelerator/resourceType", "nvidia.com/gpu"),
    (_BY_PARAMETERS, "spec", f"{_SPEC}/resources/accelerator", None),
    (_BY_PARAMETERS, "spec", f"{_SPEC}/resources/resourceMemoryLimit", "8Gi"),
    (
        _BY_PARAMETERS,
        "spec",
        "root/inputDefinitions/parameters/num_gpus/parameterType",
        "NUMBER_INTEGER",
    ),
    (memory_for_a_model_is_a_parameter, "spec", f"{_PACKAGE}/resources/resourceMemoryLimit", "4Gi"),
    (tasks_are_retried_within_their_time, "spec", f"{_TASK}/retryPolicy/maxRetryCount", 0),
    (tasks_are_retried_within_their_time, "spec", f"{_TASK}/retryPolicy/backoffMaxDuration", "600s"),
    (tasks_are_retried_within_their_time, "pods", f"{_POD}/activeDeadlineSeconds", "0"),
    (caching_is_stated_without_a_key, "spec", f"{_TASK}/cachingOptions/cacheKey", "1"),
    (caching_is_stated_without_a_key, "spec", f"{_TASK}/cachingOptions/enableCache", False),
    (parameters_of_pods_exist, "spec", "root/inputDefinitions/parameters/workspace_pvc/defaultValue", ""),
    (
        parameters_of_pods_exist,
        "spec",
        "root/inputDefinitions/parameters/tolerations/parameterType",
        "STRING",
    ),
    (
        parameters_of_pods_exist,
        "pods",
        "exec-package/nodeSelector/nodeSelectorJson/componentInputParameter",
        "node_selector",  # of the pipeline, which a graph inside it does not see
    ),
    (pods_are_described, "pods", _POD, None),
    (pods_are_described, "pods", f"{_POD}/pvcMount", []),
    (pods_are_described, "pods", f"{_POD}/emptyDirMounts/0/medium", ""),
    (pods_are_described, "pods", f"{_POD}/secretAsEnv/0/optional", False),
    (pods_are_described, "pods", f"{_POD}/securityContext/runAsUser", "0"),
    (pods_are_described, "pods", f"{_POD}/podMetadata/labels", {}),
]


@pytest.mark.parametrize(
    ("check", "document", "path", "value"),
    BROKEN,
    ids=lambda value: str(getattr(value, "__name__", value))[-40:],
)
def test_a_broken_pipeline_is_seen(check: Check, document: str, path: str, value: Any) -> None:
    broken = copy.deepcopy(Pipeline((COMPILED / "recochain.yaml").read_text()))
    check(broken)
    *folders, leaf = path.split("/")
    node = getattr(broken, document)
    for folder in folders:
        node = node[int(folder) if isinstance(node, list) else folder]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check(broken)


@pytest.mark.parametrize(
    "line",
    [
        "value: hf_" + "a1B2" * 6,
        "AWS_ACCESS_KEY_ID: AKIA" + "ABCDEFGH12345678",
        "password: correct-horse-battery",
        "- --api-key=" + "0123456789abcdef",
        "-----BEGIN " + "PRIVATE KEY-----",
    ],
)
def test_a_secret_in_the_text_is_seen(line: str) -> None:
    text = (COMPILED / "recochain.yaml").read_text()
    with pytest.raises(AssertionError):
        nothing_secret_is_written(Pipeline(f"{text}# {line}\n"))
