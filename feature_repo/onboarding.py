"""What a user met after coming back: for training alone, never materialised, in no served model's reach."""

import sources

from feedworks.contracts import features
from feedworks.contracts.fields import view_of

onboarding = view_of(features.ONBOARDING, sources.onboarding_file)
