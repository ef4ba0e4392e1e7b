"""A Kubeflow Pipelines API from outside: what is asked directly, and one error for each refusal."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feedworks.errors import FeedworksError

if TYPE_CHECKING:
    from kfp.client import Client

TOKEN = "FEEDWORKS_KFP_TOKEN"
TIMEOUT_S = 30.0
MAX_SAID = 500
_MENDS = {
    401: f"log in: put a token of a service account or of your login into ${TOKEN}",
    403: "ask for the right, or name your --namespace",
    404: "check --host: a path may be missing, such as /pipeline behind Kubeflow's gateway",
}


@dataclass(frozen=True)
class Api:
    """Where the API is.

    Attributes:
        host: `http://HOST:PORT`, perhaps with a path.
        timeout_s: for one answer.
    """

    host: str
    timeout_s: float = TIMEOUT_S

    def get(self, path: str) -> Any:
        """Return the JSON object at a path.

        Raises:
            FeedworksError: there is no answer, a refusal, or a page that is none of this API's.
        """
        try:
            answer = json.loads(self.text(path))
            if not isinstance(answer, dict):
                raise ValueError("it answers something else than an object")
        except ValueError as error:
            raise _no_answer(self.host, f"{path} is none of its pages: {error}") from error
        return answer

    def text(self, path: str) -> str:
        """Return what lies at a path; see `get`."""
        token = _token()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            request = urllib.request.Request(f"{self.host.rstrip('/')}{path}")
            if token:
                # An ordinary header would also go to where the server sends us, such as a page of logins.
                request.add_unredirected_header("Authorization", f"Bearer {token}")
            with opener.open(request, timeout=self.timeout_s) as answer:
                text = bytes(answer.read()).decode(errors="replace")
        except urllib.error.HTTPError as error:
            raise refused(self.host, error.code, _body(error)) from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _no_answer(self.host, error) from error
        if text.lstrip().startswith("<"):
            raise FeedworksError(
                f"{self.host} answers with a web page, perhaps a login; check --host, put a token into "
                f"${TOKEN}, or forward the port: kubectl port-forward svc/ml-pipeline 8888"
            )
        return text

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Yield kfp's client; what fails inside the block becomes one error.

        Raises:
            FeedworksError: the API does not answer, or refuses.
        """
        import kfp_server_api
        import urllib3
        from kfp.client import Client

        # The client itself would try five times, 5 s apart, and log a trace of each.
        self.get("/apis/v2beta1/healthz")
        try:
            with warnings.catch_warnings():
                # The client warns on every construction that it needs a backend of 2023 or later.
                warnings.simplefilter("ignore", FutureWarning)
                client = Client(host=self.host, existing_token=_token())
            _hurry(client, self)
            yield client
        except kfp_server_api.ApiException as error:
            raise refused(self.host, error.status, str(error.body)) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _no_answer(self.host, error) from error


def _hurry(client: Any, api: Api) -> None:
    # The generated client waits for ever unless each call is told not to; its callers in kfp do not.
    rest = client._run_api.api_client.rest_client  # one for all parts of the client
    rest.pool_manager.connection_pool_kw["retries"] = False
    ask = rest.request

    def request(*arguments: Any, **options: Any) -> Any:
        answer = ask(*arguments, **{**options, "_request_timeout": (api.timeout_s, api.timeout_s)})
        # Of anything else it would make an empty object, of which a run without an id comes out as started.
        _require_object(api.host, answer.data)
        return answer

    rest.request = request


def _require_object(host: str, text: str) -> None:
    try:
        told = json.loads(text)
    except ValueError as error:
        raise _no_answer(host, f"it answers no JSON: {error}") from error
    if not isinstance(told, dict):
        raise _no_answer(host, "it answers something else than an object")


def _token() -> str | None:
    """Return the token for the API; files with one often end in a new line.

    Raises:
        FeedworksError: it holds what no header can; it is not repeated.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not (token.isascii() and token.isprintable()):
        raise FeedworksError(f"${TOKEN} holds characters that no token has; put the token alone into it")
    return token or None


def _body(error: urllib.error.HTTPError) -> str:
    try:
        return bytes(error.read()).decode(errors="replace")
    except (OSError, http.client.HTTPException):  # it broke off; its status says enough
        return ""


def refused(host: str, status: int, body: str) -> FeedworksError:
    """Return the error for an HTTP status that is none of success."""
    said = "" if body.lstrip().startswith("<") else " ".join(_message(body).split())[:MAX_SAID]
    said = f" {said}" if said else ""
    if status >= 500:
        return FeedworksError(
            f"the API at {host} failed: {status}{said}; try again, or read the log of its ml-pipeline server"
        )
    mend = _MENDS.get(status, "check --host and your rights")
    return FeedworksError(f"the API at {host} refused: {status}{said}; {mend}")


def _message(body: str) -> str:
    # Errors of the API repeat their text, with a stack of the server, under other keys.
    try:
        told = json.loads(body)
    except ValueError:
        return body
    if not isinstance(told, dict):
        return body
    return str(told.get("error_message") or told.get("message") or told.get("error") or body)


def _no_answer(host: str, error: object) -> FeedworksError:
    said = " ".join(str(error).split())[:MAX_SAID]
    return FeedworksError(f"no Kubeflow Pipelines API answers at {host}; check --host ({said})")
