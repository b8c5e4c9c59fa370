"""Connections that the worker's relay lends."""

from __future__ import annotations

import pytest
import sqlalchemy

from dagster_stepfleet import relay

ALIKE = {"host": "db", "user": "dagster", "dbname": "dagster"}


def test_the_relay_is_told_how_to_connect():
    params = {**ALIKE, "password": "a b", "sslmode": "require", "application_name": "steps"}
    told = relay.connection_string([], params)
    assert told is not None
    assert sorted(told.split()) == [
        "b'",
        "dbname=dagster",
        "host=db",
        "password='a",
        "sslmode=require",
        "user=dagster",
    ]


@pytest.mark.parametrize(
    ("args", "params"),
    [
        ([], {**ALIKE, "service": "mine"}),
        ([], {"user": "dagster", "dbname": "dagster"}),
        (["host=db"], {}),
    ],
)
def test_what_the_relay_could_not_make_alike_is_made_here(args, params):
    assert relay.connection_string(args, params) is None


def test_without_a_relay_the_process_connects_by_itself(monkeypatch, tmp_path):
    monkeypatch.setenv(relay.DIRECTORY_VARIABLE, str(tmp_path))
    engine = sqlalchemy.create_engine("postgresql://dagster@db.invalid/dagster")
    asked: list[str] = []

    class Answered(Exception):
        """The second try has come to the driver."""

    def connect(*args: object, **params: str) -> object:
        asked.append(params["host"])
        if len(asked) == 1:
            raise engine.dialect.loaded_dbapi.OperationalError("no such file")
        raise Answered

    monkeypatch.setattr(engine.dialect, "connect", connect)
    relay.use(engine)
    with pytest.raises(Answered):
        engine.connect()
    assert asked == [str(tmp_path), "db.invalid"]
