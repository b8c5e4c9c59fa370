"""Writes an event only while the task is this process's, by the ledger's own word.

The event gate asks before the write. A machine that is stopped between the two, longer than a run
lease, then writes what is not its own any more. Where the ledger is in Dagster's database, the
look at the task and the write can be one statement. It is a setting, off by default: each event
then also locks its task's row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from dagster_stepfleet.gate import REFUSED_STATUS

# Set for those who want it; storage.py looks, so that others do not import this.
VARIABLE = "STEPFLEET_FENCED_EVENTS"

_STILL_OWNER = "SELECT stepfleet.still_owner(%s, %s) AS mine"
_FENCED = (
    f"WITH owner AS MATERIALIZED ({_STILL_OWNER}), written AS ({{insert}} RETURNING id) "
    "SELECT mine, (SELECT min(id) FROM written) FROM owner"
)


class Fence:
    """One claim of one task. What it refuses ends the process, as the gate does: an exception would
    be caught by Dagster, or by user code, and reported."""

    # What an insert is to be subject to.
    condition = "(SELECT mine FROM owner)"

    def __init__(self, task_id: int, fence: int) -> None:
        self._claim = task_id, fence

    def try_out(self, connection: Any) -> None:
        """Raises what to do where the ledger cannot be asked."""
        import sqlalchemy.exc

        try:
            connection.exec_driver_sql(_STILL_OWNER, self._claim)
        except sqlalchemy.exc.ProgrammingError as err:
            raise RuntimeError(
                f"{VARIABLE} is set, and Dagster's database does not let its role call "
                f"stepfleet.still_owner ({err.orig}). Keep the ledger in the same database, run "
                "`stepfleet migrate`, and GRANT USAGE ON SCHEMA stepfleet to Dagster's role; or "
                "unset it."
            ) from err

    def hold(self, connection: Any) -> None:
        """Keeps the task this process's to the end of the connection's transaction."""
        if not connection.exec_driver_sql(_STILL_OWNER, self._claim).scalar():
            os._exit(REFUSED_STATUS)

    def insert(self, connection: Any, statement: str, values: Sequence[Any]) -> int | None:
        """Executes an insert that is subject to the condition; returns its least new id."""
        fenced = _FENCED.format(insert=statement)
        mine, number = connection.exec_driver_sql(fenced, (*self._claim, *values)).one()
        if not mine:
            os._exit(REFUSED_STATUS)
        return number
