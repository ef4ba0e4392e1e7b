"""Views of users, all known before a model is asked."""

import sources

from feedworks.contracts import features
from feedworks.contracts.fields import view_of

user_profile = view_of(features.USER_PROFILE, sources.user_profile_file)
interaction_aggregates = view_of(features.INTERACTION_AGGREGATES, sources.interaction_aggregates_file)
ad_context = view_of(features.AD_CONTEXT, sources.ad_context_file)
