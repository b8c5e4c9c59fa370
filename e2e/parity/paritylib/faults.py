"""Faults that cases need: a writer held before its commit, and step processes that stand still."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg2

from paritylib.stack import Stack

# The advisory lock that a held writer waits for.
_LOCK = 734_001


@contextmanager
def held_inserts(dsn: str, step_key: str) -> Generator[Callable[[], None], None, None]:
    """Holds whoever inserts the step's success, its id already drawn, until release is called.

    A trigger of ours on Dagster's table waits for a lock that this session has.
    """
    connection = psycopg2.connect(dsn)
    connection.autocommit = True
    held = True

    def release() -> None:
        nonlocal held
        if held:
            held = False
            cursor.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))

    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            cursor.execute(
                "CREATE FUNCTION parity_hold() RETURNS trigger LANGUAGE plpgsql AS"
                f" $$ BEGIN PERFORM pg_advisory_xact_lock_shared({_LOCK}); RETURN NULL; END $$"
            )
            cursor.execute(
                "CREATE TRIGGER parity_hold AFTER INSERT ON event_logs FOR EACH ROW"
                " WHEN (NEW.step_key = %s AND NEW.dagster_event_type = 'STEP_SUCCESS')"
                " EXECUTE FUNCTION parity_hold()",
                (step_key,),
            )
            yield release
        finally:
            release()
            cursor.execute("DROP TRIGGER IF EXISTS parity_hold ON event_logs")
            cursor.execute("DROP FUNCTION IF EXISTS parity_hold()")
            connection.close()


@contextmanager
def frozen_children(stack: Stack) -> Generator[None, None, None]:
    """Stops every idle step process of the worker, and lets go on what is still there."""
    pids = _idle_children(stack.state["pids"]["worker-1"])
    if not pids:
        raise RuntimeError("the worker has no idle step process to stop")
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass


def _idle_children(worker: int) -> list[int]:
    """The children of the worker's template: a grandchild of the worker runs or awaits a step."""
    parents = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    templates = {pid for pid, parent in parents.items() if parent == worker}
    return [pid for pid, parent in parents.items() if parent in templates]


def _parent(process: Path) -> int:
    try:
        # The name in parentheses may have spaces.
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, ValueError):
        return 0
