"""OCARM (arXiv 2604.25839): proof that what is known only after the decision cannot reach the student.

verdict.json   {"clean": bool, "student": sha256 of its weights, "checks": [{"name", "passed", "detail"}]}
verdict.html   the same as a page

Six checks, each of which fails in a test: the arguments of the student's `forward`; the inputs of its
exported program; the names in its checkpoint; the teacher's own tensors, looked for under any name; what
it reads, and the columns of its training table, against the contracts; and poison: content and labels of NaN
beside the columns that it reads change no bit of what it predicts.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from torch import Tensor

from feedworks.contracts.features import FEATURE_TABLES, ONBOARDING
from feedworks.contracts.files import read_file
from feedworks.contracts.retention import OBSERVABLES_FILE, SAMPLES
from feedworks.errors import FeedworksError, ModelError
from feedworks.features.schema import FEATURES_FILE, ServiceSchema, training_only_columns, type_name
from feedworks.ocarm.data import Content, ItemTable, Observable, observables
from feedworks.ocarm.model import Student
from feedworks.ocarm.packaging import teacher_names
from feedworks.ocarm.predictor import load_student, read_architecture, require_student
from feedworks.reports.html import Report
from feedworks.storage import read_json, write_json
from feedworks.training.checkpoint import WEIGHTS, load_tensors

VERDICT, PAGE = "verdict.json", "verdict.html"
NUM_ROWS = 64
POISONED_ITEMS = 5
FORBIDDEN = frozenset({*training_only_columns(), *(c.name for c in SAMPLES.columns if c.side == "label")})


class Check(NamedTuple):
    """One check; `detail` says what was looked at, or what was found."""

    name: str
    passed: bool
    detail: str


class Verdict(NamedTuple):
    """All checks."""

    checks: tuple[Check, ...]

    @property
    def clean(self) -> bool:
        """Whether all passed."""
        return all(check.passed for check in self.checks)

    def require_clean(self) -> None:
        """Stop a run that leaks.

        Raises:
            ModelError: a check failed; it names all that did.
        """
        if not self.clean:
            failed = "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)
            raise ModelError(f"the student may not be served: {failed}")


def audit_student(student: Path, teacher: Path, observables: Path, out_dir: Path) -> Verdict:
    """Check a trained student and write the verdict, whatever it is.

    Args:
        student: its model folder.
        teacher: that of its teacher.
        observables: what it was trained on.
        out_dir: an existing folder for verdict.json and verdict.html.

    Raises:
        FeedworksError: a folder is missing or damaged, so that there is nothing to check.
    """
    tensors = load_tensors(student)
    verdict = Verdict(
        (
            check_columns(student, observables),
            check_names(student, tensors),
            check_tensors(tensors, load_tensors(teacher), teacher_only(teacher, student)),
            *_check_model(student, observables),
        )
    )
    checks = [check._asdict() for check in verdict.checks]
    facts = {"clean": verdict.clean, "student": weights_digest(student), "checks": checks}
    write_json(out_dir / VERDICT, facts)
    _write_page(out_dir / PAGE, verdict)
    return verdict


def require_cleared(verdict: Path, student: Path) -> None:
    """Check that the verdict in a folder is clean and is about these weights.

    Raises:
        ModelError: it is not, or it is about another student.
        DataError: there is none.
    """
    facts = read_json(verdict / VERDICT)
    if not facts["clean"]:
        raise ModelError(f"{verdict}: the audit of the student was not clean; see {PAGE} in it")
    if facts["student"] != weights_digest(student):
        raise ModelError(f"{verdict} is about another student than {student}; audit this one")


def weights_digest(student: Path) -> str:
    """The sha256 of a model folder's weights."""
    with (student / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_columns(student: Path, observables: Path) -> Check:
    """What the student reads must stand in the contracts and be known at bid time; so must its table."""
    name = "columns"
    try:
        schema = ServiceSchema.read(student / FEATURES_FILE).require_servable()
        require_student(schema, read_architecture(student))
    except FeedworksError as error:
        return Check(name, False, str(error))
    known = {
        (table.name, column.name): type_name(column.type)
        for table in FEATURE_TABLES
        if not table.training_only
        for column in table.features
    }
    foreign = [
        f"{view.name}.{feature.name}"
        for view in schema.views
        for feature in view.features
        if known.get((view.name, feature.name)) != feature.type
    ]
    if foreign:
        return Check(name, False, f"not of the contracts: {', '.join(foreign)}")
    table = read_file(observables / OBSERVABLES_FILE).column_names
    if leaked := sorted(training_only_columns() & set(table)):
        return Check(name, False, f"the training table holds {', '.join(leaked)}")
    count = len(schema.columns)
    return Check(name, True, f"{count} features of {len(schema.views)} views, all known at bid time")


def check_names(student: Path, tensors: Mapping[str, Tensor]) -> Check:
    """The checkpoint must hold the parameters of a student and no other."""
    try:
        load_student(student)
    except ModelError as error:
        return Check("state dict", False, str(error))
    return Check("state dict", True, f"{len(tensors)} tensors, all of them the student's")


def teacher_only(teacher: Path, student: Path) -> set[str]:
    """Names in the teacher's checkpoint that a student lacks."""
    return teacher_names(read_architecture(student)) & load_tensors(teacher).keys()


def check_tensors(tensors: Mapping[str, Tensor], teacher: Mapping[str, Tensor], names: set[str]) -> Check:
    """No tensor of the teacher's own may be in the student under any name; constants say nothing."""
    own = {_digest(teacher[name]): name for name in names if _says_something(teacher[name])}
    found = [f"{name} is {own[key]}" for name, x in tensors.items() if (key := _digest(x)) in own]
    if found:
        return Check("teacher's weights", False, f"in the student: {', '.join(found)}")
    return Check("teacher's weights", True, f"none of {len(own)} tensors is in the student")


def check_signature(student: Student) -> Check:
    """`forward` must take the observables and nothing else."""
    names = list(inspect.signature(student.forward).parameters)
    hints = get_type_hints(type(student).forward)
    if names != ["observable"] or hints.get("observable") is not Observable:
        return Check("signature", False, f"forward takes {', '.join(names)}")
    return Check("signature", True, f"forward takes {', '.join(Observable._fields)}")


def check_program(student: Student, observable: Observable) -> Check:
    """The exported program must have the observables as its inputs, and no constant besides parameters."""
    program = torch.export.export(student, (observable,))
    signature = program.graph_signature
    inputs, constants = list(signature.user_inputs), list(signature.lifted_tensor_constants)
    held = {*signature.inputs_to_parameters.values(), *signature.inputs_to_buffers.values()}
    wrong = [str(each) for each in inputs if any(field.lower() in str(each) for field in _content_fields())]
    if len(inputs) != len(Observable._fields) or wrong or constants or held - student.state_dict().keys():
        found = [*map(str, inputs), *constants, *sorted(held - student.state_dict().keys())]
        return Check("exported program", False, f"it reads {', '.join(found)}")
    return Check("exported program", True, f"inputs {', '.join(map(str, inputs))}; no constants")


def check_poison(student: Student, catalogue: ItemTable, columns: Mapping[str, Any]) -> Check:
    """Content and labels, real or poisoned or absent, must not change a bit of the predictions."""
    num_rows = len(columns["bid_time"])
    rng = np.random.default_rng(0)
    real = {
        column.name: [rng.integers(1, 9, POISONED_ITEMS) for _ in range(num_rows)]
        for column in ONBOARDING.features
    }
    nan: dict[str, Any] = {name: [np.full(POISONED_ITEMS, np.nan)] * num_rows for name in real}
    nan |= {name: np.full(num_rows, np.nan) for name in FORBIDDEN if name not in real}
    clean = {name: column for name, column in columns.items() if name not in FORBIDDEN}
    found = [_logits(student, catalogue, {**clean, **added}) for added in ({}, real, nan)]
    if any(not torch.equal(found[0].view(torch.int32), other.view(torch.int32)) for other in found[1:]):
        return Check("poison", False, "content or labels of NaN change what is predicted")
    return Check("poison", True, f"no bit of {num_rows} predictions depends on {', '.join(sorted(nan))}")


def _check_model(student: Path, folder: Path) -> tuple[Check, ...]:
    """The checks that run the student; they fail together where it cannot be loaded."""
    try:
        model, catalogue = load_student(student), ItemTable.read(folder)
        rows = read_file(folder / OBSERVABLES_FILE).slice(0, NUM_ROWS)
        columns = {name: rows[name] for name in rows.column_names}
        observable = observables(columns, catalogue, model.architecture)
    except FeedworksError as error:
        return (Check("student", False, str(error)),)
    return (
        check_signature(model),
        check_program(model, observable),
        check_poison(model, catalogue, columns),
    )


@torch.inference_mode()
def _logits(student: Student, catalogue: ItemTable, columns: Mapping[str, Any]) -> Tensor:
    logit_BH: Tensor = student(observables(columns, catalogue, student.architecture))
    return logit_BH.float()


def _content_fields() -> set[str]:
    return set(Content._fields) - set(Observable._fields)


def _digest(tensor: Tensor) -> tuple[tuple[int, ...], str]:
    array = tensor.detach().cpu().contiguous().numpy()
    return tuple(array.shape), hashlib.sha256(array.tobytes()).hexdigest()


def _says_something(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor != tensor.flatten()[0]).any())


def _write_page(path: Path, verdict: Verdict) -> None:
    failed = sum(not check.passed for check in verdict.checks)
    report = Report("OCARM: audit of the student", "Content after the conversion must not reach serving.")
    report.add_highlights(
        {
            "Verdict": ("clean" if verdict.clean else "leaks", f"{len(verdict.checks)} checks"),
            "Failed": (failed, "must be 0"),
        }
    )
    report.add_table(
        "Checks",
        ["check", "passed", "what was looked at, or found"],
        [[check.name, "yes" if check.passed else "NO", check.detail] for check in verdict.checks],
    )
    report.write(path)
