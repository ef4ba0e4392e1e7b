"""Live rooms now: rolling counts and the current semantic anchor, pushed as they happen.

A FeatureView over a PushSource: Feast calls its StreamFeatureView experimental, and this one is not.
"""

import sources

from feedworks.contracts import features
from feedworks.contracts.fields import view_of

live_stream = view_of(features.LIVE_STREAM, sources.live_stream_push)
