"""What rows of features are about."""

from feedworks.contracts.fields import entity_of

user = entity_of("user_id")
author = entity_of("author_id")
live_room = entity_of("room_id")
item = entity_of("item_id")
