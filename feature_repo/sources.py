"""Where rows of features come from: a parquet file per table, and for live rooms a push source besides."""

from pathlib import Path

from feedworks.contracts import features
from feedworks.contracts.fields import push_source_of, source_of
from feedworks.features.repo import offline_of, tables_folder

REPO = Path(__file__).parent
FOLDER, OFFLINE = tables_folder(REPO), offline_of(REPO)

user_profile_file = source_of(features.USER_PROFILE, FOLDER, OFFLINE)
interaction_aggregates_file = source_of(features.INTERACTION_AGGREGATES, FOLDER, OFFLINE)
ad_context_file = source_of(features.AD_CONTEXT, FOLDER, OFFLINE)
onboarding_file = source_of(features.ONBOARDING, FOLDER, OFFLINE)
item_profile_file = source_of(features.ITEM_PROFILE, FOLDER, OFFLINE)
author_profile_file = source_of(features.AUTHOR_PROFILE, FOLDER, OFFLINE)
live_stream_file = source_of(features.LIVE_STREAM, FOLDER, OFFLINE)
live_stream_push = push_source_of(features.LIVE_STREAM, live_stream_file)
