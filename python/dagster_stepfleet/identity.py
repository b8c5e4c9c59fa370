"""What names a run in the ledger. Launcher and executor submit for it, and name it alike."""

from __future__ import annotations

import hashlib
from typing import Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster._serdes import serialize_value

seams.verify((seams.check_names,))

# The step key of run workers. Dagster allows no @ in the name of an op.
RUN_STEP_KEY = "@run"


def run_identity(origin: Any, job_snapshot_id: str | None) -> str:
    """Returns the digest of what the run executes: where its job comes from, and its snapshot."""
    return hashlib.sha256((serialize_value(origin) + (job_snapshot_id or "")).encode()).hexdigest()
