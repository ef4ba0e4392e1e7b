"""Feedworks: recommendation and multimodal papers as Kubeflow components. Imports nothing heavy."""

__version__ = "0.1.0"
__all__ = ["__version__"]
