"""Adds Debian's packages of an image to the bill of materials that cyclonedx-py wrote of its Python packages.

Use: bill.py PYTHON_BILL.json NAME VERSION > BILL.json, inside the image; both bills are CycloneDX JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FIELDS = "${Package}\t${Version}\t${Architecture}\n"


def debian_packages() -> list[dict[str, Any]]:
    """Return a component for each installed package of the system."""
    listing = subprocess.run(["dpkg-query", "-W", f"-f={FIELDS}"], capture_output=True, text=True, check=True)
    found = []
    for line in sorted(listing.stdout.splitlines()):
        name, version, architecture = line.split("\t")
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?arch={architecture}"
        found.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl})
    return found


def main(source: str, name: str, version: str) -> None:
    """Print the whole bill, of an image `name:version`."""
    bill = json.loads(Path(source).read_text())
    bill["components"] = [*bill["components"], *debian_packages()]
    bill.setdefault("metadata", {})["component"] = {"type": "container", "name": name, "version": version}
    json.dump(bill, sys.stdout, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
