"""MaRI (arXiv 2602.23105): a program as an ONNX file, and its scores by onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from feedworks.errors import ModelError
from feedworks.mari.programs import quiet
from feedworks.mari.twin import Twin


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Write a program as ONNX; rows and requests stay symbolic, inputs keep their names.

    Raises:
        ModelError: an operation has no form in ONNX, or what writes it is not installed.
    """
    _require("onnxscript")
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it lists every library that is not there
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of onnxscript, about itself
            written = torch.onnx.export(program, (), dynamo=True, verbose=False)
            if written is None:
                raise ModelError(f"{path}: torch wrote no ONNX program")
            written.save(str(partial), include_initializers=True)
        partial.replace(path)
    except torch.onnx.OnnxExporterError as error:
        lines = str(error).strip().splitlines()
        raise ModelError(f"{path}: the model has no ONNX form ({lines[-1] if lines else error})") from error
    finally:
        log.setLevel(level)
        partial.unlink(missing_ok=True)


def save_twin(twin: Twin, folder: Path) -> None:
    """Write one.onnx and many.onnx, a twin's programs for one request and for several.

    Raises:
        ModelError: an operation has no form in ONNX.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in zip(("one", "many"), twin.programs, strict=True):
        save_onnx(program, folder / f"{name}.onnx")


def onnx_session(path: Path, *, threads: int = 0) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Open an ONNX file on the CPU; returns a function from its inputs, in order, to its outputs.

    Args:
        path: of the file.
        threads: for one product; 0 lets onnxruntime choose.

    Raises:
        ModelError: the file is missing or damaged.
    """
    _require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each way a file can be wrong
        raise ModelError(f"{path} cannot be read as ONNX ({str(error).splitlines()[0]})") from None
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(session.run(None, dict(zip(names, inputs, strict=True))))

    return run


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ModelError(f"ONNX needs {package}, which is not installed; install feedworks[export]")
