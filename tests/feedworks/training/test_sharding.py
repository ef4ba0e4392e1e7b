import torch

from feedworks.training.sharding import cut_like, is_cut, local, round_weights, whole

from .toy import Toy


def test_without_other_processes_nothing_is_cut():
    tensor = torch.arange(3.0)
    assert not is_cut(tensor)
    assert whole(tensor) is local(tensor) is cut_like(tensor, torch.zeros(3)) is tensor


def test_rounding_keeps_ties_buffers_and_what_is_frozen():
    module = Toy()
    module.register_buffer("angle", torch.rand(3))
    exact = module.frozen.weight.detach().clone()
    round_weights(module)
    assert module.out.weight is module.table.weight
    assert module.angle.dtype == torch.float32
    assert not module.frozen.weight.requires_grad
    assert torch.equal(module.frozen.weight.float(), exact.bfloat16().float())
