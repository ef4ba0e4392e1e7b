"""Views of items and of those who make them."""

import sources

from feedworks.contracts import features
from feedworks.contracts.fields import view_of

item_profile = view_of(features.ITEM_PROFILE, sources.item_profile_file)
author_profile = view_of(features.AUTHOR_PROFILE, sources.author_profile_file)
