"""`feedworks submit`: a compiled pipeline on a cluster, once or by a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from feedworks.cli import placement
from feedworks.cli.following import follow
from feedworks.cli.kfp_api import Api
from feedworks.cli.options import paper_argument, settings_options
from feedworks.cli.uploading import Place, upload_and_run, upload_and_schedule
from feedworks.errors import ConfigError
from feedworks.papers import Paper

# Kubeflow puts the time in when a scheduled run starts, so that no run reuses what an earlier one read.
EACH_RUN = "[[CurrentTime]]"


def check_host(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return the address of an API; a usage error says what is none."""
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter("it must start with http:// or https://.")
    return value


def cluster_options(command: Any) -> Any:
    """The options that say what the tasks ask of the cluster; each is a parameter of the pipelines."""
    name = placement.checked(placement.object_name)
    labels = placement.checked(placement.labels)
    for option in (
        click.option(
            "--toleration",
            "tolerations",
            multiple=True,
            metavar="KEY[=VALUE][:EFFECT]",
            callback=placement.checked(placement.tolerations),
            help="A taint that the tasks may ignore, such as nvidia.com/gpu:NoSchedule; repeatable.",
        ),
        click.option(
            "--gpu-node-selector",
            multiple=True,
            metavar="KEY=VALUE",
            callback=labels,
            help="A label of the nodes for tasks that run the model; repeatable.",
        ),
        click.option(
            "--node-selector",
            multiple=True,
            metavar="KEY=VALUE",
            callback=labels,
            help="A label of the nodes for the other tasks; repeatable.",
        ),
        click.option(
            "--secret",
            "secret_name",
            default="feedworks-tasks",
            show_default=True,
            callback=name,
            help="Secret with HF_TOKEN, AWS_ACCESS_KEY_ID and the like; it may be absent.",
        ),
        click.option(
            "--workspace-pvc",
            default="feedworks-workspace",
            show_default=True,
            callback=name,
            help="Volume claim that the tasks see at /workspace.",
        ),
        click.option(
            "--gpu-type",
            default="nvidia.com/gpu",
            show_default=True,
            callback=placement.checked(placement.gpu_type),
            help="The GPU as a resource of a node.",
        ),
        click.option(
            "--gpus",
            "num_gpus",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="GPUs of each task that trains or evaluates the model.",
        ),
    ):
        command = option(command)
    return command


def training_options(command: Any) -> Any:
    """The options that say on what the model runs, and on how many machines a training."""
    for option in (
        click.option(
            "--memory",
            "model_memory",
            metavar="SIZE",
            callback=placement.checked(placement.memory),
            help="Of each task that loads a model; with --nodes, of each process.  [default: 8Gi, KSA 16Gi]",
        ),
        click.option(
            "--cpu",
            "model_cpu",
            metavar="CORES",
            callback=placement.checked(placement.cpu),
            help="Cores of each task that --gpus is for; with --nodes, of each process.  [default: 2]",
        ),
        click.option(
            "--gpus-per-node",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="With --nodes: GPUs of each; 0 trains on their CPUs.",
        ),
        click.option(
            "--nodes",
            "num_nodes",
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="Machines for each training. Several want Kubeflow Trainer; the task that watches takes "
            "--cpu, --memory and --gpus as well.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@paper_argument()
@settings_options(tasks_here=False)
@click.option(
    "--host",
    required=True,
    callback=check_host,
    help="Address of the Kubeflow Pipelines API, http://HOST:PORT; $FEEDWORKS_KFP_TOKEN may hold a token.",
)
@click.option("--experiment", default="feedworks", show_default=True)
@click.option(
    "--namespace", callback=placement.checked(placement.object_name), help="Of a multi-user Kubeflow."
)
@click.option(
    "--service-account",
    callback=placement.checked(placement.object_name),
    help="Account of the tasks; the API has a default.",
)
@click.option("--data-version", help="Change it when the data changed.  [default: 1; with --cron, each run]")
@cluster_options
@training_options
@click.option(
    "--cron",
    callback=placement.checked(placement.cron),
    help="Run by this schedule, '0 3 * * *' in UTC; a schedule of the same pipeline is replaced.",
)
@click.option("--wait", is_flag=True, help="Follow the run; fail with the error of the task that failed.")
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="With --wait: minutes that a task may wait for a node, an image or a volume.",
)
def submit(paper: Paper, host: str, wait: bool, patience: int, cron: str | None, **arguments: Any) -> None:
    """Upload pipeline NAME to a cluster and run it.

    The source of the data must be `synthetic` or a path that is mounted in the cluster's tasks: the volume of
    --workspace-pvc lies at /workspace.
    """
    if wait and cron:
        raise click.UsageError("--wait follows one run, and --cron starts none now.")
    place = Place(**{key: arguments.pop(key) for key in Place._fields})
    arguments["overrides"] = list(arguments["overrides"])
    arguments["num_gpus"] = str(arguments["num_gpus"])  # see feedworks.task_resources
    arguments["data_version"] = arguments["data_version"] or (EACH_RUN if cron else "1")
    check_settings(paper, arguments)
    # The pipelines differ in what they ask for by themselves.
    arguments = {key: value for key, value in arguments.items() if value is not None}
    api = Api(host)
    if cron:
        schedule_id = upload_and_schedule(api, paper.name, place, arguments, cron=cron)
        click.echo(f"scheduled {paper.name} at {host}: {cron}, recurring run {schedule_id}")
        return
    run_id = upload_and_run(api, paper.name, place, arguments)
    click.echo(f"started run {run_id} of {paper.name} at {host}")
    if wait:
        follow(api, run_id, patience_s=patience * 60)
        click.echo(f"run {run_id} of {paper.name} succeeded")


def check_settings(paper: Paper, arguments: Mapping[str, Any]) -> None:
    """Refuse what no task could run.

    Args:
        paper: whose pipeline it is.
        arguments: of the command, by name.

    Raises:
        ConfigError: the settings are none of the paper's, or the data lies where no task is.
    """
    source: str = arguments["source"]
    if "://" in source:
        raise ConfigError(f"--data {source}: tasks read folders only; copy it to the volume at /workspace")
    if source != "synthetic" and not source.startswith("/"):
        raise ConfigError(
            f"--data {source}: the tasks run elsewhere; give a path that they see, /workspace/{source}"
        )
    if arguments["gpus_per_node"] and arguments["num_nodes"] == 1:
        raise ConfigError(
            "--gpus-per-node is for several machines, --nodes over 1; one machine takes --gpus "
            f"{arguments['gpus_per_node']}"
        )
    paper.part("config").resolve(arguments["preset"], list(arguments["overrides"]))
