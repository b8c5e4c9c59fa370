from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from tests.fakes import TOKEN, FakeServer, TemplateProcess

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with DagsterInstance.local_temp(str(home)) as instance:
        yield instance


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with FakeServer() as server:
        monkeypatch.setenv("STEPFLEET_URL", server.url)
        monkeypatch.setenv("STEPFLEET_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="session")
def template() -> Iterator[TemplateProcess]:
    template = TemplateProcess([{"module": "tests.defs"}])
    yield template
    template.close()
