"""KuaiRand from small files in the published format, by a download from this machine to samples."""

import functools
import hashlib
import http.server
import tarfile
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from feedworks.contracts.files import read_table
from feedworks.contracts.retention import CATALOGUE, EVENTS, PROFILES
from feedworks.datasets import buckets, kuairand, registry
from feedworks.datasets.download import fetch
from feedworks.datasets.folder import open_data
from feedworks.datasets.registry import RemoteFile
from feedworks.errors import DataError
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.samples import build_samples
from feedworks.validation.gate import require_valid

START_MS = 1_649_347_200_000
DAY_MS = 86_400_000
LOGS = ("log_standard_4_08_to_4_21_1k", "log_standard_4_22_to_5_08_1k", "log_random_4_22_to_5_08_1k")
# Columns as published, in their order.
LOG_COLUMNS = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEO_COLUMNS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag"
)
USER_COLUMNS = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
    "register_days,register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
# Lines of the files as published (KuaiRand-Pure), some values taken out.
FEATURES = "1,1,29,949,1.0,0,0,{segment},135,6,3,0,0.0,,,,,"
USERS = (
    '0,full_active,0,1,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,'
    + FEATURES.format(segment=14)
    + '\n1,UNKNOWN,0,-124,1,457,"(250,500]",20,"[10,100)",3,"[1,5)",1474,730+,'
    + FEATURES.format(segment=-124)
    + "\n"
)
VIDEOS = """0,7349781,NORMAL,2022-04-10,LongImport,0.0,87433.0,720.0,1280.0,9155697141,9.0,39
1,2103883,AD,2022-03-08,Kmovie,0.0,,1280.0,720.0,6355810746,,"2,65"
2,5067285,NORMAL,,ShortImport,0.0,9233.0,720.0,1280.0,6618412736,4.0,
4,5067285,NORMAL,2022-04-09,ShortImport,0.0,9233.0,720.0,1280.0,6618412736,4.0,1
"""
KNOWN = {"user_id": 0, "activity": 5, "segment": 15, "follows": 8, "fans": 4, "friends": 4}
UNKNOWN = {"user_id": 1, "activity": 0, "segment": 0, "follows": 7, "fans": 3, "friends": 2}


def write_raw(folder, seed=0, users=USERS, videos=VIDEOS, num_users=2, num_events=900):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    events = pd.DataFrame(0, index=range(num_events), columns=LOG_COLUMNS.split(","))
    events["user_id"] = rng.integers(0, num_users, num_events)
    events["video_id"] = rng.choice([0, 1, 2, 9], num_events)
    events["time_ms"] = (
        START_MS + np.sort(rng.choice(31, num_events)) * DAY_MS + rng.integers(0, DAY_MS, num_events)
    )
    events["play_time_ms"] = rng.integers(0, 30_000, num_events)
    events["duration_ms"] = rng.choice([0, 10_000, 20_000], num_events)
    events["tab"] = rng.integers(0, 15, num_events)
    for name, part in zip(LOGS, np.array_split(np.arange(num_events), 3), strict=True):
        events.iloc[part].to_csv(folder / f"{name}.csv", index=False)
    (folder / "user_features_1k.csv").write_text(USER_COLUMNS + "\n" + users)
    (folder / "video_features_basic_1k.csv").write_text(VIDEO_COLUMNS + "\n" + videos)
    (folder / "video_features_statistic_1k.csv").write_text("not wanted\n")
    return events


@pytest.fixture
def raw(tmp_path):
    events = write_raw(tmp_path / "raw")
    return tmp_path / "raw", events


@pytest.fixture
def served(tmp_path):
    """A folder that is served, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        pass


def test_events_are_all_rows_of_all_logs_in_order(raw, tmp_path):
    folder, events = raw
    out = open_data(folder, tmp_path / "data", kind="retention")
    require_valid(out)
    share = np.where(events.duration_ms > 0, events.play_time_ms / events.duration_ms.clip(lower=1), 0)
    wanted = events.assign(engagement=share.clip(0, 1)).sort_values(["user_id", "time_ms", "video_id"])
    found = read_table(EVENTS, out).to_pandas()
    assert found["user_id"].tolist() == wanted["user_id"].tolist()
    assert found["item_id"].tolist() == wanted["video_id"].tolist()
    assert found["surface"].tolist() == wanted["tab"].tolist()
    assert (found["event_time"].astype("int64") // 1000).tolist() == wanted["time_ms"].tolist()
    assert found["engagement"].tolist() == pytest.approx(wanted["engagement"].tolist())


def test_the_catalogue_has_the_videos_that_occur(raw, tmp_path):
    rows = read_table(CATALOGUE, kuairand.convert(raw[0], tmp_path / "data", version="1K")).to_pylist()
    assert [row["item_id"] for row in rows] == [0, 1, 2, 9]
    assert [row["author_id"] for row in rows] == [7349781, 2103883, 5067285, 0]
    assert [row["category"] for row in rows] == [40, 3, 0, 0]
    first, ad, third, unknown = (row["vector"] for row in rows)
    assert len(first) == kuairand.VECTOR_WIDTH
    uploads = len(kuairand.UPLOADS)
    assert first[:6] == pytest.approx([np.log(87.433 / 60) / 2, 1, 0, 1, 0, 0.5])
    assert ad[:6] == pytest.approx([0, 0, 1, 0, np.log1p(31) / 4, 1])
    assert third[:6] == pytest.approx([np.log(9.233 / 60) / 2, 1, 0, 1, 0, 0])
    assert (first[6], ad[6 + kuairand.UPLOADS.index("Kmovie")]) == (1, 1)
    assert (first[6 + uploads :], third[6 + uploads :]) == ([0, 1], [1, 0])
    assert not any(unknown)


def test_profiles_are_codes_and_0_is_unknown(raw, tmp_path):
    out = kuairand.convert(raw[0], tmp_path / "data", version="1K")
    assert read_table(PROFILES, out).to_pylist() == [
        {**KNOWN, "tenure_days": 799.0},
        {**UNKNOWN, "tenure_days": 1474.0},
    ]


def test_many_small_buckets_give_the_same_files(raw, tmp_path, monkeypatch):
    users = "".join(USERS.splitlines(keepends=True)[0].replace("0,", f"{i},", 1) for i in (8, 2, 0, 5, 1, 7))
    write_raw(tmp_path / "more", users=users, num_users=9)
    whole = kuairand.convert(tmp_path / "more", tmp_path / "whole", version="1K")
    monkeypatch.setattr(kuairand, "BUCKET_BYTES", 5_000)
    monkeypatch.setattr(kuairand, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(buckets, "WAITING_ROWS", 100)
    parts = kuairand.convert(tmp_path / "more", tmp_path / "parts", version="1K")
    for contract in (EVENTS, CATALOGUE, PROFILES):
        assert read_table(contract, parts).equals(read_table(contract, whole))
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_from_a_download_to_samples(served, tmp_path):
    folder, address = served
    write_raw(tmp_path / "KuaiRand-1K" / "data", num_events=60)
    archive = folder / kuairand.archive_name("1K")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "KuaiRand-1K", "KuaiRand-1K")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    file = RemoteFile(url=f"{address}/{archive.name}", name=archive.name, md5=md5)
    data_set = replace(registry.get("kuairand_1k"), files=(file,))
    raw = fetch(data_set, tmp_path / "cache")
    assert registry.detect(raw).name == "kuairand_1k"
    out = data_set.convert(raw, tmp_path / "data")
    require_valid(out)
    unpacked = raw / "KuaiRand-1K" / "data"
    assert "video_features_statistic_1k.csv" not in [path.name for path in unpacked.iterdir()]
    # The second time the unpacked files serve, with or without the archive.
    (raw / archive.name).unlink()
    again = data_set.convert(raw, tmp_path / "again")
    assert read_table(EVENTS, again).equals(read_table(EVENTS, out))
    cfg = SamplesConfig(horizons=(1,), embargo=False)
    assert build_samples(out, tmp_path / "samples", tmp_path / "tables", cfg).num_samples > 2
    with pytest.raises(DataError, match=r"labels inside the log of 29.7 days"):
        build_samples(out, tmp_path / "samples", tmp_path / "tables", SamplesConfig(horizons=(1, 30)))


def test_a_download_with_another_sum_is_refused(served, tmp_path):
    folder, address = served
    (folder / "a.tar.gz").write_bytes(b"other bytes")
    file = RemoteFile(url=f"{address}/a.tar.gz", name="a.tar.gz", md5="0" * 32)
    with pytest.raises(DataError, match=r"md5 is .* expected 00000000000000000000000000000000"):
        fetch(replace(registry.get("kuairand_1k"), files=(file,)), tmp_path / "cache")
    assert not (tmp_path / "cache" / "kuairand_1k" / "a.tar.gz").exists()


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (LOGS[0], "tab", "scene", r"log_standard_4_08_to_4_21_1k.csv: not what is published .*tab"),
        (LOGS[1], "\n0,", "\nx,", r"log_standard_4_22_to_5_08_1k.csv: not what is published"),
        (
            LOGS[1],
            "\n0,",
            "\n77,",
            r"log_standard_4_22_to_5_08_1k.csv: column user_id: 77 is not from 0 to 1",
        ),
        (LOGS[2], "\n0,", "\n,", r"log_random_4_22_to_5_08_1k.csv: column user_id has \d+ rows without"),
        ("video_features_basic_1k", "tag", "topic", r"video_features_basic_1k.csv: not what is published"),
        (
            "video_features_basic_1k",
            "\n1,",
            "\n0,",
            r"video_features_basic_1k.csv: a video stands there twice",
        ),
        ("user_features_1k", "register_days", "days", r"user_features_1k.csv: not what is published"),
    ],
)
def test_broken_files_are_named(raw, tmp_path, file, old, new, said):
    path = raw[0] / f"{file}.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=said):
        kuairand.convert(raw[0], tmp_path / "data", version="1K")


def test_missing_files_are_named(raw, tmp_path):
    (raw[0] / "video_features_basic_1k.csv").unlink()
    with pytest.raises(DataError, match=r"video_features_basic_1k\.csv is missing"):
        kuairand.convert(raw[0], tmp_path / "data", version="1K")
    for name in LOGS:
        (raw[0] / f"{name}.csv").unlink()
    with pytest.raises(DataError, match=r"holds no log_\*\.csv"):
        kuairand.convert(raw[0], tmp_path / "data", version="1K")
