"""``python -m benchmarks.sampler PATH``: what another process finds in the database, and when.

Looks every 10 ms until a line comes in, then prints, by name of the context, each growth of its
reply: the time of the monotonic clock when it was not there yet, that when it was, and how many
characters are committed then.  The commit came between the two.
"""

from __future__ import annotations

import json
import select
import sqlite3
import sys
import time
from typing import Final

EVERY: Final = 0.01

_NEW = (
    "SELECT r.id, c.name FROM records r JOIN contexts c ON c.id = r.context_id"
    " WHERE r.id > ? AND r.source = 1"
)
_NEWEST = "SELECT idx, length(delta) FROM record_deltas WHERE record_id = ? AND idx >= ?"
_WHOLE = "SELECT length(content) FROM records WHERE id = ?"


class _Watched:
    """A reply that is being written."""

    def __init__(self, found: list[tuple[float, float, int]]) -> None:
        self.found = found
        self.next_delta = 0
        self.size = 0


def main() -> None:
    """Look until told to stop."""
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA query_only=ON")
    found: dict[str, list[tuple[float, float, int]]] = {}
    watched: dict[int, _Watched] = {}
    last = 0
    before = now = time.monotonic()
    stopped = False
    while not stopped:
        stopped = bool(select.select([sys.stdin], [], [], EVERY)[0])
        connection.execute("BEGIN")
        for record_id, name in connection.execute(_NEW, (last,)).fetchall():
            # The reply that warms a stream up comes before the one that is timed.
            found[name] = []
            watched[record_id] = _Watched(found[name])
            last = max(last, record_id)
        before, now = now, time.monotonic()
        for record_id, one in list(watched.items()):
            if _grew(connection, record_id, one):
                one.found.append((before, now, one.size))
        connection.execute("COMMIT")
    print(json.dumps(found))


def _grew(connection: sqlite3.Connection, record_id: int, one: _Watched) -> bool:
    size = one.size
    for idx, length in connection.execute(_NEWEST, (record_id, one.next_delta)):
        one.next_delta = idx + 1
        one.size += length
    # Folding the pieces into the record deletes them.
    (whole,) = connection.execute(_WHOLE, (record_id,)).fetchone()
    one.size = max(one.size, whole)
    return one.size > size


if __name__ == "__main__":
    main()
