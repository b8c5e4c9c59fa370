"""Every test runs without waiting, on its own DAGSTER_HOME and effect log."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def effect_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log = tmp_path / "effects.jsonl"
    monkeypatch.setenv("STEPFLEET_TIME_SCALE", "0")
    monkeypatch.setenv("STEPFLEET_EFFECT_LOG", str(log))
    for name in ("STEPFLEET_ATTEMPT", "STEPFLEET_FENCE", "STEPFLEET_WORKER"):
        monkeypatch.delenv(name, raising=False)
    return log
