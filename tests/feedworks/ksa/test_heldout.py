import pytest
import torch
import torch.nn.functional as F

from feedworks.errors import DataError
from feedworks.ksa.heldout import LOSS, MONITOR, evaluation, heldout_loss, rows_of

from .training import SEQ_LEN, model, text


def test_rows_are_spread_over_the_text():
    tokens = torch.arange(107).numpy()
    assert rows_of(tokens, 10)[:, 0].tolist() == list(range(0, 100, 10))
    assert rows_of(tokens, 10, 3)[:, 0].tolist() == [0, 30, 60]
    assert rows_of(tokens, 10, 50).shape == (10, 10)
    with pytest.raises(DataError, match="held-out text has 107 tokens, less than a row of 200"):
        rows_of(tokens, 200)


def test_the_loss_is_the_definition_in_all_and_by_place():
    network, rows = model().eval(), rows_of(text().tokens, SEQ_LEN, 7)
    with torch.no_grad():
        logits = network(rows).logits
    expected = F.cross_entropy(logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")
    found = heldout_loss(network, rows, batch_size=3, borders=(8, 20))
    assert found.loss == pytest.approx(expected.mean().item(), rel=1e-6)
    assert found.num_tokens == expected.numel()
    parts = [expected[:, :7], expected[:, 7:19], expected[:, 19:]]  # place 0 has one token before it
    assert found.bucket_losses == pytest.approx([part.mean().item() for part in parts], rel=1e-6)
    assert heldout_loss(network, rows, borders=(100,)).bucket_losses == pytest.approx([found.loss])


def test_what_a_stage_is_given():
    network, rows = model().eval(), rows_of(text().tokens, SEQ_LEN, 7)
    loss = heldout_loss(network, rows).loss
    assert evaluation(rows)(network, 0) == {LOSS: loss, MONITOR: -loss}
    assert evaluation(rows, bfloat16=True)(network, 0)[LOSS] == pytest.approx(loss, abs=2e-2)
