"""The time zone in which the database counts hours and days: that of this machine, by whatever name."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rolecall.insight.log_columns import text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_DAY_S = 86_400
_DAYS = 3_652
"""Ten years: as old as a log may well be."""
_AGREEING = """
    SELECT name FROM ({zones}), (SELECT unnest(?::BIGINT[]) AS moment, unnest(?::BIGINT[]) AS clock)
    GROUP BY name HAVING bool_and(epoch(timezone(name, to_timestamp(moment))) = clock) ORDER BY name LIMIT 1
"""


def set_local_zone(connection: DuckDBPyConnection) -> str | None:
    """Set the zone; return the name of the one that is taken instead if the database knows none like it, else None.

    The database looks for a name in ``TZ`` and in the link ``/etc/localtime``, and without one takes UTC: where that
    file is a copy, or ``TZ`` a rule as POSIX has it. So clocks are compared, at noon UTC of each of the last days.
    """
    today = int(time.time()) // _DAY_S
    moments = [(today - back) * _DAY_S + _DAY_S // 2 for back in range(_DAYS)]
    clocks = [moment + time.localtime(moment).tm_gmtoff for moment in moments]
    for zones in ("SELECT current_setting('TimeZone') AS name", "SELECT name FROM pg_timezone_names()"):
        found = connection.execute(_AGREEING.format(zones=zones), [moments, clocks]).fetchone()
        if found is not None:
            connection.execute(f"SET TimeZone = {text(found[0])}")
            return None
    (taken,) = connection.execute("SELECT current_setting('TimeZone')").fetchone() or ("UTC",)
    return str(taken)
