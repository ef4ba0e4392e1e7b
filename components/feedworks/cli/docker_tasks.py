"""The tasks of a pipeline in containers of this machine's Docker engine: kfp.local's DockerRunner, made safe.

Every task runs in the same image, whatever its own says: here no task has a GPU that its own would be for.
Its root file system is read-only, as in a cluster.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedworks import images
from feedworks.errors import FeedworksError

if TYPE_CHECKING:
    from docker import DockerClient
    from kfp.local import DockerRunner

LABEL = "feedworks.run"
# A container sees only these settings of the caller.
PASSED_ON = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "FEEDWORKS_KERNELS")
_MAX_SAID = 300


@contextmanager
def docker_runner(source: str, image: str = images.CPU) -> Iterator[DockerRunner]:
    """Yield a runner whose containers see the data and are gone at the end, however the block ends.

    Args:
        source: a folder of data, mounted read-only at its own path, or a word.
        image: of all tasks; pulled where the engine has it not.

    Raises:
        FeedworksError: no engine answers, it refuses a container or goes away; or the image is neither here
            nor can it be pulled.
    """
    import docker
    import requests
    from kfp.local import DockerRunner

    run = uuid.uuid4().hex
    client = _client()
    try:
        _require_image(client, image)
        yield DockerRunner(
            labels={LABEL: run},
            environment={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            user=f"{os.getuid()}:{os.getgid()}",
            read_only=True,
            tmpfs={"/tmp": "rw,exec,mode=1777"},
            shm_size="1g",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mounts=_mounts(source),
        )
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise FeedworksError(
            f"the Docker engine failed ({_short(error)}); see its log, then try again"
        ) from error
    finally:
        # kfp leaves a container when it is interrupted, be it between making and starting it.
        with suppress(docker.errors.DockerException, requests.exceptions.RequestException):
            for container in client.containers.list(all=True, filters={"label": f"{LABEL}={run}"}):
                _remove(container)
        client.close()


def _client() -> DockerClient:
    import docker

    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise FeedworksError(
            f"no Docker engine answers ({_short(error)}); start it, or leave containers out with --runner kfp"
        ) from error
    return client


def _require_image(client: DockerClient, image: str) -> None:
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        try:
            client.images.pull(image)
        except (docker.errors.APIError, OSError) as error:
            raise FeedworksError(
                f"image {image} is not here and could not be pulled ({_short(error)}); "
                "build it with `make images`"
            ) from error
    except docker.errors.DockerException as error:
        raise FeedworksError(f"--image {image!r} is no name of an image ({_short(error)})") from error


def _mounts(source: str) -> list[Any]:
    from docker.types import Mount

    folder = Path(source)
    if not folder.is_dir():
        return []
    path = str(folder.resolve())
    return [Mount(target=path, source=path, type="bind", read_only=True)]


def _remove(container: Any) -> None:
    import docker

    with suppress(docker.errors.APIError):  # it has ended meanwhile
        container.remove(force=True)


def _short(error: Exception) -> str:
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:_MAX_SAID]
