"""What each model may read. The contracts say which tables; the student's have no onboarding content."""

from items import item_profile
from live_stream import live_stream
from onboarding import onboarding
from users import ad_context, interaction_aggregates, user_profile

from feedworks.contracts.features import (
    LIVE_SERVICE,
    SERVICES,
    STUDENT_ITEM_SERVICE,
    STUDENT_SERVICE,
    TEACHER_ITEM_SERVICE,
    TEACHER_SERVICE,
)
from feedworks.contracts.fields import service_of

_views = {
    view.name: view
    for view in (user_profile, interaction_aggregates, ad_context, onboarding, live_stream, item_profile)
}

ocarm_teacher_v1 = service_of(TEACHER_SERVICE, SERVICES, _views)
ocarm_student_v1 = service_of(STUDENT_SERVICE, SERVICES, _views)
ocarm_teacher_v2 = service_of(TEACHER_ITEM_SERVICE, SERVICES, _views)
ocarm_student_v2 = service_of(STUDENT_ITEM_SERVICE, SERVICES, _views)
live_stream_v1 = service_of(LIVE_SERVICE, SERVICES, _views)
