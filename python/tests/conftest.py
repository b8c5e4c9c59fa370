from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from dagster import DagsterInstance
from dagster._core.instance import InstanceRef

from tests.fakes import TOKEN, FakeServer, TemplateProcess
from tests.proxies import Proxy, proxied

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


@pytest.fixture
def postgres_url() -> str:
    url = os.environ.get("STEPFLEET_TEST_POSTGRES_URL", "")
    if not url:
        if os.environ.get("CI"):
            pytest.fail("STEPFLEET_TEST_POSTGRES_URL is not set")
        pytest.skip("STEPFLEET_TEST_POSTGRES_URL is not set")
    return url


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with proxied(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def pooled(tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    """An instance on PostgreSQL, behind the proxy, whose storages have patience."""
    from dagster_stepfleet import patience, storage

    monkeypatch.setattr(patience, "_patience_seconds", 20.0)
    monkeypatch.setattr(patience, "_OUTAGE_POLL_SECONDS", 0.05)
    monkeypatch.setattr(patience, "_ask_gate", None)
    (tmp_path / "dagster.yaml").write_text(
        f"telemetry: {{enabled: false}}\nstorage: {{postgres: {{postgres_url: '{proxy.url}'}}}}\n"
    )
    with DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        storage.pool(instance)
        yield instance
        storage.dispose(instance)


@pytest.fixture
def behind(postgres_url: str) -> Iterator[sqlalchemy.Connection]:
    """A connection that no proxy cuts."""
    engine = sqlalchemy.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()
