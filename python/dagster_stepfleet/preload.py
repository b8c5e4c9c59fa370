"""Loads code locations in the template, so that its children find them loaded.

A child gets a job the way Dagster does in any step process: it follows the run's code pointer. A
module pointer finds the module in sys.modules. A file pointer would execute the file again, so its
loaded target is remembered here. The definitions' repository and jobs are built once as well.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dagster_stepfleet import seams  # first: it says what of Dagster is missing

# isort: split
from dagster import Definitions
from dagster._core.code_pointer import CodePointer, FileCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.workspace.autodiscovery import (
    loadable_targets_from_python_file,
    loadable_targets_from_python_module,
)
from dagster._utils.error import serializable_error_info_from_exc_info

from dagster_stepfleet import plans

# Building a job's config schema and plan is what the first step of each would pay for. Beyond
# this many jobs the template would take too long to start.
MAX_PRIMED_JOBS = 200
# A job's first plan takes up to 100 ms, large ones more.
MAX_PLAN_SECONDS = 10.0


@dataclass(frozen=True)
class Location:
    """How one preload went, as the loaded frame tells it."""

    pointer: str
    ok: bool
    error: str
    seconds: float

    def frame(self) -> dict[str, Any]:
        return asdict(self)


def load(spec: dict[str, str]) -> Location:
    """Loads one entry of STEPFLEET_PRELOAD. A failure is told, never raised."""
    seams.check_file_pointer()
    started = time.monotonic()
    module, file = spec.get("module"), spec.get("file")
    name = f"module {module}" if module else f"file {file}"
    error = ""
    try:
        if bool(module) == bool(file):
            raise ValueError(f"a preload names a module or a file, not {spec!r}")
        _load(module, file, spec.get("attribute"), spec.get("working_directory") or os.getcwd())
    except BaseException as err:  # SystemExit too: a script may call it at import
        if isinstance(err, KeyboardInterrupt):
            raise
        import sys

        error = serializable_error_info_from_exc_info(sys.exc_info()).to_string()[-8192:]
        if file:
            _forget_half_module(file)
    finally:
        # Steps load definitions as in a fresh process, not within our load.
        seams.reset_load_context()
    return Location(name, not error, error, round(time.monotonic() - started, 3))


def _forget_half_module(file: str) -> None:
    """Removes the module of a file that failed: Dagster leaves it in sys.modules, where a child's
    own try would find it half made, and fail for want of its definitions, not for the cause."""
    import sys

    name = os.path.splitext(os.path.basename(file))[0]
    origin = getattr(sys.modules.get(name), "__file__", None)
    if origin and os.path.realpath(origin) == os.path.realpath(file):
        del sys.modules[name]


def _load(module: str | None, file: str | None, attribute: str | None, directory: str) -> None:
    if file is not None:
        _remember_files()
    for pointer in _pointers(module, file, attribute, directory):
        if _asks_elsewhere(pointer.load_target()):
            continue
        repository = ReconstructableRepository(pointer)
        plans_until = time.monotonic() + MAX_PLAN_SECONDS
        for job in repository.get_definition().get_all_jobs()[:MAX_PRIMED_JOBS]:
            with contextlib.suppress(Exception):  # the step that needs it will say what is wrong
                _ = job.run_config_schema
                # A config mapping is the user's function; without one a plan is Dagster's work.
                if job.config_mapping is None and time.monotonic() < plans_until:
                    plans.learn(repository.get_reconstructable_job(job.name))


def _asks_elsewhere(target: object) -> bool:
    """Whether building the definitions' repository asks something outside which assets there are.

    Only a code server does. Its runs and their steps build the repository from the answer that it
    has got, which comes with the run: one that was built here would have another.
    """
    assets = target.assets if isinstance(target, Definitions) else None
    return isinstance(assets, Sequence) and any(
        hasattr(asset, "compute_cacheable_data") for asset in assets
    )


def _pointers(
    module: str | None, file: str | None, attribute: str | None, directory: str
) -> list[CodePointer]:
    """Returns the pointers that Dagster's code server makes for the same location."""

    def point(name: str) -> CodePointer:
        if file is not None:
            return CodePointer.from_python_file(file, name, directory)
        return CodePointer.from_module(str(module), name, directory)

    if attribute:
        return [point(attribute)]
    pointers: list[CodePointer] = []
    targets = (
        loadable_targets_from_python_file(file, directory)
        if file is not None
        else loadable_targets_from_python_module(str(module), directory)
    )
    for target in targets:
        pointer = point(target.attribute)
        if isinstance(pointer, FileCodePointer):
            _file_targets[_file_key(pointer)] = target.target_definition
        pointers.append(pointer)
    return pointers


_file_targets: dict[tuple[str, str, str], object] = {}
_stock_load_target: Any = None


def _remember_files() -> None:
    """Makes file pointers load once per process and its forks."""
    global _stock_load_target
    if _stock_load_target is not None:
        return
    stock = _stock_load_target = FileCodePointer.load_target

    def load_target(self: FileCodePointer) -> object:
        key = _file_key(self)
        if key not in _file_targets:
            _file_targets[key] = stock(self)
        return _file_targets[key]

    FileCodePointer.load_target = load_target  # type: ignore[method-assign]


def _file_key(pointer: FileCodePointer) -> tuple[str, str, str]:
    directory = os.path.realpath(pointer.working_directory or os.getcwd())
    return os.path.realpath(pointer.python_file), pointer.fn_name, directory
