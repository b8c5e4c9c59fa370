"""What each lever of a cheap step is worth: the same run with it on, and with it off.

    python bench/levers.py                            # those without a figure of their own so far
    python bench/levers.py --levers all               # these, and whatever else can be switched off
    python bench/levers.py --levers relay,kept-plan --repetitions 3 --out /tmp/two.json
    python bench/levers.py --list

A chain of 50 ops that do nothing under stepfleet (where the lever is about many steps at once, the
fan-out of 100), each run on a fresh stack, as in dagster_bench.py. Two levers share a run in which
all are on, which lies between the runs with the one and with the other off; the difference is of
these neighbours, and its median and range are what counts. Figures are per step:

- wall: from RUN_START to RUN_SUCCESS.
- cpu: of all processes, from the start of the run worker to its end. What it has of the run
  worker's own start is the same on both sides, and not in the difference.
- connections, commits: of both databases, from before the stack's start to after its end. What the
  stack does then is the same on both sides.

How a lever is switched off stands in benchlib/levers.py: by a setting, or by leverhooks, which
changes the plugin from outside. A run in which that did not happen is void. The exit status is 1
when a run is void; nothing is judged.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchlib import bench, facts, levers, postgres, process, publish, report, settings, stack
from benchlib.levers import LEVERS, NAMED, Lever, Turn
from benchlib.settings import OURS, ROOT

NAME = "levers"
# The children that wait have been made by then; nothing else need settle.
SETTLE_SECONDS = 1.0


def change(off: Lever | None, witness: Path) -> bench.Change:
    """What a run with the lever off has otherwise. The hooks lie on the path in every run."""
    path = f"{levers.HOOKS}{os.pathsep}{bench.python_path()}"
    env: dict[str, str] = {"PYTHONPATH": path}
    if off is None:
        return bench.Change(env)
    if off.hooked:
        env |= {levers.OFF_VARIABLE: off.name, levers.WITNESS_VARIABLE: str(witness)}
    return bench.Change(env | dict(off.env), off.slots)


def take(on: bench.Bench, turn: Turn) -> dict[str, Any]:
    """One run, as a sample with its place."""
    witness = on.directory / "witness"
    witness.unlink(missing_ok=True)
    sample = on.sample(turn.job, OURS, turn.rep, change(turn.off, witness))
    if turn.off and turn.off.hooked and not sample.void and not witness.exists():
        sample.void = "the hooks have changed nothing: the lever was on"
    return {
        "lever": turn.off.name if turn.off else "",
        "group": turn.group,
        **asdict(sample),
    }


def measure(on: bench.Bench, chosen: Sequence[Lever], repetitions: int) -> list[dict[str, Any]]:
    turns = list(levers.plan(chosen, repetitions))
    first = Turn(-1, 0, turns[0].job, None)  # warms what a first run finds cold
    samples: list[dict[str, Any]] = []
    for number, turn in enumerate([first, *turns]):
        sample = take(on, turn)
        if turn is not first:
            samples.append(sample)
        print(
            f"[{number}/{len(turns)}] rep {turn.rep} {turn.job} off: {sample['lever'] or '-'}:"
            f" wall {sample['wall_seconds']:.2f} s, cpu {sample['cpu_seconds']:.2f} s,"
            f" {sample['pg_connections']} connections, {sample['pg_commits']} commits,"
            f" load {sample['load1']}{'  VOID: ' + sample['void'] if sample['void'] else ''}",
            flush=True,
        )
    return samples


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    meta, samples = result["meta"], result["samples"]
    chosen = [LEVERS[name] for name in meta["settings"]["levers"]]
    off = "\n".join(f"- `{lever.name}` off: {lever.off}" for lever in chosen)
    parts = [
        "# What each lever of a cheap step is worth",
        report.written_by("bench/levers.py", meta),
        "Per step, with the lever on and off. `off - on` is the median of the differences of runs"
        " side by side, and their range: what the lever saves, where it is above zero. A range with"
        " zero in it says that the difference is within the machine's own.",
        f"```\n{levers.text(chosen, samples)}\n```",
        off,
        "## Not to be switched off",
        "\n".join(f"- {line}" for line in levers.NOT_SWITCHABLE),
        *report.measured_with(meta),
    ]
    return "\n\n".join(parts) + "\n"


def meta(options: argparse.Namespace, about: dict[str, Any], server: str) -> dict[str, Any]:
    return {
        **about,
        **facts.machine(options.tmp),
        "versions": facts.versions(server, celery=False, binary=options.stepfleet),
        "settings": {
            "postgres": postgres.described(),
            "postgres_directory": str(options.tmp),
            "dagster.yaml": settings.DAGSTER_SETTINGS,
            "slots": settings.SLOTS,
            "repetitions": options.repetitions,
            "levers": [lever.name for lever in options.levers],
            "settle_seconds": SETTLE_SECONDS,
            "stepfleet": stack.fleet_settings(prepare=True),
        },
        "notes": [
            "a run before the first one is dropped",
            "each run has a stack of its own, whose start and end are in connections and commits",
        ],
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    def chosen(text: str) -> list[Lever]:
        names = list(LEVERS) if text == "all" else text.split(",")
        unknown = set(names) - set(LEVERS)
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown}: want all or some of {','.join(LEVERS)}")
        return [LEVERS[name] for name in names]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--levers", type=chosen, default=list(NAMED), help="names, or all")
    parser.add_argument("--repetitions", type=int, default=settings.REPETITIONS)
    parser.add_argument("--list", action="store_true", help="print the levers")
    parser.add_argument("--publish", metavar="NAME", default=NAME)
    parser.add_argument("--publish-unclean", action="store_true")
    parser.add_argument("--out", type=Path, help="write this file, and publish nothing")
    parser.add_argument("--stepfleet", type=Path, default=ROOT / "bin" / "stepfleet")
    parser.add_argument("--tmp", type=Path, default=Path("/dev/shm"), help="where data goes")
    parser.add_argument("--keep", action="store_true", help="keep logs and databases")
    options = parser.parse_args(arguments)
    if options.repetitions < 1:
        parser.error("--repetitions: want at least 1")
    options.stepfleet = options.stepfleet.resolve()
    return options


def left_out(options: argparse.Namespace) -> list[str]:
    missing = [lever.name for lever in NAMED if lever not in options.levers]
    reasons = [f"without {', '.join(missing)}"] if missing else []
    if options.repetitions < settings.REPETITIONS:
        reasons.append(f"{options.repetitions} repetitions, not {settings.REPETITIONS}")
    return reasons


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.list:
        print(*(f"{lever.name:20} off: {lever.off}" for lever in LEVERS.values()), sep="\n")
        return 0
    stack.find_binary(options.stepfleet)
    about = facts.source()
    unclean = facts.objections(about, options.stepfleet)
    out = publish.destination(
        "levers.py",
        options.publish,
        options.out,
        partial=left_out(options),
        unclean=unclean,
        forced=options.publish_unclean,
    )
    process.become_reaper()
    # So that a termination cleans up as an interrupt does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    begun = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="stepfleet-levers-", dir=options.tmp))
    setup = bench.Setup(
        options.stepfleet, settle_seconds=SETTLE_SECONDS, details=False, counts_stack=True
    )
    with ExitStack() as closing:
        if options.keep:
            print(f"keeping {directory}")
        else:
            closing.callback(shutil.rmtree, directory, ignore_errors=True)
        on = bench.Bench(directory, setup)
        closing.callback(on.close)
        found = meta(options, about | {"unclean": unclean}, on.postgres.version())
        samples = measure(on, options.levers, options.repetitions)
        found["load_after"] = os.getloadavg()
    found["elapsed_seconds"] = round(time.monotonic() - begun)
    result = {"meta": found, "samples": samples}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(page(result))
    print("", levers.text(options.levers, samples), f"{out}\n{out.with_suffix('.md')}", sep="\n\n")
    return 1 if any(sample["void"] for sample in samples) else 0


if __name__ == "__main__":
    sys.exit(main())
