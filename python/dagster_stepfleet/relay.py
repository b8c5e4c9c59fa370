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
# What a pooler says that does not pass on what a connection begins with.
_UNSUPPORTED = "unsupported startup parameter"

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


def bound_statements(engine: Any) -> None:
    """Has the server break off what takes too long, where the connection string says nothing of it,
    and no pooler refuses that. It goes with the connection's start and costs no round trip."""
    timeout = os.environ.get(TIMEOUT_VARIABLE, "")
    if not _TIMEOUT.fullmatch(timeout) or engine.dialect.driver != "psycopg2":
        return
    import sqlalchemy.event

    told: list[dict[str, Any]] = []
    refused = False

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, params: dict[str, Any]) -> None:
        own = params.get("options", "")
        if not refused and "statement_timeout" not in f"{own} {args}":
            params["options"] = f"{own} {_option(timeout)}".strip()
            told.append(params)

    @sqlalchemy.event.listens_for(engine, "handle_error")
    def failed(context: Any) -> None:
        nonlocal refused
        if (
            not refused
            and context.connection is None
            and _UNSUPPORTED in str(context.original_exception)
        ):
            refused = True  # whoever connects tries again
            for params in told:
                params["options"] = params["options"].removesuffix(_option(timeout)).strip()


def _option(timeout: str) -> str:
    return f"-c statement_timeout={timeout}"


def connection_string(args: Sequence[Any], params: Mapping[str, Any]) -> str | None:
    """Returns what to tell the relay; nothing for a connection that it could not make alike."""
    if any(args) or not params.keys() <= _TOLD | _OWN:
        return None
    if not all(params.get(name) for name in ("host", "user", "dbname")):
        return None  # libpq looks elsewhere for these
    from psycopg2.extensions import make_dsn

    dsn: str = make_dsn(**{name: value for name, value in params.items() if name in _TOLD})
    return dsn
