"""The real snapshot against what is published about it: counts, retention, and what content tells."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest

from feedworks.contracts.features import ONBOARDING
from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, SAMPLES
from feedworks.datasets import registry
from feedworks.datasets.folder import open_data
from feedworks.features.training_set import build_training_set
from feedworks.metrics.classification import auc
from feedworks.ocarm.bench import TWEETINGS
from feedworks.ocarm.config import SamplesConfig, resolve
from feedworks.ocarm.rows import read_inputs
from feedworks.ocarm.samples import build_samples
from feedworks.validation.gate import require_valid

pytestmark = pytest.mark.real_data
NEW_USERS = SamplesConfig(
    idle_days=1000, first_is_conversion=True, landing_item=True, horizons=(7, 30), embargo=False
)


@pytest.fixture(scope="module")
def raw(real_data):
    folder = real_data / "movietweetings_100k"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return folder


@pytest.fixture(scope="module")
def made(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("tweetings")
    data = open_data(raw, out / "data", kind="retention")
    built = build_samples(data, out / "samples", out / "tables", NEW_USERS)
    return SimpleNamespace(data=data, samples=out / "samples", tables=out / "tables", built=built)


def test_the_files_are_those_of_the_registry(raw):
    for file in registry.get("movietweetings_100k").files:
        assert hashlib.sha256((raw / file.name).read_bytes()).hexdigest() == file.sha256


def test_the_events_pass_the_gate(made):
    assert require_valid(made.data).rows == {"catalogue": 10_506, "events": 100_000}


def test_as_many_new_users_come_back_as_published(made):
    assert made.built.num_samples == made.built.num_users == 14_242
    assert round(made.built.positive["lt30"], 3) == 0.381
    assert round(made.built.positive["lt7"], 3) == 0.199
    samples = read_table(SAMPLES, made.samples).to_pandas()
    content = read_table(ONBOARDING, made.tables, ["user_id", "content_item"]).to_pandas()
    count = samples.merge(content, on="user_id")["content_item"].str.len()
    assert (len(count), round(count.mean(), 2), round((count > 1).mean(), 3)) == (14_242, 1.38, 0.165)


def test_content_tells_more_than_what_is_known_before(made):
    """Gradient boosting, split by time: .574 -> .652 for 30 days, .562 -> .670 for 7 days are published."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    samples = read_table(SAMPLES, made.samples).to_pandas()
    catalogue = read_table(CATALOGUE, made.data)
    vector_IV = np.stack(catalogue["vector"].to_numpy())
    ids = catalogue["item_id"].to_numpy()
    test_N = (samples["split"] == "test").to_numpy()
    first_N = np.searchsorted(ids, samples["ad_item"])
    popularity_I = np.bincount(first_N[~test_N], minlength=len(ids))
    time = samples["content_start"].dt
    before_NF = np.column_stack([time.hour, time.dayofweek, vector_IV[first_N], popularity_I[first_N]])
    content = read_table(ONBOARDING, made.tables).to_pandas()
    content = samples[["user_id"]].merge(content, on="user_id")
    met = [vector_IV[np.searchsorted(ids, items)].sum(0) for items in content["content_item"]]
    liked = content["content_engagement"]
    after_NF = np.column_stack([liked.str.len(), liked.map(np.mean), liked.str[0], np.stack(met)])
    for label, known, told in (("lt30", 0.574, 0.652), ("lt7", 0.562, 0.670)):
        label_N = (samples[label] > 0).to_numpy()
        found = []
        for x_NF in (before_NF, np.column_stack([before_NF, after_NF])):
            model = HistGradientBoostingClassifier(learning_rate=0.05, early_stopping=False, random_state=0)
            model.fit(x_NF[~test_N], label_N[~test_N])
            found.append(auc(label_N[test_N], model.predict_proba(x_NF[test_N])[:, 1]))
        assert found[0] == pytest.approx(known, abs=0.025)
        assert found[1] == pytest.approx(told, abs=0.015)


def test_boosted_trees_on_what_our_models_read_at_bid_time(made):
    """The same tensors as every arm, popularity as of the bid: .558 for 7 days, .581 for 30 days."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    folder = made.samples.parent / "joined"
    build_training_set(made.samples, made.tables, folder, None)
    inputs = read_inputs(folder, resolve("small", TWEETINGS))

    def seen(split):
        found = inputs.rows[split].observable
        vector_NV = inputs.items.vector_IV[found.ad_item_B.numpy() - 1]
        return np.column_stack([found.number_BP.numpy(), found.code_BC.numpy(), vector_NV])

    known = ("train", "valid")
    for place, expected in enumerate((0.558, 0.581)):
        label = {split: rows.label_BH[:, place].numpy() > 0 for split, rows in inputs.rows.items()}
        model = HistGradientBoostingClassifier(learning_rate=0.05, early_stopping=False, random_state=0)
        model.fit(np.concatenate([seen(s) for s in known]), np.concatenate([label[s] for s in known]))
        found = auc(label["test"], model.predict_proba(seen("test"))[:, 1])
        assert found == pytest.approx(expected, abs=0.02)
