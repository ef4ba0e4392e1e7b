"""RecoChain (arXiv 2604.25787): the best linear ranker of the evidence.

Shape legend: B rows, K candidates, J pieces of evidence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feedworks.recochain.losses import rank_loss


def fit_evidence(evidence_BKJ: Tensor, present_BK: Tensor, kind: str) -> tuple[list[float], float]:
    """Find the weights and the bias that minimise the ranking loss.

    With `listwise` this is conditional logistic regression: only differences within a row count. Plain
    logistic regression (`bce`) also has to explain how likely each row is to hold its target, and spends the
    weight of the log-probability on that. The problem is convex; a standard normal prior on the weights of
    standardised evidence keeps separable rows finite.

    Args:
        evidence_BKJ: evidence, the right candidate in column 0.
        present_BK: which candidates are real.
        kind: as in `rank_loss`.
    """
    rows = evidence_BKJ[present_BK].double()
    mean_J, scale_J = rows.mean(dim=0), rows.std(dim=0, correction=0) + 1e-6
    table_BKJ = (evidence_BKJ.double() - mean_J) / scale_J
    weight_J = torch.zeros(len(mean_J), dtype=torch.double, requires_grad=True)
    bias = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        (weight_J, bias), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        prior = weight_J.square().sum() / 2 / len(table_BKJ)
        loss = rank_loss(table_BKJ @ weight_J + bias, present_BK, kind) + prior
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    weights = weight_J.detach() / scale_J
    return weights.tolist(), float(bias.detach() - weights @ mean_J)
