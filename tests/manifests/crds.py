"""Custom resources against the definitions that a cluster would have: strictly, unknown fields are refused.

The definitions are data beside the repository, in ../shared/crds or where FEEDWORKS_CRDS says, and are not
copied into it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from .rendered import ROOT, Object

FOLDER = Path(os.environ.get("FEEDWORKS_CRDS", ROOT.parent / "shared" / "crds"))
# Megabytes: ten times as fast where PyYAML has its library in C.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Of every object, so no definition repeats them.
COMMON = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}


@lru_cache
def _definitions() -> dict[tuple[str, str], Object]:
    """Schemas by apiVersion and kind."""
    found = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        for definition in filter(None, yaml.load_all(path.read_text(), Loader=LOADER)):
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"] |= COMMON
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def closed(schema: Any) -> Any:
    """The schema without the dialect of Kubernetes, taking no field that it does not name.

    Rules of CEL (x-kubernetes-validations) are left out.
    """
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    # Under `properties` keys are names, which may be those of keywords.
    result = {
        key: {name: closed(each) for name, each in value.items()} if key == "properties" else closed(value)
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("format", "description", "nullable")
    }
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not is_open:
        result["additionalProperties"] = False
    return result


def problems(thing: Object) -> list[str]:
    """What the definition of an object's kind does not take; skips the test where there is none."""
    schema = _definitions().get((thing["apiVersion"], thing["kind"]))
    if schema is None:
        pytest.skip(f"{FOLDER} has no definition of {thing['kind']}")
    found = jsonschema.Draft202012Validator(schema).iter_errors(thing)
    return [f"{'.'.join(map(str, each.absolute_path))}: {each.message[:300]}" for each in found]
