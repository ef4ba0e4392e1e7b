"""`feedworks submit`: upload a compiled pipeline to a Kubeflow Pipelines API and start a run."""

from __future__ import annotations

import hashlib
import http.client
import json
import urllib.error
import urllib.request
import warnings
from typing import TYPE_CHECKING, Any

import click

from feedworks.cli.options import paper_argument, settings_options
from feedworks.cli.pipelines import compile_pipeline, compiled_path
from feedworks.errors import ConfigError, FeedworksError
from feedworks.papers import Paper

if TYPE_CHECKING:
    from pathlib import Path

    from kfp.client import Client

PROBE_TIMEOUT_S = 10.0
MAX_SAID = 500
_EQUALS = 1  # of the API's filter.proto


def _check_host(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter("it must start with http:// or https://.")
    return value


@click.command()
@paper_argument()
@settings_options
@click.option(
    "--host",
    required=True,
    callback=_check_host,
    help="Address of the Kubeflow Pipelines API, http://HOST:PORT.",
)
@click.option("--experiment", default="feedworks", show_default=True)
@click.option("--data-version", default="1", show_default=True, help="Change it when the data changed.")
@click.option("--gpus", "num_gpus", type=click.IntRange(min=0), default=0, show_default=True)
def submit(paper: Paper, host: str, experiment: str, **arguments: Any) -> None:
    """Upload pipeline NAME to a cluster and run it.

    The source of the data must be `synthetic` or a path that is mounted in the cluster's tasks.
    """
    arguments["overrides"] = list(arguments["overrides"])
    arguments["num_gpus"] = str(arguments["num_gpus"])  # see feedworks.task_resources
    paper.part("config").resolve(arguments["preset"], arguments["overrides"])
    run_id = upload_and_run(paper.name, host=host, experiment=experiment, arguments=arguments)
    click.echo(f"started run {run_id} of {paper.name} at {host}")


def upload_and_run(name: str, *, host: str, experiment: str, arguments: dict[str, Any]) -> str:
    """Upload the committed YAML, as a new pipeline or a new version of it, and start a run.

    Args:
        name: of the paper and its pipeline.
        host: address of the API.
        experiment: made where it does not exist.
        arguments: of the pipeline function.

    Returns:
        The id of the run.

    Raises:
        ConfigError: the committed YAML is not up to date.
        FeedworksError: the API does not answer or refuses.
    """
    import kfp_server_api
    import urllib3
    from kfp.client import Client

    package = compiled_path(name)
    if not package.is_file() or package.read_bytes() != compile_pipeline(name):
        raise ConfigError(f"{package} is not up to date; run `make compile`")
    _require_answer(host)
    try:
        with warnings.catch_warnings():
            # The client warns on every construction that it needs a backend of 2023 or later.
            warnings.simplefilter("ignore", FutureWarning)
            client = Client(host=host)
        reference = _upload(client, name, package)
        experiment_id = client.create_experiment(experiment).experiment_id
        return str(client.run_pipeline(experiment_id, name, params=arguments, **reference).run_id)
    except kfp_server_api.ApiException as error:
        raise _refused(host, error.status, str(error.body)) from error
    except (urllib3.exceptions.HTTPError, TimeoutError) as error:
        raise _no_answer(host, error) from error


def _require_answer(host: str) -> None:
    # The client itself would try five times, 5 s apart, and log a trace of each.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{host.rstrip('/')}/apis/v2beta1/healthz", timeout=PROBE_TIMEOUT_S) as answer:
            if not isinstance(json.load(answer), dict):
                raise ValueError("its health page is not that of this API")
    except urllib.error.HTTPError as error:
        raise _refused(host, error.code, error.read().decode(errors="replace")) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _no_answer(host, error) from error


def _refused(host: str, status: int, body: str) -> FeedworksError:
    said = "" if body.lstrip().startswith("<") else f" {' '.join(body.split())[:MAX_SAID]}"
    return FeedworksError(f"the API at {host} refused: {status}{said}; check --host and your rights")


def _no_answer(host: str, error: Exception) -> FeedworksError:
    return FeedworksError(f"no Kubeflow Pipelines API answers at {host}; check --host ({error})")


def _upload(client: Client, name: str, package: Path) -> dict[str, str]:
    pipeline_id = client.get_pipeline_id(name)
    if pipeline_id is None:
        pipeline_id = client.upload_pipeline(str(package), name).pipeline_id
        version = client.list_pipeline_versions(pipeline_id).pipeline_versions[0]
        return {"pipeline_id": pipeline_id, "version_id": version.pipeline_version_id}
    # The bytes name the version, so that a second submit of the same pipeline uses the first one's.
    version_name = f"{name}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    equal = {"operation": _EQUALS, "key": "display_name", "stringValue": version_name}
    found = client.list_pipeline_versions(pipeline_id, filter=json.dumps({"predicates": [equal]}))
    version = (found.pipeline_versions or [None])[0]
    if version is None:
        version = client.upload_pipeline_version(str(package), version_name, pipeline_id)
    return {"pipeline_id": pipeline_id, "version_id": version.pipeline_version_id}
