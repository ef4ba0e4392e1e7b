"""A compiled pipeline to a Kubeflow Pipelines API: uploaded once per content, then run or scheduled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feedworks.cli.kfp_api import Api
from feedworks.cli.pipelines import compile_pipeline, compiled_path
from feedworks.errors import ConfigError, FeedworksError

if TYPE_CHECKING:
    from kfp.client import Client

_EQUALS = 1  # of the API's filter.proto
_CONFLICT = 409


class Place(NamedTuple):
    """Where runs belong.

    Attributes:
        experiment: made where it does not exist.
        namespace: of a multi-user Kubeflow; None without.
        service_account: of the tasks; None takes the API's default.
    """

    experiment: str
    namespace: str | None = None
    service_account: str | None = None


def upload_and_run(api: Api, name: str, place: Place, arguments: dict[str, Any]) -> str:
    """Upload the committed YAML, as a new pipeline or a new version of it, and start a run.

    Args:
        api: of the cluster.
        name: of the paper and its pipeline.
        place: of the run.
        arguments: of the pipeline function.

    Returns:
        The id of the run.

    Raises:
        ConfigError: the committed YAML is not up to date.
        FeedworksError: the API does not answer or refuses.
    """
    package = _package(name)
    with api.client() as client:
        reference = _upload(client, name, package)
        experiment_id = client.create_experiment(place.experiment, namespace=place.namespace).experiment_id
        account = {"service_account": place.service_account}
        run = client.run_pipeline(experiment_id, name, params=arguments, **account, **reference)
        return _made(api, "run", run.run_id)


def upload_and_schedule(api: Api, name: str, place: Place, arguments: dict[str, Any], *, cron: str) -> str:
    """Upload as `upload_and_run` does, and start runs by a schedule, in place of an earlier one.

    Args:
        api: of the cluster.
        name: of the paper, its pipeline and the schedule.
        place: of the schedule and its runs.
        arguments: of the pipeline function.
        cron: six fields, the first of seconds.

    Returns:
        The id of the recurring run.

    Raises:
        ConfigError: the committed YAML is not up to date.
        FeedworksError: the API does not answer or refuses; an earlier schedule stays.
    """
    package = _package(name)
    with api.client() as client:
        reference = _upload(client, name, package)
        experiment_id = client.create_experiment(place.experiment, namespace=place.namespace).experiment_id
        found = client.list_recurring_runs(experiment_id=experiment_id, page_size=100, filter=_named(name))
        schedule = {"cron_expression": cron, "max_concurrency": 1, "no_catchup": True}
        account = {"service_account": place.service_account}
        made = client.create_recurring_run(
            experiment_id, name, params=arguments, **schedule, **account, **reference
        )
        schedule_id = _made(api, "schedule", made.recurring_run_id)
        for earlier in found.recurring_runs or []:
            client.delete_recurring_run(earlier.recurring_run_id)
        return schedule_id


def _made(api: Api, what: str, found: str | None) -> str:
    if not found:
        raise FeedworksError(f"{api.host} tells no id of the {what} that it was to make; check --host")
    return found


def _package(name: str) -> Path:
    package = compiled_path(name)
    if not package.is_file() or package.read_bytes() != compile_pipeline(name):
        raise ConfigError(f"{package} is not up to date; run `make compile`")
    return package


def _upload(client: Client, name: str, package: Path) -> dict[str, str]:
    pipeline_id = client.get_pipeline_id(name)
    if pipeline_id is None:
        made = _unless_there(lambda: client.upload_pipeline(str(package), name))
        if made is not None:
            version = client.list_pipeline_versions(made.pipeline_id).pipeline_versions[0]
            return {"pipeline_id": made.pipeline_id, "version_id": version.pipeline_version_id}
        pipeline_id = client.get_pipeline_id(name)
    # The bytes name the version, so that a second submit of the same pipeline uses the first one's.
    version_name = f"{name}-{hashlib.sha256(package.read_bytes()).hexdigest()[:12]}"
    version = (
        _version(client, pipeline_id, version_name)
        or _unless_there(lambda: client.upload_pipeline_version(str(package), version_name, pipeline_id))
        or _version(client, pipeline_id, version_name)
    )
    if version is None:
        raise FeedworksError(f"the API refuses version {version_name} and does not have it; try again")
    return {"pipeline_id": pipeline_id, "version_id": version.pipeline_version_id}


def _version(client: Client, pipeline_id: str, name: str) -> Any:
    found = client.list_pipeline_versions(pipeline_id, filter=_named(name))
    return (found.pipeline_versions or [None])[0]


def _named(name: str) -> str:
    equal = {"operation": _EQUALS, "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [equal]})


def _unless_there(upload: Any) -> Any:
    """Return what an upload made, or None where another submit was quicker."""
    import kfp_server_api

    try:
        return upload()
    except kfp_server_api.ApiException as error:
        if error.status != _CONFLICT:
            raise
        return None
