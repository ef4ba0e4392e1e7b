"""The only place that names container images. A tag is this release, never latest."""

from __future__ import annotations

from feedworks import __version__

# "python" stands in the names because kfp's SubprocessRunner warns about any image without it.
CPU = f"feedworks/python-cpu:{__version__}"
GPU = f"feedworks/python-gpu:{__version__}"

ALLOWED = (CPU, GPU)
