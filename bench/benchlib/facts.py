"""What one must know to compare a benchmark's figures with others: which code, which versions,
which machine."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from benchlib import postgres, process, stack
from benchlib.settings import ROOT

# Results are written while the tree is measured: they do not change what is measured.
RESULTS = "bench/results"
PACKAGES = ("dagster", "dagster-postgres", "sqlalchemy", "psycopg2-binary")
CELERY_PACKAGES = ("dagster-celery", "celery", "redis")


def output(*arguments: str) -> str:
    """What a command prints, for the meta data; empty when it cannot be run."""
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def git(*arguments: str) -> str:
    return output("git", "-C", str(ROOT), *arguments)


def source() -> dict[str, Any]:
    """Commit of the tree, and whether it has changes beside results."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", ".", f":(exclude){RESULTS}")),
    }


def binary_version(binary: Path) -> str:
    """What the built stepfleet says of itself."""
    return output(str(binary), "--version")


def built_from(version: str) -> str:
    """The commit that a binary's version names; empty when it names none."""
    name = version.removesuffix("-dirty")
    return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") if name else ""


def versions(server: str, *, celery: bool, binary: Path | None) -> dict[str, str]:
    """Of Python, the PostgreSQL server, the packages, and what some modes need besides."""
    found = {"python": platform.python_version(), "postgres": server}
    if binary is not None:
        found["bin/stepfleet"] = binary_version(binary) or "?"
    if celery:
        found["redis-server"] = output(stack.find_redis(), "--version")
    for name in (*PACKAGES, *(CELERY_PACKAGES if celery else ())):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "?"
    return found


def machine(tmp: Path) -> dict[str, Any]:
    """The machine as far as it was looked at. It is asked before the first run."""
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "begun_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)),
        "cpu_model": model[0] if model else platform.machine(),
        "load_before": os.getloadavg(),
        "fsync_us": {
            "data_directory": round(postgres.fsync_probe(tmp), 1),
            "repository": round(postgres.fsync_probe(ROOT), 1),
        },
        "cpu_account": "cgroup" if process.cgroup_root() else "/proc",
    }


def objections(about: dict[str, Any], binary: Path | None) -> list[str]:
    """Why figures of this tree say nothing of the commit that a page would name."""
    if not about["commit"]:
        return ["this is no git work tree, so there is no commit to name"]
    found: list[str] = []
    if about["dirty"]:
        found.append("the work tree has changes that are not committed (git status)")
    if binary is not None:
        version = binary_version(binary)
        if built_from(version) != about["commit"]:
            found.append(f"the binary is of {version or 'no commit'}, not of this one (make build)")
        elif version.endswith("-dirty") and not git("status", "--porcelain"):
            found.append("the binary was built before its changes were committed (make build)")
    return found
