"""Seeds a bug into the plugin, in processes that Python starts with this directory on its path.

STEPFLEET_MUTANT names it; internal/mutant has those of the Go code. A module of the plugin is
changed when it is imported; a name that is not there any more fails that import, and so the tests.
"""

import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Callable
from typing import Any

MUTANT = os.environ.get("STEPFLEET_MUTANT", "")
PACKAGE = "dagster_stepfleet."


def replace(owner: Any, name: str, value: Any) -> Any:
    """Sets an attribute that must be there; returns what it was."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def nothing(*_: Any, **__: Any) -> None:
    """In place of what keeps a rule."""


def retry_lost(tags: Any) -> None:
    place = tags.place

    def generous(*given: Any) -> Any:
        placed = place(*given)
        return dataclasses.replace(placed, lost_step_retries=max(1, placed.lost_step_retries))

    replace(tags, "place", generous)


def serve_for_ever(child: Any) -> None:
    """The worker's half is in internal/pyhost: it hands such a process on."""

    def serve(parent: Any, warm: Any) -> None:
        parent.send({"op": "ready", "v": child.PROTOCOL_VERSION, "pid": os.getpid()})
        while (frame := parent.receive()) is not None:
            is_run = frame["task"].get("kind") == "run"
            if is_run:
                from dagster_stepfleet import run_worker

                result = run_worker.run(parent, frame, warm)
            else:
                result = child.run(parent, frame, warm)
            child.logs.flush()
            parent.send({"op": "result", "result": result})
            if is_run:
                break
        os._exit(0)

    replace(child, "serve", serve)


class Granting:
    """A parent that grants whatever it is asked."""

    ask = nothing


def write_ungranted(gate: Any) -> None:
    guard = gate.guard
    replace(gate, "guard", lambda storage, _, *more: guard(storage, Granting(), *more))


def trust_the_ledger(handler: Any) -> None:
    """What has ended in the ledger has its end in what was read of the log, or has none."""
    replace(handler.EventReader, "has_unseen_ending", lambda *_: False)
    replace(handler.Open, "rewound", property(lambda _: True, nothing))
    replace(handler.StepfleetStepHandler, "writing_end", lambda *_: contextlib.nullcontext())


# Mutant, the module it is in, and what is done to that.
CHANGES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "child-reused": ("child", serve_for_ever),
    "lost-is-retried": ("tags", retry_lost),
    "no-death-signal": ("process", lambda m: replace(m, "_prctl", nothing)),
    "no-event-gate": ("gate", write_ungranted),
    "unread-end-ignored": ("handler", trust_the_ledger),
}


class Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant's module as Python would, and has it changed once loaded."""

    def __init__(self, name: str, change: Callable[[Any], object]) -> None:
        self._name = PACKAGE + name
        self._change = change

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            self._change(module)

        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


def check() -> None:
    """Makes every change, to see that each still fits."""
    for module, change in CHANGES.values():
        change(importlib.import_module(PACKAGE + module))


if MUTANT in CHANGES:
    sys.meta_path.insert(0, Finder(*CHANGES[MUTANT]))
