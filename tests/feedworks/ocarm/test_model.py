"""What the paper claims of its encoders, as properties of ours."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from feedworks.nn.attention import masked_mean
from feedworks.ocarm.config import Architecture, resolve
from feedworks.ocarm.data import Content, Observable, content, observables, without_view
from feedworks.ocarm.model import PPNetBase, Student, Teacher, filled

from . import toy

B = 7


@pytest.fixture(scope="module")
def given() -> tuple[Architecture, Observable, Content]:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(B, items)
    return architecture, observables(columns, items, architecture), content(columns, items, architecture)


def teacher(architecture: Architecture) -> Teacher:
    torch.manual_seed(0)
    model = Teacher(architecture)
    filled(model, toy.catalogue())
    return model.eval()


def student(architecture: Architecture) -> Student:
    torch.manual_seed(0)
    model = Student(architecture)
    filled(model, toy.catalogue())
    return model.eval()


def day_states(model: Teacher, observable: Observable, given: Content) -> Tensor:
    seen = model.observer(observable)
    token = model.hae.token_norm(
        model.observer.items(*given.code_BDN2.unbind(-1)) + model.hae.number(given.number_BDN2)
    )
    return model.hae.states(model.hae.days(seen.x_BU, token, given), given.seen_BD)


def test_shapes(given: tuple[Architecture, Observable, Content]) -> None:
    architecture, observable, met = given
    width = architecture.model.width
    for model, inputs in ((teacher(architecture), (observable, met)), (student(architecture), (observable,))):
        logit_BH, vector_BHD = model.both(*inputs)  # type: ignore[operator]
        assert logit_BH.shape == (B, 2)
        assert vector_BHD.shape == (B, 2, width)
        assert logit_BH.isfinite().all()
        torch.testing.assert_close(vector_BHD.square().mean(dim=-1), torch.ones(B, 2), rtol=1e-3, atol=1e-3)
        assert torch.equal(model.vectors(*inputs), vector_BHD)  # type: ignore[operator]
    assert PPNetBase(architecture)(observable).shape == (B, 2)


def test_the_student_has_no_way_in_for_content(given: tuple[Architecture, Observable, Content]) -> None:
    architecture = given[0]
    model, other = student(architecture), teacher(architecture)
    assert list(inspect.signature(model.forward).parameters) == ["observable"]
    own = set(model.state_dict())
    assert not [name for name in own if "hae" in name or "content" in name]
    only_teacher = {name for name in other.state_dict() if name.startswith("hae.")}
    assert only_teacher
    assert not own & only_teacher
    program = torch.export.export(model, (given[1],))
    assert len(program.graph_signature.user_inputs) == len(Observable._fields)


def test_poisoned_content_changes_no_bit() -> None:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(B, items)
    poisoned = columns | {
        "content_item": [[-1, -1]] * B,
        "content_category": [[-1, -1]] * B,
        "content_engagement": [[float("nan")] * 2] * B,
        "content_time": [[-1, -1]] * B,
        "content_start": [None] * B,
        "label_start": [None] * B,
        "lt1": [float("nan")] * B,
    }
    model = student(architecture)
    before, after = (model(observables(given, items, architecture)) for given in (columns, poisoned))
    assert torch.equal(before, after)


def test_later_days_do_not_change_earlier_states(given: tuple[Architecture, Observable, Content]) -> None:
    architecture, observable, met = given
    model = teacher(architecture)
    changed = met._replace(
        code_BDN2=met.code_BDN2.clone(), number_BDN2=met.number_BDN2.clone(), count_BD=met.count_BD.clone()
    )
    changed.code_BDN2[:, 2, :, 0] = 1
    changed.number_BDN2[:, 2] += 3
    changed.count_BD[:, 2] += 1
    before, after = day_states(model, observable, met), day_states(model, observable, changed)
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_days_after_the_labels_began_are_never_read(given: tuple[Architecture, Observable, Content]) -> None:
    architecture, observable, met = given
    model = teacher(architecture)
    seen_BD = met.seen_BD.clone()
    seen_BD[:, 2] = False
    met = met._replace(seen_BD=seen_BD)
    number = met.number_BDN2.clone()
    number[:, 2] = torch.nan
    poisoned = met._replace(number_BDN2=number, count_BD=met.count_BD.clone())
    poisoned.count_BD[:, 2] = torch.nan
    assert torch.equal(model(observable, met), model(observable, poisoned))
    states = day_states(model, observable, met)
    last_and_mean = torch.cat([states[:, 1], masked_mean(states, seen_BD)], dim=1)
    found = torch.nn.functional.rms_norm(model.hae.heads[0](last_and_mean), (architecture.model.width,))
    torch.testing.assert_close(model.vectors(observable, met)[:, 0], found)


def test_padding_of_items_has_no_effect_not_even_nan(given: tuple[Architecture, Observable, Content]) -> None:
    architecture, observable, met = given
    model = teacher(architecture)
    real = torch.arange(met.number_BDN2.shape[2]) < met.length_BD.unsqueeze(-1)
    poisoned = met._replace(
        number_BDN2=met.number_BDN2.masked_fill(~real.unsqueeze(-1), torch.nan),
        code_BDN2=met.code_BDN2.masked_fill(~real.unsqueeze(-1), 3),
    )
    assert torch.equal(model(observable, met), model(observable, poisoned))
    assert model(observable, poisoned).isfinite().all()


def test_the_order_of_items_inside_a_day_does_not_matter(
    given: tuple[Architecture, Observable, Content],
) -> None:
    architecture, observable, met = given
    model = teacher(architecture)
    length = int(met.length_BD[2, 0])
    assert length > 1
    order = torch.arange(met.number_BDN2.shape[2])
    order[:length] = order[:length].flip(0)
    code, number = met.code_BDN2.clone(), met.number_BDN2.clone()
    code[2, 0], number[2, 0] = code[2, 0, order], number[2, 0, order]
    turned = met._replace(code_BDN2=code, number_BDN2=number)
    torch.testing.assert_close(model(observable, met), model(observable, turned))


def test_the_teacher_uses_content_and_the_number_of_items(
    given: tuple[Architecture, Observable, Content],
) -> None:
    architecture, observable, met = given
    model = teacher(architecture)
    assert not torch.equal(model(observable, met), model(observable, met._replace(count_BD=met.count_BD + 1)))
    other = met._replace(code_BDN2=met.code_BDN2.flip(0))
    assert not torch.equal(model(observable, met), model(observable, other))


def test_nothing_at_all_is_known_of_a_user(given: tuple[Architecture, Observable, Content]) -> None:
    architecture, observable, _ = given
    for view in ("user_profile", "interaction_aggregates", "ad_context"):
        observable = without_view(observable, view, toy.settings().samples)
    model = student(architecture)
    assert model(observable).isfinite().all()
    torch.testing.assert_close(model(observable)[1:2], model(Observable(*(x[1:2] for x in observable))))


def test_a_missing_view_has_no_influence_by_what_it_held(
    given: tuple[Architecture, Observable, Content],
) -> None:
    architecture, observable, _ = given
    model = student(architecture)
    dropped = without_view(observable, "interaction_aggregates", toy.settings().samples)
    held = dropped._replace(
        history_code_BT3=torch.ones_like(dropped.history_code_BT3),
        history_number_BT3=torch.full_like(dropped.history_number_BT3, torch.nan),
    )
    assert torch.equal(model(dropped), model(held))


def test_items_with_embeddings_of_their_own() -> None:
    architecture = toy.architecture(resolve("tiny", ["model.item_ids=true"]))
    items = toy.catalogue()
    observable = observables(toy.columns(B, items), items, architecture)
    assert student(architecture)(observable).shape == (B, 2)
    assert "observer.items.own.weight" in student(architecture).state_dict()
