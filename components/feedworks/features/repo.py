"""The feature repository on disk: which store file is in force, where the tables lie, and applying it all.

`feast` and `feedworks features` agree: the store file is feature_store.yaml, or the one that the environment
variable FEAST_FS_YAML_FILE_PATH names.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedworks.contracts.fields import Offline
from feedworks.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from feast import FeatureStore
    from feast.repo_contents import RepoContents

STORE_FILE = "feature_store.yaml"
STORE_VARIABLE = "FEAST_FS_YAML_FILE_PATH"
TABLES_VARIABLE = "FEEDWORKS_FEATURES"
# When a source was applied, in the text of Feast's message about it.
_TIMES = re.compile(r"^( *)meta \{.*?^\1\}", flags=re.MULTILINE | re.DOTALL)


def repository(path: Path | None = None) -> Path:
    """The feature repository: `path`, else ./feature_repo, this folder itself, or that of the source tree.

    Raises:
        ConfigError: There is none; it is part of the source tree, not of the wheel.
    """
    source_tree = Path(__file__).resolve().parents[3] / "feature_repo"
    candidates = [path] if path else [Path("feature_repo"), Path(), source_tree]
    for folder in candidates:
        if (folder / STORE_FILE).is_file():
            return folder.resolve()
    where = f"{path} is no feature repository" if path else "no feature repository here"
    raise ConfigError(f"{where} (no {STORE_FILE}); give its path with --repo")


def store_file(repo: Path) -> Path:
    """The store file in force.

    A relative name in the variable is looked up from the process and from the repository, because Feast
    changes into the repository half-way.

    Raises:
        ConfigError: The variable names no file.
    """
    name = os.environ.get(STORE_VARIABLE)
    if not name:
        return repo / STORE_FILE
    for path in (Path(name), repo / name, repo / Path(name).name):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.name for path in repo.glob("*.yaml")))
    raise ConfigError(f"{STORE_VARIABLE}={name}: no such file; the repository has {known}")


def tables_folder(repo: Path) -> Path:
    """Folder with the feature tables: what FEEDWORKS_FEATURES names, else data/tables of the repository."""
    return Path(os.environ.get(TABLES_VARIABLE) or repo / "data" / "tables").absolute()


def offline_of(repo: Path) -> Offline:
    """What reads the tables, by the store file in force.

    Raises:
        ConfigError: It is a store for which this repository has no sources.
    """
    import yaml

    file = store_file(repo)
    try:
        settings = yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is no store file ({reason})") from None
    store = settings.get("offline_store") if isinstance(settings, dict) else None
    kind = store.get("type") if isinstance(store, dict) else store
    if kind == "duckdb":
        return "duckdb"
    if kind == "spark":
        return "spark"
    raise ConfigError(f"{file}: offline_store.type {kind!r}; sources.py knows duckdb and spark")


@contextmanager
def open_store(repo: Path) -> Iterator[FeatureStore]:
    """The Feast store of the repository, in the form in force; its connections are closed at the end.

    Raises:
        ConfigError: The store file is not one.
        StoreError: The registry or the online store does not answer.
    """
    from feast import FeatureStore
    from feast.repo_config import FeastConfigError
    from redis.exceptions import ConnectionError as NoConnectionError
    from redis.exceptions import TimeoutError as NoAnswerError
    from sqlalchemy.exc import OperationalError

    file = store_file(repo)
    try:
        store = FeatureStore(repo_path=str(repo), fs_yaml_file=file)
        registry = store.registry
    except FeastConfigError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{file} is no store file ({reason})") from None
    except OperationalError as error:
        reason = str(error.orig).splitlines()[0]
        raise StoreError(f"the registry of {file.name} does not answer ({reason})") from None
    try:
        yield store
    except (NoConnectionError, NoAnswerError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"the online store of {file.name} does not answer ({reason})") from None
    finally:
        for name in ("read_engine", "write_engine"):
            if engine := getattr(registry, name, None):
                engine.dispose()


def read_definitions(repo: Path) -> RepoContents:
    """The Feast objects that the Python files of the repository define."""
    from feast.repo_operations import parse_repo

    with _inside(repo):
        return parse_repo(repo)


def apply(repo: Path, tables: Path | None = None) -> str:
    """Write the definitions into the registry and prepare the online store; returns what changed.

    The same definitions a second time change nothing. Like `feast apply`, but the process keeps its folder
    and its modules, and it says what changed with any registry and online store.

    Args:
        repo: The feature repository.
        tables: Folder with the feature tables, which the registry keeps; `tables_folder(repo)` where None.

    Raises:
        ConfigError: The store file is not one.
        StoreError: The registry or the online store does not answer.
    """
    from feast.diff.registry_diff import diff_between
    from feast.repo_operations import apply_total_with_repo_instance

    with _variable(TABLES_VARIABLE, str(tables.absolute()) if tables else None):
        contents = read_definitions(repo)
    with open_store(repo) as store, contextlib.redirect_stdout(io.StringIO()), _inside(repo):
        store.registry.refresh(store.project)
        changes = list(_changes(diff_between(store.registry, store.project, contents)))
        apply_total_with_repo_instance(
            store, store.project, store.registry, contents, skip_source_validation=True
        )
    return "\n".join(changes) or "No changes to registry"


@contextmanager
def _inside(repo: Path) -> Iterator[None]:
    """The folder, path and modules that Feast needs to run the files of a repository, and back."""
    folder, path, write = Path.cwd(), list(sys.path), sys.dont_write_bytecode
    os.chdir(repo)
    sys.path.append(str(repo))
    _forget(repo)
    try:
        yield
    finally:
        _forget(repo)
        os.chdir(folder)
        sys.path[:], sys.dont_write_bytecode = path, write


def _changes(diff: Any) -> Iterator[str]:
    """A line for each object that is created, deleted or changed.

    Feast compares what Spark reads together with the times at which it was applied, which always differ.
    """
    verbs = {"CREATE": "Created", "DELETE": "Deleted", "UPDATE": "Updated"}
    for each in diff.feast_object_diffs:
        kind, verb = each.feast_object_type.value, verbs.get(each.transition_type.name)
        changed = [
            pair.property_name
            for pair in each.feast_object_property_diffs
            if _TIMES.sub("", str(pair.val_existing)) != _TIMES.sub("", str(pair.val_declared))
        ]
        if verb is None or kind == "data source" or each.name.startswith("__"):
            continue
        if verb != "Updated":
            yield f"{verb} {kind} {each.name}"
        elif changed:
            yield f"{verb} {kind} {each.name}: {', '.join(changed)}"


@contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """An environment variable for the block, where there is a value."""
    before = os.environ.get(name)
    os.environ.update({name: value} if value else {})
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        elif value:
            del os.environ[name]


def _forget(repo: Path) -> None:
    names = {path.stem for path in repo.rglob("*.py")}
    for name in names & set(sys.modules):
        file: Any = getattr(sys.modules[name], "__file__", None)
        if file is None or Path(file).parent.name == repo.name:
            del sys.modules[name]
