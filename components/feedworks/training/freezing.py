"""Training some of a module's parameters and leaving the others as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from torch import nn

from feedworks.errors import ConfigError


@contextmanager
def only_trained(module: nn.Module, chosen: Collection[str]) -> Iterator[None]:
    """Freeze all parameters but the chosen ones inside the block; after it each is as it was.

    Args:
        module: its frozen parameters get no gradient, no decay and no moments.
        chosen: names as in `named_parameters`.

    Raises:
        ConfigError: a name is not there, or there is none.
    """
    parameters = dict(module.named_parameters())
    if not chosen or not parameters.keys() >= set(chosen):
        unknown = sorted(set(chosen) - parameters.keys())
        raise ConfigError(f"nothing to train: of the parameters chosen the model lacks {unknown or 'all'}")
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in chosen)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
