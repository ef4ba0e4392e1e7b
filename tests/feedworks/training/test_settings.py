import pytest

from feedworks.configuration import from_json, to_json, with_overrides
from feedworks.errors import ConfigError
from feedworks.training.settings import TrainConfig

CONFIG = TrainConfig(epochs=2, batch_size=4)


def test_settings_round_trip_and_take_overrides():
    changed = with_overrides(CONFIG, ["lr=0.5", "betas=0.8,0.9", "schedule=cosine", "devices=2"])
    assert changed == TrainConfig(
        epochs=2, batch_size=4, lr=0.5, betas=(0.8, 0.9), schedule="cosine", devices="2"
    )
    assert from_json(TrainConfig, to_json(changed)) == changed


@pytest.mark.parametrize(
    "override",
    [
        "epochs=0",
        "batch_size=-1",
        "accumulate=0",
        "eval_every=0",
        "lr=-1",
        "lr=nan",
        "lr=inf",
        "grad_clip=-0.1",
        "min_lr_ratio=1.5",
        "betas=0.9",
        "betas=0.9,1.0",
        "devices=two",
        "devices=0",
        "devices=²",
        "schedule=step",
        "precision=16-mixed",
        "accelerator=abacus",
        "strategy=horovod",
        "decay_steps=5",
        "schedule=wsd",
    ],
)
def test_a_senseless_setting_is_refused_by_name(override):
    name = "decay_steps" if override == "schedule=wsd" else override.partition("=")[0]
    with pytest.raises(ConfigError, match=name):
        with_overrides(CONFIG, [override])
