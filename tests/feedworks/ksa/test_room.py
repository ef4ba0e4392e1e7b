"""How many streams a service has, and whether their caches have room, before it starts."""

from __future__ import annotations

import pytest

from feedworks.errors import ConfigError, ModelError
from feedworks.ksa import room
from feedworks.ksa.cache import KsaCache
from feedworks.ksa.settings import PackageConfig

from . import served


def test_all_workers_have_a_cache_and_weights_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = served.model()
    limits = PackageConfig(max_context=96, max_streams=5)
    cache_bytes = KsaCache(model.config, 5, 96).num_bytes
    weight_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    needed = 3 * (cache_bytes + weight_bytes)
    monkeypatch.setattr(room, "machine_bytes", lambda: needed)
    room.check_room(model, limits, "cpu", num_workers=3)
    monkeypatch.setattr(room, "machine_bytes", lambda: needed - 1)
    with pytest.raises(ConfigError, match=r"3 workers with 5 streams .* at most 4 such streams fit"):
        room.check_room(model, limits, "cpu", num_workers=3)
    monkeypatch.setattr(room, "machine_bytes", lambda: weight_bytes - 1)
    with pytest.raises(ConfigError, match=r"GiB of weights, cpu has .* at most 0 such streams fit"):
        room.check_room(model, limits, "cpu", num_workers=1)


def test_a_gpu_has_what_is_free_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FREE", "print(3 << 30)")
    assert room.free_bytes("cuda") == 3 << 30
    with pytest.raises(ConfigError, match=r"cuda has 3\.0 GiB free: lower FEEDWORKS_STREAMS=1000000 or"):
        room.check_room(served.model(), PackageConfig(max_streams=1_000_000), "cuda", num_workers=1)


def test_a_gpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_FREE", "raise RuntimeError('no driver')")
    with pytest.raises(ModelError, match="the GPU does not tell its free memory: RuntimeError: no driver"):
        room.free_bytes("cuda")


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (room.STREAMS, "0", "FEEDWORKS_STREAMS=0: expected at least 1"),
        (room.STREAMS, "many", "FEEDWORKS_STREAMS: expected a whole number, got 'many'"),
        (room.CONTEXT, "7", "FEEDWORKS_CONTEXT=7: expected 8 to "),
    ],
)
def test_a_limit_out_of_range_is_told_by_its_variable(
    name: str, given: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, given)
    with pytest.raises(ConfigError, match=said) as error:
        room.limits_here(PackageConfig())
    assert "package." not in str(error.value)
