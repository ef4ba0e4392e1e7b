"""The Kubernetes API as a training needs it: TrainJobs, their pods and what those print.

Every refusal becomes one error that says what was refused, why, and the mend.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedworks.distributed.trainjob import GROUP, PLURAL, POD_LABELS, VERSION
from feedworks.errors import FeedworksError

_TIMEOUT_S = (5, 30)  # to connect, to read
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_NAMESPACE = "feedworks"
_MAX_SAID = 600
# What the client raises for an answer that is none of Kubernetes, and for such a kubeconfig.
_STRANGE = (TypeError, ValueError, AttributeError, KeyError)


class UnreachableError(FeedworksError):
    """The API does not answer; it may later."""


class BusyError(UnreachableError):
    """The API answers that it cannot now."""


class Cluster:
    """A namespace of a cluster.

    Args:
        namespace: instead of that of this pod, of the kubeconfig's context, or `feedworks`.

    Raises:
        FeedworksError: this is no pod of a cluster, and there is no kubeconfig.
    """

    def __init__(self, namespace: str | None = None) -> None:
        import yaml
        from kubernetes import client, config

        found = client.Configuration()
        try:
            if "KUBERNETES_SERVICE_HOST" in os.environ and (_ACCOUNT / "token").exists():
                config.load_incluster_config(client_configuration=found)
                own = (_ACCOUNT / "namespace").read_text().strip()
            else:
                file = os.environ.get("KUBECONFIG")  # the client itself looks once, when it is imported
                config.load_kube_config(file, client_configuration=found)
                own = config.list_kube_config_contexts(file)[1]["context"].get("namespace", _NAMESPACE)
        except (config.ConfigException, yaml.YAMLError, OSError, *_STRANGE) as error:
            raise FeedworksError(
                f"several nodes need a Kubernetes cluster, and this is no pod of one ({_short(error)}); run "
                "the pipeline there, set KUBECONFIG, or train on one node with num_nodes=1"
            ) from None
        found.retries = False  # the watcher itself tries again
        self.namespace = namespace or own
        self.host = found.host
        self._api = client.ApiClient(found)
        self._custom = client.CustomObjectsApi(self._api)
        self._core = client.CoreV1Api(self._api)
        self._where = (GROUP, VERSION, self.namespace, PLURAL)

    def create(self, job: dict[str, Any]) -> bool:
        """Create a TrainJob; False where there is one of its name.

        Raises:
            FeedworksError: the API refuses it or knows no TrainJobs.
            UnreachableError: it does not answer.
        """
        name = job["metadata"]["name"]
        with self._asking(f"create TrainJob {name}"):
            try:
                made = self._custom.create_namespaced_custom_object(
                    *self._where, job, _request_timeout=_TIMEOUT_S
                )
            except Exception as error:
                # The other conflict is one of a quota that two requests change at once.
                if getattr(error, "status", None) == 409 and "already exists" in _said(error):
                    return False
                raise
            made["metadata"]  # a page of a proxy has none
        return True

    def job(self, name: str) -> dict[str, Any] | None:
        """Return a TrainJob as it is now; None where there is none.

        Raises:
            FeedworksError: the API refuses, or knows no TrainJobs.
            UnreachableError: it does not answer.
        """
        with self._asking(f"read TrainJob {name}"):
            # A list tells a missing job from a cluster that knows no TrainJobs; a get answers 404 to both.
            found = self._custom.list_namespaced_custom_object(
                *self._where, field_selector=f"metadata.name={name}", _request_timeout=_TIMEOUT_S
            )
            items = list(found["items"])
        return items[0] if items else None

    def delete(self, name: str) -> bool:
        """Delete a TrainJob with its pods; False where there is none."""
        with self._asking(f"delete TrainJob {name}"):
            try:
                self._custom.delete_namespaced_custom_object(
                    *self._where, name, propagation_policy="Foreground", _request_timeout=_TIMEOUT_S
                )
            except Exception as error:
                if getattr(error, "status", None) != 404:
                    raise
                return False
        return True

    def pod(self, name: str) -> dict[str, Any] | None:
        """Return a pod as the API writes it; None where there is none."""
        with self._asking(f"read pod {name}"):
            found = self._core.list_namespaced_pod(
                self.namespace, field_selector=f"metadata.name={name}", _request_timeout=_TIMEOUT_S
            ).items
            written: list[dict[str, Any]] = self._api.sanitize_for_serialization(found)
        return written[0] if written else None

    def pods(self, name: str) -> list[Any]:
        """Return the pods of a job's nodes, as `kubernetes.client.V1Pod`, oldest first."""
        with self._asking(f"list the pods of TrainJob {name}"):
            found = self._core.list_namespaced_pod(
                self.namespace, label_selector=POD_LABELS.format(name=name), _request_timeout=_TIMEOUT_S
            ).items
            return sorted(found, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))

    def log(self, pod: str, *, since_s: int | None = None, last: int | None = None) -> list[str]:
        """Return lines that a pod has printed, each after its time; none where it cannot tell.

        Args:
            pod: its name.
            since_s: only those of so many seconds.
            last: at most so many, the last ones.
        """
        from kubernetes.client import ApiException

        limits = {"since_seconds": since_s, "tail_lines": last}
        with self._asking(f"read the log of pod {pod}"):
            try:
                answer = self._core.read_namespaced_pod_log(
                    pod,
                    self.namespace,
                    container="node",
                    timestamps=True,
                    _preload_content=False,
                    _request_timeout=_TIMEOUT_S,
                    **{name: value for name, value in limits.items() if value is not None},
                )
            except ApiException as error:
                if error.status in (400, 404):  # it has not begun, or is gone
                    return []
                raise
            text: str = answer.data.decode(errors="replace")
        # Not by splitlines: bars move by carriage returns, and only whole lines begin with a time.
        return text.removesuffix("\n").split("\n") if text else []

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        import urllib3
        from kubernetes.client import ApiException

        try:
            yield
        except ApiException as error:
            said = _said(error)
            if error.status in (409, 429) or (error.status >= 500 and "webhook" not in said):
                raise BusyError(f"cannot {what}: {self.host} answers {error.status} {said}") from None
            if not error.status:
                raise FeedworksError(
                    f"cannot {what}: no TLS with {self.host} ({said}); check its address and authority in "
                    "KUBECONFIG"
                ) from None
            where, mend = f"in namespace {self.namespace}", _mend(error.status, said)
            raise FeedworksError(f"cannot {what} {where}: {error.status} {said}; {mend}") from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(
                f"cannot {what}: no Kubernetes API answers at {self.host} ({_short(error)}); check the "
                "network and the cluster"
            ) from None
        except _STRANGE:
            raise UnreachableError(
                f"cannot {what}: what answers at {self.host} is no Kubernetes API, perhaps a proxy; check "
                "the address in KUBECONFIG"
            ) from None


def _said(error: Any) -> str:
    """What the API says, from its Status object where it sends one."""
    body = error.body or b""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    try:
        return " ".join(str(json.loads(text)["message"]).split())[:_MAX_SAID]
    except (ValueError, KeyError, TypeError):
        said = "" if text.lstrip().startswith("<") else text
        return " ".join((said or str(error.reason)).split())[:_MAX_SAID]


def _mend(status: int, said: str) -> str:
    if status == 404 and "namespaces" in said:
        return "apply manifests/, which makes it"
    if status == 404:
        return f"the cluster knows no TrainJob ({GROUP}/{VERSION}): install Kubeflow Trainer v2"
    if status == 401:
        return "the credentials are refused: log in again, or mend the service account"
    if status == 403 and " quota: " in said:
        return "raise the namespace's quota, or wait until others are done"
    if status == 403 and "webhook" not in said:
        return "the account may not: bind the role feedworks-pipeline of manifests/ to it"
    if "webhook" in said:
        return "apply manifests/components/trainer, and see that Kubeflow Trainer runs"
    if status not in (400, 422):
        return "check that the address in KUBECONFIG is one of a Kubernetes API"
    return "the object does not fit this cluster's TrainJob: install Kubeflow Trainer v2.3 or later"


def _short(error: BaseException) -> str:
    reason = getattr(error, "reason", None) or error
    return " ".join(str(reason).split())[:200]
