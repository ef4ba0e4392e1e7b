"""What the accounts of the manifests may, as the API server sees it, and a call that it denies."""

from __future__ import annotations

import json

import pytest

from feedworks import images

from .conftest import OURS, STRANGER
from .jobs import NOBODY
from .kubectl import Object, apply, kubectl, remove, wait_for

pytestmark = [pytest.mark.kind, pytest.mark.timeout(600), pytest.mark.usefixtures("manifests")]

# account, verb, resource, name or subresource, namespace, and whether it may.
PIPELINE = "feedworks-pipeline"
JOBS = "trainjobs.trainer.kubeflow.org"
TABLE = [
    *((PIPELINE, verb, JOBS, OURS, True) for verb in ("create", "list", "delete")),
    *((PIPELINE, verb, JOBS, OURS, False) for verb in ("get", "watch", "update", "patch")),
    (PIPELINE, "create", JOBS, STRANGER, False),
    (PIPELINE, "get", "clustertrainingruntimes.trainer.kubeflow.org", OURS, False),
    (PIPELINE, "list", "pods", OURS, True),
    *((PIPELINE, verb, "pods", OURS, False) for verb in ("get", "create", "delete", "patch")),
    (PIPELINE, "get", "pods/log", OURS, True),
    (PIPELINE, "create", "pods/exec", OURS, False),
    (PIPELINE, "get", "pods", STRANGER, False),
    (PIPELINE, "create", "workflowtaskresults.argoproj.io", OURS, True),
    (PIPELINE, "get", "configmaps/kfp-launcher", OURS, True),
    (PIPELINE, "get", "configmaps/feedworks-redis", OURS, False),
    (PIPELINE, "get", "secrets/mlpipeline-minio-artifact", OURS, True),
    (PIPELINE, "get", "secrets/feedworks-redis", OURS, False),
    (PIPELINE, "list", "secrets", OURS, False),
    (PIPELINE, "create", "jobs.batch", OURS, False),
    (PIPELINE, "delete", "persistentvolumeclaims", OURS, False),
    (PIPELINE, "create", "rolebindings.rbac.authorization.k8s.io", OURS, False),
    (PIPELINE, "create", "serviceaccounts/token", OURS, False),
    (PIPELINE, "list", "nodes", OURS, False),
    *(
        (account, verb, resource, OURS, False)
        for account in ("feedworks-service", "feedworks-features", "feedworks-redis")
        for verb, resource in (
            ("get", "pods"),
            ("get", "secrets"),
            ("create", "pods"),
            ("list", "configmaps"),
        )
    ),
]
# Asks the API server with the token of the pod's account, if it has one.
ASK = """
import json, os, ssl, urllib.error, urllib.request
folder = "/var/run/secrets/kubernetes.io/serviceaccount"
if not os.path.exists(folder + "/token"):
    print(json.dumps({"token": False}))
    raise SystemExit
host = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
tls = ssl.create_default_context(cafile=folder + "/ca.crt")
token = open(folder + "/token").read()
said = {"token": True}
for path in ("pods", "secrets", "secrets/feedworks-redis", "pods/nobody/log"):
    request = urllib.request.Request("https://%s:%s/api/v1/namespaces/NAMESPACE/%s" % (*host, path))
    request.add_header("Authorization", "Bearer " + token)
    try:
        urllib.request.urlopen(request, context=tls, timeout=20)
        said[path] = 200
    except urllib.error.HTTPError as error:
        said[path] = error.code
print(json.dumps(said))
"""


def test_accounts_may_what_they_need_and_no_more() -> None:
    reviews = {"apiVersion": "v1", "kind": "List", "items": [review(*row[:4]) for row in TABLE]}
    words = ["create", "-f", "-", "-o", "jsonpath={.status.allowed}{'\\n'}"]
    said = kubectl(*words, stdin=json.dumps(reviews), within_s=180).stdout.split()
    expected = [str(row[4]).lower() for row in TABLE]
    assert [row for row, one, other in zip(TABLE, said, expected, strict=True) if one != other] == []


def review(account: str, verb: str, resource: str, namespace: str) -> Object:
    """What `kubectl auth can-i --as=ACCOUNT` asks, also of kinds that the server does not know yet."""
    kind, _, part = resource.partition("/")
    name, _, group = kind.partition(".")
    asked = {"namespace": namespace, "verb": verb, "group": group, "resource": name}
    asked |= {"subresource" if part in ("log", "exec", "token") else "name": part} if part else {}
    spec = {"user": f"system:serviceaccount:{OURS}:{account}", "resourceAttributes": asked}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


def asked(account: str, *, token: bool | None = None) -> dict[str, object]:
    """What a pod of an account hears from the API server."""
    spec: Object = {
        "restartPolicy": "Never",
        "serviceAccountName": account,
        "securityContext": dict(NOBODY),
        "containers": [
            {
                "name": "main",
                "image": images.CPU,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python3", "-c", ASK.replace("NAMESPACE", OURS)],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    }
    if token is not None:
        spec["automountServiceAccountToken"] = token
    # The label of pods of pipelines: where policies are enforced, they may reach the API server.
    metadata = {"name": "asks", "namespace": OURS, "labels": {"workflows.argoproj.io/workflow": "tests"}}
    apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
    try:
        wait_for(_ended, "pod asks", within_s=120, namespace=OURS)
        answer: dict[str, object] = json.loads(kubectl("logs", "asks", namespace=OURS).stdout)
        return answer
    finally:
        remove("pod", "asks", namespace=OURS)


def _ended() -> bool | None:
    words = ["get", "pod", "asks", "-o", "jsonpath={.status.phase}"]
    return kubectl(*words, namespace=OURS).stdout in {"Succeeded", "Failed"} or None


def test_the_account_of_pipelines_is_denied_a_secret_with_its_own_token() -> None:
    assert asked(PIPELINE) == {
        "token": True,
        "pods": 200,
        "secrets": 403,
        "secrets/feedworks-redis": 403,
        "pods/nobody/log": 404,
    }


@pytest.mark.parametrize("account", ["feedworks-service", "feedworks-features", "feedworks-redis"])
def test_an_account_without_rights_has_no_token(account: str) -> None:
    assert asked(account) == {"token": False}


def test_a_token_of_an_account_without_rights_opens_nothing() -> None:
    said = asked("feedworks-service", token=True)
    assert said.pop("token") is True
    assert set(said.values()) == {403}
