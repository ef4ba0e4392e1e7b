"""Packed rows in Redis: names of the keys, one MGET for all views, and a write that never goes back in time.

A key is `fw:<project>:<view>:<digest>:` and the entity's key in Feast's serialisation. The digest of the
row's layout stands in the key and in the row: models of the old and of the new version of a view read side by
side, each the rows of its own version.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from feedworks.features.packed_rows import RowLayout

if TYPE_CHECKING:
    import redis

# Feast's numbers of value types in the serialised key of an entity, version 3.
_STRING, _INT64 = 2, 4
# Redis serves nobody else while a script runs: 500 rows take it two milliseconds.
ROWS_PER_CALL = 500
# While Redis works on one call, the next ones are on their way.
ROWS_PER_SEND = 10_000
# KEYS[i] -> ARGV[i]; a row begins with event_us and created_us, int64 little-endian. Redis runs a script
# alone, so no other writer comes in between. Lua's numbers hold 53 bits: halves are compared.
WRITE_NEWER = """
local written = 0
for i = 1, #KEYS do
  local old = redis.call('GETRANGE', KEYS[i], 0, 15)
  local newer = #old < 16
  if not newer then
    local low, high, made_low, made_high = struct.unpack('<I4i4I4i4', old)
    local new_low, new_high, new_made_low, new_made_high = struct.unpack('<I4i4I4i4', ARGV[i])
    if new_high ~= high then newer = new_high > high
    elseif new_low ~= low then newer = new_low > low
    elseif new_made_high ~= made_high then newer = new_made_high > made_high
    else newer = new_made_low >= made_low end
  end
  if newer then
    local seconds = ARGV[#KEYS + 1]
    if seconds == '0' then redis.call('SET', KEYS[i], ARGV[i])
    else redis.call('SET', KEYS[i], ARGV[i], 'EX', seconds) end
    written = written + 1
  end
end
return written
"""


def project_prefix(project: str) -> bytes:
    """What the keys of all views of a project begin with."""
    return f"fw:{project}:".encode()


def view_prefix(project: str, view: str) -> bytes:
    """What the keys of all versions of a view begin with."""
    return project_prefix(project) + f"{view}:".encode()


def key_prefix(project: str, layout: RowLayout) -> bytes:
    """What the keys of the rows of this layout begin with; the entity's serialised key follows."""
    return view_prefix(project, layout.view) + f"{layout.digest}:".encode()


def entity_prefix(join_key: str) -> bytes:
    """What Feast's serialised key of an entity with one int64 join key begins with; 8 bytes follow."""
    name = join_key.encode()
    return struct.pack("<III", 1, _STRING, len(name)) + name + struct.pack("<II", _INT64, 8)


def scan_pattern(prefix: bytes) -> bytes:
    """The pattern of SCAN for keys that begin with `prefix`."""
    escaped = b"".join(b"\\" + bytes([b]) if b in b"*?[]\\^-" else bytes([b]) for b in prefix)
    return escaped + b"*"


class MGet:
    """Builds the command that reads the rows of N entities in V views, as it goes over the wire.

    The client library packs 2,500 keys in 3 ms; all keys of a view are equally long, so numpy does it in 0.1.

    Args:
        project: of the feature store.
        layouts: one per view, each of one int64 join key.
    """

    def __init__(self, project: str, layouts: Sequence[RowLayout]) -> None:
        prefixes = [key_prefix(project, layout) + entity_prefix(layout.entity) for layout in layouts]
        self._heads = [b"$%d\r\n" % (len(prefix) + 8) + prefix for prefix in prefixes]

    def command(self, *key_N: npt.NDArray[np.int64]) -> bytes:
        """The command for keys `(N,)`, the same for all views or one array per view.

        The answer holds the views one after the other.
        """
        keys = key_N * len(self._heads) if len(key_N) == 1 else key_N
        parts = [b"*%d\r\n$4\r\nMGET\r\n" % (1 + sum(map(len, keys)))]
        for head, of_view in zip(self._heads, keys, strict=True):
            chunk = np.empty((len(of_view), len(head) + 10), dtype=np.uint8)
            chunk[:, : len(head)] = np.frombuffer(head, np.uint8)
            chunk[:, len(head) : -2] = of_view.astype("<i8").view(np.uint8).reshape(-1, 8)
            chunk[:, -2:] = (13, 10)
            parts.append(chunk.tobytes())
        return b"".join(parts)


def write_rows(
    client: redis.Redis, project: str, layout: RowLayout, keys: Sequence[int], rows: Sequence[bytes]
) -> int:
    """Write packed rows of entities with one int64 join key; a row older than the stored one is left out.

    Returns:
        How many were written.
    """
    return write_newer(client, entity_keys(project, layout, np.asarray(keys, dtype=np.int64)), rows)


def entity_keys(project: str, layout: RowLayout, key_N: npt.NDArray[np.int64]) -> list[bytes]:
    """Keys of the rows of entities `(N,)` with one int64 join key."""
    prefix = key_prefix(project, layout) + entity_prefix(layout.entity)
    ids = key_N.astype("<i8").tobytes()
    return [prefix + ids[i : i + 8] for i in range(0, len(ids), 8)]


def write_newer(client: redis.Redis, keys: Sequence[bytes], rows: Sequence[bytes], expire_s: int = 0) -> int:
    """Write packed rows under whole keys, the newer ones only; returns how many.

    Args:
        client: of redis-py.
        keys: as `key_prefix` and the entity's serialised key.
        rows: one per key.
        expire_s: seconds after which Redis forgets a row; never where 0.
    """
    script = client.register_script(WRITE_NEWER)
    written = 0
    for begin in range(0, len(keys), ROWS_PER_SEND):
        end = min(len(keys), begin + ROWS_PER_SEND)
        calls = [slice(start, min(start + ROWS_PER_CALL, end)) for start in range(begin, end, ROWS_PER_CALL)]
        if len(calls) == 1:
            written += int(script(keys=keys[calls[0]], args=[*rows[calls[0]], expire_s]))
            continue
        with client.pipeline(transaction=False) as pipe:
            for some in calls:
                script(keys=keys[some], args=[*rows[some], expire_s], client=pipe)
            written += sum(pipe.execute())
    return written
