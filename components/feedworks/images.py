"""The only place that names container images. A tag is this release, never latest."""

from __future__ import annotations

from feedworks import __version__

# "python" stands in the names because kfp's SubprocessRunner warns about any image without it.
CPU = f"feedworks/python-cpu:{__version__}"
GPU = f"feedworks/python-gpu:{__version__}"
CPU_SERVE = f"feedworks/python-cpu-serve:{__version__}"
GPU_SERVE = f"feedworks/python-gpu-serve:{__version__}"
CPU_RAY = f"feedworks/python-cpu-ray:{__version__}"

ALLOWED = (CPU, GPU)
"""What a task of a pipeline may run in."""
