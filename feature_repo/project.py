"""The project: everything else here belongs to it."""

from feast import Project

from feedworks.contracts.fields import PLATFORM_OWNER

feedworks_project = Project(
    name="feedworks",
    description="Features of users, items, authors and live rooms for recommendation models.",
    tags={"source": "feedworks.contracts.features"},
    owner=PLATFORM_OWNER,
)
