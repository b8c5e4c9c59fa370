"""Switches one lever off, in processes that Python starts with this directory on its path.

benchlib/levers.py lists the levers and sets the variables. A module of the plugin is changed when
it is imported; a name that is not there any more fails that import, and so the run. What was
changed is written to a file, by which the benchmark knows that the lever was off.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

LEVER = os.environ.get("STEPFLEET_BENCH_LEVER_OFF", "")
WITNESS = os.environ.get("STEPFLEET_BENCH_LEVER_WITNESS", "")
PACKAGE = "dagster_stepfleet."


def replace(owner: Any, name: str, value: Any) -> Any:
    """Sets an attribute that must be there; returns what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def nothing(*_: Any, **__: Any) -> None:
    """In place of a function that only makes things faster."""


def give_nothing(*_: Any, **__: Any) -> Callable[[], None]:
    """In place of one that returns what undoes or ends its work."""
    return nothing


def in_run_worker() -> bool:
    return "execute_run" in sys.argv


# The levers.


def no_instance(_: Any) -> None:
    raise RuntimeError("the benchmark has the children build it")


def pools_only(storage: Any, run_worker: bool) -> None:
    """Lets only the run worker pool its storages, or only the others."""
    pool = storage.pool
    replace(
        storage, "pool", lambda on: pool(on) if in_run_worker() == run_worker else give_nothing()
    )
    if run_worker:
        replace(storage, "warm", nothing)  # its connection would not be kept


class StockWriter:
    """Dagster's own store_event, where the plugin's writer would stand."""

    joins = False
    fence = None

    def __init__(self, storage: Any) -> None:
        self._stock = storage.store_event
        self.batch = storage.store_event_batch

    def __call__(self, event: Any) -> None:
        self._stock(event)

    def flush(self) -> None:
        """Nothing waits."""

    begin_anew = flush


def ask_first(gate: Any) -> None:
    @contextlib.contextmanager
    def asking(self: Any, frame: Any) -> Iterator[None]:
        with self._turn():
            self._question(frame)
            self._answer()
        yield

    replace(gate.Parent, "asking", asking)


def read_by_api(events: Any) -> None:
    def read(self: Any, after: int = 0) -> list[Any]:
        return [r for r in self._pages(after) if r.storage_id not in self.seen]

    replace(events.EventReader, "read", read)


# What a child would have done ahead, and does when its task has come.
_put_off: list[Callable[[], object]] = []


def put_off(owner: Any, name: str) -> None:
    now = getattr(owner, name)
    replace(owner, name, lambda *given: _put_off.append(lambda: now(*given)))


def fork_at_need(child: Any) -> None:
    """The process that waits forks the one that works, which then gets ready."""
    serve = child.serve

    def serve_late(parent: Any, warm: Any) -> None:
        receive = parent.receive

        def receive_and_fork() -> Any:
            frame = receive()
            parent.receive = receive
            if frame is not None:
                worker = os.fork()
                if worker:
                    os._exit(max(0, os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])))
                for act in _put_off:
                    with contextlib.suppress(Exception):
                        act()
            return frame

        parent.receive = receive_and_fork
        serve(parent, warm)

    replace(child, "serve", serve_late)


# Lever, and what is done to which module.
CHANGES: dict[str, dict[str, Callable[[Any], object]]] = {
    "priming": {"priming": lambda m: replace(m, "prime", nothing)},
    "children-ahead": {
        "pages": lambda m: put_off(m.Hot, "populate"),
        "storage": lambda m: put_off(m, "warm"),
        "child": fork_at_need,
    },
    "inherited-instance": {"storage": lambda m: replace(m, "prime", no_instance)},
    "kept-plan": {
        "plans": lambda m: (replace(m, "learn", nothing), replace(m, "install", nothing))
    },
    "joined-events": {"storage": lambda m: replace(m, "join_events", give_nothing)},
    "batch-submit": {"handler": lambda m: replace(m, "MAX_BATCH_TASKS", 1)},
    "pooled-executor": {"storage": lambda m: pools_only(m, run_worker=False)},
    "pooled-steps": {"storage": lambda m: pools_only(m, run_worker=True)},
    "catalogue-memo": {"storage": lambda m: replace(m, "_remember_yes", lambda check: check)},
    "log-redirection": {"logs": lambda m: replace(m, "install", nothing)},
    "hot-pages": {"pages": lambda m: replace(m.Hot, "populate", nothing)},
    "taught-tables": {"storage": lambda m: replace(m, "_LEARN_TABLES", "SELECT 1")},
    "driver-words": {"storage": lambda m: replace(m, "Writer", StockWriter)},
    "early-start": {"gate": ask_first},
    "one-read": {"events": read_by_api},
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that a lever is in as Python would, and has them changed once loaded."""

    def __init__(self, changes: dict[str, Callable[[Any], object]]) -> None:
        self._changes = changes

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        name = fullname.removeprefix(PACKAGE)
        if name == fullname or name not in self._changes:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        load, change = spec.loader.exec_module, self._changes[name]

        def exec_module(module: Any) -> None:
            load(module)
            change(module)
            with open(WITNESS, "a") as witness:
                witness.write(f"{LEVER} {name} {os.getpid()}\n")

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


if LEVER:
    sys.meta_path.insert(0, Finder(CHANGES[LEVER]))
