"""Gets database connections from the worker's relay, which keeps them open between steps.

The relay is a socket of this machine (internal/pgrelay). In place of a password it is told the
connection string, so that it connects as this process would have, or hands on a connection that
an earlier step has left. Without a relay, or when it has none to give, the process connects by
itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

# The directory of the relay's socket, which the worker sets.
DIRECTORY_VARIABLE = "STEPFLEET_DATABASE_SOCKET"
_PORT = 5432
# How long a statement may take, in PostgreSQL's words. The worker sets it so that what was granted
# is over with its run lease, should the server hold it up and nobody be left to see to it.
TIMEOUT_VARIABLE = "STEPFLEET_STATEMENT_TIMEOUT"
_TIMEOUT = re.compile(r"[1-9][0-9]*(ms|s|min)?")
# By what the connections of this worker's processes go, which the worker sets (ConnectionName in
# connections.go). A server that decides how an attempt ended finds what its process has left by it,
# and ends it. So the name must not get to a connection that others may use: it goes with a setting
# that says nothing, and that nobody but PostgreSQL itself takes.
NAME_VARIABLE = "STEPFLEET_CONNECTION_NAME"
_NAME = re.compile(r"stepfleet/[0-9a-f]+")
_NAMED = "-c stepfleet.named=on"
# What a pooler says that does not pass on what a connection begins with: PgBouncer, and RDS Proxy.
_UNSUPPORTED = ("unsupported startup parameter", "support command-line options")

# What the relay's driver takes from a connection string as libpq does.
_TOLD = frozenset({"host", "port", "user", "password", "dbname", "connect_timeout"}) | {
    f"ssl{name}" for name in ("mode", "rootcert", "cert", "key", "password", "sni")
}
# What goes from here to the server by itself when the connection begins.
_OWN = frozenset({"application_name", "options", "client_encoding"})


def use(engine: Any) -> None:
    """Has the SQLAlchemy engine ask the relay of this process's worker, if there is one, first."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if not directory or engine.dialect.driver != "psycopg2":
        return
    import sqlalchemy.event

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Sequence[Any], params: Mapping[str, Any]) -> Any:
        told = connection_string(args, params)
        if told is None:
            return None  # SQLAlchemy then connects as ever
        own = {name: value for name, value in params.items() if name in _OWN}
        try:
            return dialect.connect(
                host=directory,
                port=_PORT,
                user=params["user"],
                dbname=params["dbname"],
                password=told,
                **own,
            )
        except dialect.loaded_dbapi.OperationalError:
            return None


def introduce(engine: Any) -> None:
    """Has connections begin with what the worker says of them: after how long the server breaks off
    a statement, and whose they are. What the connection string says itself stands, and a pooler
    that takes neither gets neither. It goes with the connection's start and costs no round trip."""
    if engine.dialect.driver != "psycopg2":
        return
    import sqlalchemy.event

    refused = False
    added = ""  # by the last connection, whose parameters the next one may find

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, params: dict[str, Any]) -> None:
        nonlocal added
        own = params.get("options", "").removesuffix(added).strip()
        added = "" if refused else _options(f"{own} {args}", params)
        if added or "options" in params:
            params["options"] = f"{own} {added}".strip()

    @sqlalchemy.event.listens_for(engine, "handle_error")
    def failed(context: Any) -> None:
        nonlocal refused
        said = str(context.original_exception)
        if context.connection is None and any(words in said for words in _UNSUPPORTED):
            refused = True  # whoever connects tries again


def _options(own: str, params: Mapping[str, Any]) -> str:
    options: list[str] = []
    timeout = os.environ.get(TIMEOUT_VARIABLE, "")
    if _TIMEOUT.fullmatch(timeout) and "statement_timeout" not in own:
        options.append(f"-c statement_timeout={timeout}")
    name = os.environ.get(NAME_VARIABLE, "")
    said = "application_name" in params or "application_name" in own
    if _NAME.fullmatch(name) and not said and "PGAPPNAME" not in os.environ:
        options.append(f"{_NAMED} -c application_name={name}/{os.getpgrp()}")
    return " ".join(options)


def connection_string(args: Sequence[Any], params: Mapping[str, Any]) -> str | None:
    """Returns what to tell the relay; nothing for a connection that it could not make alike."""
    if any(args) or not params.keys() <= _TOLD | _OWN:
        return None
    if not all(params.get(name) for name in ("host", "user", "dbname")):
        return None  # libpq looks elsewhere for these
    from psycopg2.extensions import make_dsn

    dsn: str = make_dsn(**{name: value for name, value in params.items() if name in _TOLD})
    return dsn
