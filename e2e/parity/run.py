"""Every job of parity_jobs under three executors, compared: `make parity`.

    python e2e/parity/run.py                  # all cases
    python e2e/parity/run.py --quick          # the dozen of `make test`
    python e2e/parity/run.py --only retries,hooks --keep

--only takes themes and cases. The exit status is 1 when a case differs or does not show what it is
there to show. A case's line and its differences are printed when it ends.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from dagster import DagsterInstance

from parity_jobs import CASES
from parity_jobs.case import Case
from paritylib.compare import compare
from paritylib.dagster_api import DagsterApi, Refused
from paritylib.drives import DRIVES, Context
from paritylib.normal import Normaliser
from paritylib.record import Record, record
from paritylib.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path(__file__).resolve().parent

# Two cores: more at once would only make each wait longer.
AT_ONCE = 4


@dataclass
class Result:
    """What came of a case."""

    case: Case
    theme: str
    differences: list[str] = field(default_factory=list[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def ok(self) -> bool:
        return not self.differences


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stack is stopped
    chosen = choose(options)
    directory = Path(tempfile.mkdtemp(prefix="stepfleet-parity-"))
    directory.chmod(0o711)  # PostgreSQL runs as another user where this is root
    began = time.monotonic()
    stack = Stack(options.stepfleet, directory, project=PROJECT)
    failed = True
    try:
        os.environ.update(stack.dagster_environment())
        print(
            f"the stack is up after {time.monotonic() - began:.0f} s: {len(chosen)} cases",
            flush=True,
        )
        instance = DagsterInstance.get()
        context = Context(stack, DagsterApi(stack.state["urls"]["dagster"]), instance)
        results = run_all(context, chosen)
        failed = not all(result.ok for result in results)
        report(results, time.monotonic() - began)
        if failed and options.keep:
            print(stack.tails())
    finally:
        stack.stop()
        if options.keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", default="", help="themes and cases, separated by commas")
    parser.add_argument("--quick", action="store_true", help="the dozen of `make test`")
    parser.add_argument("--keep", action="store_true", help="keep the stack's directory and logs")
    parser.add_argument("--stepfleet", type=Path, default=ROOT / "bin" / "stepfleet")
    return parser.parse_args()


def choose(options: argparse.Namespace) -> list[tuple[str, Case]]:
    wanted = {name for name in options.only.split(",") if name}
    known = {*CASES, *(case.name for cases in CASES.values() for case in cases)}
    if wanted - known:
        raise SystemExit(f"there is no theme or case {', '.join(sorted(wanted - known))}")
    return [
        (theme, case)
        for theme, cases in CASES.items()
        for case in cases
        if (not wanted or wanted & {theme, case.name}) and (case.quick or not options.quick)
    ]


def run_all(context: Context, chosen: list[tuple[str, Case]]) -> list[Result]:
    """Several cases at once; then, one by one, those that must be alone."""
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        times = "  ".join(f"{n} {s:5.1f} s" for n, s in result.seconds.items())
        verdict = "same" if result.ok else "DIFFERS"
        print(f"{verdict:8}{result.theme:12}{result.case.name:32}{times}", flush=True)
        for line in result.differences:
            print(f"    {line}", flush=True)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        beside = [pool.submit(run_case, context, t, c) for t, c in chosen if not c.alone]
        for future in as_completed(beside):
            note(future.result())
    for theme, case in chosen:
        if case.alone:
            note(run_case(context, theme, case))
    return results


def run_case(context: Context, theme: str, case: Case) -> Result:
    """One case in its variants, one after the other."""
    result = Result(case, theme)
    records: dict[str, list[Record]] = {}
    for variant in case.variants:
        began = time.monotonic()
        try:
            ids = DRIVES[case.drive](context, case, variant)
        except Refused as err:
            ids = []
            records[variant.name] = [
                Record(status="REFUSED", tags={"message": Normaliser([]).text(str(err))})
            ]
        except Exception as err:
            result.differences.append(f"{variant.name}: {type(err).__name__}: {err}")
            result.seconds[variant.name] = time.monotonic() - began
            continue
        if ids:
            normaliser = Normaliser(ids)
            records[variant.name] = [record(context.instance, i, normaliser) for i in ids]
        result.seconds[variant.name] = time.monotonic() - began
        result.differences += [
            f"{variant.name}: {problem}" for problem in unshown(case, records[variant.name])
        ]
    ours = records.get("stepfleet")
    for reference in case.references:
        if ours is not None and reference in records:
            result.differences += [
                f"against {reference}: {line}"
                for line in compare(
                    records[reference],
                    ours,
                    whole_logs=reference == "in_process",
                    masks=case.masks,
                    ordered=case.ordered,
                )
            ]
    return result


def unshown(case: Case, runs: list[Record]) -> list[str]:
    """What the case is there to show and does not."""
    found: list[str] = []
    if runs[-1].status != case.status:
        found.append(f"the case is to end {case.status}, it ended {runs[-1].status}")
    for kind, number in case.counts.items():
        have = sum(run.types[kind] for run in runs)
        if have != number:
            found.append(f"the case is to have {number} {kind}, it has {have}")
    if case.at_most:
        found += [
            f"{run.most_at_once} steps were going at once, at most {case.at_most} may"
            for run in runs
            if run.most_at_once > case.at_most
        ]
    printed = {
        line
        for run in runs
        for logs in run.logs.values()
        for out, _ in logs
        for line in out.splitlines()
    }
    messages = {
        text.split(" ", 2)[2]
        for run in runs
        for events in (run.run_events, *run.events.values())
        for text in events
        if text.startswith("LOG ")
    }
    found += [f"the case is to log {m!r}" for m in case.logs if m not in messages]
    return found + [f"the case is to print {line!r}" for line in case.prints if line not in printed]


def report(results: list[Result], seconds: float) -> None:
    bad = [result for result in results if not result.ok]
    for result in bad:
        print(f"differs: {result.theme}/{result.case.name}")
    verdict = (
        f"FAIL: {len(bad)} of {len(results)} cases differ" if bad else f"PASS: {len(results)} cases"
    )
    print(f"\nparity: {verdict} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
