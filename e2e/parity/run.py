"""Every job of parity_jobs under Dagster's executors and ours, compared: `make parity`.

    python e2e/parity/run.py                  # all cases
    python e2e/parity/run.py --quick          # the dozen of `make test`
    python e2e/parity/run.py --only retries,hooks --keep

--only takes themes and cases. The exit status is 1 when a case differs or does not show what it is
there to show, or when all cases together took longer than they may. A case's line and its
differences are printed when it ends.
"""

import argparse
import itertools
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from parity_jobs import CASES
from parity_jobs.case import LAUNCHED, Case
from paritylib.compare import compare
from paritylib.dagster_api import DagsterApi, Refused
from paritylib.drives import DRIVES, Context
from paritylib.environ import user_environment
from paritylib.normal import Normaliser
from paritylib.record import Record, records
from paritylib.stack import Stack
from paritylib.stock import Stock, open_instance

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path(__file__).resolve().parent

# Two cores: more at once would only make each wait longer.
AT_ONCE = 4
# How far two processes' timestamps of one moment may be apart.
CLOCK_SECONDS = 0.02
# What all cases may take together, with the start of the stacks.
LIMIT_SECONDS = 20 * 60
# How many of the slowest are named when they took longer.
SLOWEST = 5


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
    environ = user_environment(directory, PROJECT)
    failed = True
    with ExitStack() as stopped:
        stopped.callback(clear, directory, options.keep)
        stack = Stack(options.stepfleet, directory, project=PROJECT, environ=environ)
        stopped.callback(stack.stop)
        stock = Stock(
            directory / "stock",
            project=PROJECT,
            environ=environ,
            home=stack.dagster_home,
            url=stack.owner_url,
        )
        stopped.callback(stock.stop)
        print(
            f"the stacks are up after {time.monotonic() - began:.0f} s: {len(chosen)} cases",
            flush=True,
        )
        results = run_all(contexts(stack, stock), chosen)
        whole = not (options.only or options.quick)
        failed = not report(results, time.monotonic() - began, LIMIT_SECONDS if whole else None)
        if failed and options.keep:
            print(stack.tails(stock.logs))
    return 1 if failed else 0


def clear(directory: Path, keep: bool) -> None:
    if keep:
        print(f"kept: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)


def contexts(stack: Stack, stock: Stock) -> dict[bool, Context]:
    """By whether it is stock."""
    apis = {True: DagsterApi(stock.url), False: DagsterApi(stack.state["urls"]["dagster"])}
    instance = open_instance(stack.dagster_home, stack.dagster_url, stack.directory / "harness")
    return {
        True: Context(stack, apis[True], stock.instance, stock.directory, apis),
        False: Context(stack, apis[False], instance, stack.dagster_home, apis),
    }


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


def run_all(contexts: Mapping[bool, Context], chosen: list[tuple[str, Case]]) -> list[Result]:
    """Several cases at once; then, one by one, those that must be alone."""
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        times = "  ".join(f"{n} {s:5.1f} s" for n, s in result.seconds.items())
        verdict = "same" if result.ok else "DIFFERS"
        print(f"{verdict:8}{result.theme:12}{result.case.name:32}{times}", flush=True)
        for line in result.differences:
            print(f"    {line}", flush=True)

    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        beside = [pool.submit(run_case, contexts, t, c) for t, c in chosen if not c.alone]
        for future in as_completed(beside):
            note(future.result())
    finally:  # when this is interrupted, those that run end with their stack, and no other begins
        pool.shutdown(wait=False, cancel_futures=True)
    for theme, case in chosen:
        if case.alone:
            note(run_case(contexts, theme, case))
    return results


def run_case(by_launcher: Mapping[bool, Context], theme: str, case: Case) -> Result:
    """One case in its variants, one after the other."""
    result = Result(case, theme)
    found: dict[str, list[Record]] = {}
    for variant in case.variants:
        context = by_launcher[variant.stock]
        began = time.monotonic()
        try:
            ids = DRIVES[case.drive](context, case, variant)
        except Refused as err:
            ids = []
            found[variant.label] = [
                Record(
                    status="REFUSED", tags={"message": Normaliser([], context.home).text(str(err))}
                )
            ]
        except Exception as err:
            result.differences.append(f"{variant.label}: {type(err).__name__}: {err}")
            result.seconds[variant.label] = time.monotonic() - began
            continue
        if ids:
            normaliser = Normaliser(ids, context.home)
            found[variant.label] = records(context.instance, ids, normaliser)
        result.seconds[variant.label] = time.monotonic() - began
        result.differences += [
            f"{variant.label}: {problem}" for problem in unshown(case, found[variant.label])
        ]
    for label, reference in itertools.product(found, case.references):
        if reference not in found or label not in ("stepfleet", LAUNCHED[reference].label):
            continue
        result.differences += [
            f"{label} against {reference}: {line}"
            for line in compare(
                found[reference],
                found[label],
                # Of one executor all is the same, whoever has launched it.
                in_process=reference == "in_process" and label == "stepfleet",
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
    for wait, waited in (both for run in runs for both in run.waits):
        if waited is not None and waited < wait - CLOCK_SECONDS:
            found.append(f"a retry began after {waited:.3f} s, it was to wait {wait:.3f} s")
        if case.delays and not case.delays[0] <= wait <= case.delays[1]:
            found.append(f"a retry is to wait {wait} s, its policy says {case.delays}")
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


def report(results: list[Result], seconds: float, limit_seconds: float | None) -> bool:
    """Prints how it went, and returns whether it went well."""
    bad = [result for result in results if not result.ok]
    for result in bad:
        print(f"differs: {result.theme}/{result.case.name}")
    late = limit_seconds is not None and seconds > limit_seconds
    if late:
        slowest = sorted(results, key=lambda result: -sum(result.seconds.values()))[:SLOWEST]
        print(
            f"took {seconds:.0f} s, and may take {limit_seconds:.0f} s; the slowest cases: "
            + ", ".join(f"{r.case.name} {sum(r.seconds.values()):.0f} s" for r in slowest)
        )
    failures = [f"{len(bad)} of {len(results)} cases differ"] * bool(bad) + ["too slow"] * late
    verdict = f"FAIL: {', '.join(failures)}" if failures else f"PASS: {len(results)} cases"
    print(f"\nparity: {verdict} in {seconds:.0f} s", flush=True)
    return not failures


if __name__ == "__main__":
    sys.exit(main())
