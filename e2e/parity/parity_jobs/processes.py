"""What ops do with their process: fork, threads, descriptors, memory, signals, and dying."""

import asyncio
import contextlib
import ctypes
import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import boto3
from dagster import (
    AssetMaterialization,
    ConfigurableResource,
    Definitions,
    EnvVar,
    ExpectationResult,
    In,
    InitResourceContext,
    MaterializeResult,
    Nothing,
    OpExecutionContext,
    Out,
    Output,
    PipesSubprocessClient,
    RetryPolicy,
    graph,
    op,
    resource,
    success_hook,
)

from parity_jobs.case import Case, graph_case, jobs_of
from parity_jobs.say import SECRET, marks, say

# Only where it is installed: nothing of ours needs it.
numpy: Any = importlib.import_module("numpy") if importlib.util.find_spec("numpy") else None

ONE_PROCESS = "in_process has one process for the whole run, which this ends or changes"

_PIPES_PROGRAM = """
import sys
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.log.info(f"hello from pipes, {pipes.extras['greeting']}")
    pipes.report_asset_materialization(asset_key="piped", metadata={"rows": 4})
    pipes.report_custom_message({"sum": 6})
    print("out> printed by the child")
    print("err> printed by the child", file=sys.stderr)
"""


@op
def pipes_op(context: OpExecutionContext) -> Iterator[Any]:
    done = PipesSubprocessClient().run(
        command=[sys.executable, "-c", _PIPES_PROGRAM],
        context=context,
        extras={"greeting": "greetings"},
    )
    say(f"custom messages {done.get_custom_messages()}")
    for result in done.get_results():
        assert isinstance(result, MaterializeResult) and result.asset_key
        yield AssetMaterialization(result.asset_key, metadata=dict(result.metadata or {}))
    yield Output(1)


@graph
def pipes():
    pipes_op()


@op(out={"first": Out(int), "second": Out(int)})
def generates() -> Iterator[Any]:
    yield ExpectationResult(success=True, label="before", metadata={"n": 1})
    yield Output(1, "first")
    yield AssetMaterialization("generated")
    say("between outputs")
    yield ExpectationResult(success=False, label="after")
    yield Output(2, "second", metadata={"two": 2})


@op
async def awaits(number: int) -> int:
    async def one(value: int) -> int:
        await asyncio.sleep(0.01)
        return value

    say(f"awaited {sum(await asyncio.gather(*(one(number) for _ in range(5))))}")
    return number


@op
async def awaits_and_generates(number: int):
    await asyncio.sleep(0.01)
    yield AssetMaterialization("awaited")
    yield Output(number)


@graph
def generators_and_async():
    first, second = generates()
    awaits(first)
    awaits_and_generates(second)


@op
def forks(context: OpExecutionContext) -> int:
    """A child that prints, and one that leaves through Python's own exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.write(1, b"out> forked\n")
        os._exit(3)
    say(f"the child exited with {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}")
    pid = os.fork()
    if pid == 0:
        try:
            raise SystemExit(4)
        except SystemExit:
            os._exit(4)
    os.waitpid(pid, 0)
    done = subprocess.run(["sh", "-c", "echo 'out> from a shell'; exit 5"], check=False)
    say(f"the shell exited with {done.returncode}")
    return 1


@op
def threads(context: OpExecutionContext, number: int) -> int:
    """Threads that print and log; a daemon thread stays when the op has ended."""

    def work(n: int) -> None:
        say(f"thread {n}")
        context.log.info(f"thread {n} logs")

    for n in range(3):
        thread = threading.Thread(target=work, args=(n,))
        thread.start()
        thread.join()
    threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
    return number


def works_later(context: OpExecutionContext, name: str) -> None:
    time.sleep(1)
    context.log.info(f"{name} logs after the op")
    context.log_event(AssetMaterialization(f"late_{name}"))
    say(f"{name} prints after the op")  # where Dagster no longer captures


@op(out=Out(Nothing))
def leaves_thread(context: OpExecutionContext) -> None:
    threading.Thread(target=works_later, args=(context, "thread")).start()
    say("the op is over")


@op(out=Out(Nothing))
def leaves_pool(context: OpExecutionContext) -> None:
    """A pool of threads that nobody shuts down, with more to do than it has threads."""
    pool = ThreadPoolExecutor(1)
    for number in range(2):
        pool.submit(works_later, context, f"pool_{number}")


@op(out=Out(Nothing))
def leaves_deadly_thread(context: OpExecutionContext) -> None:
    def ends_process() -> None:
        works_later(context, "deadly_thread")
        os._exit(7)

    threading.Thread(target=ends_process).start()


@graph
def threads_outlive_ops():
    leaves_thread()
    leaves_pool()
    leaves_deadly_thread()


@op(ins={"number": In(int)})
def uses_multiprocessing(number: int) -> None:
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        say(f"pool: {pool.map(abs, [-1, -2])}")


@op
def reports_from_forks(context: OpExecutionContext) -> None:
    """Processes of its own that log and report at the same time."""
    import multiprocessing

    def work(number: int) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the lines would come in any order
        for n in range(10):
            context.log.info(f"process {number} says {n}")
        context.log_event(AssetMaterialization(f"forked_{number}", metadata={"number": number}))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    say(f"the processes exited with {[process.exitcode for process in processes]}")


@graph
def forks_that_report():
    reports_from_forks()


@graph
def forks_and_threads():
    uses_multiprocessing(threads(forks()))


@op
def closes_stdout() -> int:
    say("before")
    sys.stdout.close()
    os.close(1)
    sys.stdout = open(os.devnull, "w")  # so that Python itself can go on
    print("lost")
    return 1


@op
def prints_after(number: int) -> None:
    say(f"number {number}")


@graph
def close_stdout():
    prints_after(closes_stdout())


LINE = b"out> " + b"0123456789" * 9 + b"abcd\n"  # 100 bytes


@op
def prints_50_mb() -> int:
    for _ in range(500):
        sys.stdout.buffer.write(LINE * 1000)
    sys.stdout.flush()
    return 1


@graph
def print_50_mb():
    prints_after(prints_50_mb())


_hoard: list[bytes] = []


@op
def leaks() -> int:
    for _ in range(20):
        _hoard.append(os.urandom(1 << 20) * 10)
    return 1


@op
def measures(number: int) -> None:
    say(f"the next step has {len(_hoard)} of it")


@graph
def leak_memory():
    measures(leaks())


@op
def exits() -> int:
    say("about to exit")
    os._exit(7)


@op(retry_policy=RetryPolicy(max_retries=1, delay=0.1))
def exits_once(context: OpExecutionContext) -> int:
    say(f"attempt {context.retry_number}")
    if context.retry_number == 0:
        os._exit(7)
    return 1


@op
def segfaults() -> int:
    say("about to crash")
    ctypes.string_at(0)
    return 1


@op
def kills_itself() -> int:
    say("about to be killed")
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@op
def calls_sys_exit() -> int:
    say("about to call sys.exit")
    sys.exit(9)


@op
def bystander() -> int:
    return 1


@graph
def os_exit():
    prints_after(exits())
    prints_after.alias("after_once")(exits_once())
    bystander()


@graph
def segfault():
    prints_after(segfaults())
    bystander()


@graph
def killed():
    prints_after(kills_itself())
    bystander()


@graph
def sys_exit():
    prints_after(calls_sys_exit())


@success_hook
def slow_hook(context: Any) -> None:
    time.sleep(2)
    say("the slow hook is through")


@graph
def hook_outlives_step():
    """The last step's hook is still at work when its success is in the log."""
    bystander.with_hooks({slow_hook})()


@resource
def slow_to_close(context: InitResourceContext) -> Iterator[str]:
    yield "open"
    time.sleep(2)
    assert context.log is not None
    context.log.info("the resource is closed")


@op(required_resource_keys={"slow"})
def uses_slow(context: OpExecutionContext) -> None:
    say(f"resource {context.resources.slow}")


@graph
def resource_outlives_step():
    uses_slow()


class Vault(ConfigurableResource):
    secret: str


def aws_views() -> Iterator[str]:
    """What boto3 makes of the environment, without a call to anywhere: by its default session, and
    by one of the op's own."""
    own = boto3.Session()
    boto3.client("s3")  # makes the default session
    for client, session in ((boto3.client, boto3.DEFAULT_SESSION), (own.client, own)):
        assert session is not None
        found: Any = session.get_credentials()
        yield (
            f"profile {session.profile_name}, region {session.region_name},"
            f" key {found.access_key} of {found.method},"
            f" s3 at {client('s3').meta.endpoint_url}, sqs at {client('sqs').meta.endpoint_url}"
        )


@op
def looks_around(vault: Vault) -> None:
    say(f"secret {vault.secret}, direct {os.environ['PARITY_SECRET']}")
    for view in aws_views():
        say(view)


@graph
def secrets():
    looks_around()


@op
def sees() -> None:
    """Where the step finds itself."""
    for name in sorted(os.environ):
        say(f"variable {name}")
    say(f"cwd {os.getcwd()}, umask {os.umask(0o22):o}")
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGHUP, signal.SIGCHLD):
        handler = signal.getsignal(number)
        say(f"{number.name} {getattr(handler, '__name__', handler)}")
    say(f"main thread {threading.current_thread() is threading.main_thread()}")
    say(f"stdin {os.readlink('/proc/self/fd/0')} isatty {sys.stdin.isatty()}")
    say(f"encoding {sys.stdout.encoding} {sys.getfilesystemencoding()}")
    say(f"path {[p for p in sys.path if 'parity' in p]}")


@graph
def surroundings():
    sees()


_state = {"value": "fresh"}
TRACE_FILE = "parity-trace"


def open_traces() -> int:
    """How many descriptors of this process are files that a step has left open."""
    targets: list[str] = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(TRACE_FILE in target for target in targets)


def draw_of_numpy() -> float | None:
    return float(numpy.random.random()) if numpy else None


@op(out=Out(Nothing))
def leaves_traces() -> None:
    """Changes everything that a process has."""
    _state["value"] = "changed by another step"
    os.environ["PARITY_TRACE"] = "1"
    os.chdir("/")
    random.seed(1)
    if numpy:
        numpy.random.seed(1)
    os.umask(0o77)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    sys.path.insert(0, "/parity-trace")
    with contextlib.suppress(Exception):
        sys.modules["parity_trace"] = sys
    threading.Thread(target=time.sleep, args=(60,), name="parity-trace", daemon=True).start()
    _keep.append((marks() / f"{TRACE_FILE}-{os.getpid()}").open("wb"))
    say(f"leaves open files {open_traces()}")


_keep: list[IO[Any]] = []


@op(ins={"after": In(Nothing)}, out=Out(Nothing))
def finds_traces() -> None:
    say(f"global {_state['value']}")
    say(f"environment {os.environ.get('PARITY_TRACE')}")
    say(f"cwd changed {os.getcwd() == '/'}, umask {os.umask(0o22):o}")
    first = random.Random(1).random()
    say(f"same random numbers {random.random() == first}")
    say(f"signal {signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL}")
    say(f"path {'/parity-trace' in sys.path}, module {'parity_trace' in sys.modules}")
    say(f"thread {any(t.name == 'parity-trace' for t in threading.enumerate())}")
    say(f"open files {open_traces()}")
    if numpy:
        first = numpy.random.RandomState(1).random_sample()
        say(f"numpy's same random numbers {draw_of_numpy() == first}")


@op(ins={"after": In(Nothing)}, out=Out(str))
def draws() -> str:
    import uuid

    return f"{random.random()} {draw_of_numpy()} {os.urandom(4).hex()} {uuid.uuid4()}"


@op
def all_different(drawn: list[str]) -> None:
    """In every one of the sources that there are."""
    for source in zip(*(text.split() for text in drawn), strict=True):
        say(f"{len(set(source))} of {len(source)} differ" if source[0] != "None" else "no numpy")


@graph
def isolation():
    traces = leaves_traces()
    finds_traces(leaves_traces.alias("more_traces")())
    finds_traces.alias("finds_again")(traces)
    all_different([draws.alias(f"draws_{i}")(traces) for i in range(6)])


CASES: tuple[Case, ...] = (
    graph_case(pipes, counts={"ASSET_MATERIALIZATION": 1}),
    graph_case(
        generators_and_async,
        counts={"STEP_EXPECTATION_RESULT": 2, "ASSET_MATERIALIZATION": 2, "STEP_SUCCESS": 3},
    ),
    graph_case(forks_and_threads, counts={"STEP_SUCCESS": 3}),
    graph_case(
        threads_outlive_ops,
        references=("multiprocess",),
        why="in_process ends no process with a step: threads go on beside the run, and after it",
        counts={"STEP_SUCCESS": 3, "ASSET_MATERIALIZATION": 4},
        logs=tuple(
            f"{name} logs after the op" for name in ("thread", "pool_0", "pool_1", "deadly_thread")
        ),
    ),
    graph_case(forks_that_report, counts={"STEP_SUCCESS": 1, "ASSET_MATERIALIZATION": 4}),
    graph_case(
        close_stdout,
        references=("multiprocess",),
        why=ONE_PROCESS,
        counts={"STEP_SUCCESS": 2},
    ),
    graph_case(print_50_mb, counts={"STEP_SUCCESS": 2}),
    graph_case(
        leak_memory,
        references=("multiprocess",),
        why=ONE_PROCESS,
        prints=("out> the next step has 0 of it",),
    ),
    graph_case(
        os_exit,
        status="FAILURE",
        references=("multiprocess",),
        why=ONE_PROCESS,
        counts={"STEP_FAILURE": 1, "STEP_UP_FOR_RETRY": 1, "STEP_SUCCESS": 3},
        masks=frozenset({"crash"}),
    ),
    graph_case(
        segfault,
        status="FAILURE",
        references=("multiprocess",),
        why=ONE_PROCESS,
        counts={"STEP_FAILURE": 1, "STEP_SUCCESS": 1},
        masks=frozenset({"crash"}),
    ),
    graph_case(
        killed,
        status="FAILURE",
        references=("multiprocess",),
        why=ONE_PROCESS,
        counts={"STEP_FAILURE": 1, "STEP_SUCCESS": 1},
        masks=frozenset({"crash"}),
    ),
    graph_case(sys_exit, status="FAILURE", references=("multiprocess",), why=ONE_PROCESS),
    graph_case(hook_outlives_step, counts={"HOOK_COMPLETED": 1}),
    graph_case(
        resource_outlives_step,
        job={"resource_defs": {"slow": slow_to_close}},
        logs=("the resource is closed",),
    ),
    graph_case(
        secrets,
        job={"resource_defs": {"vault": Vault(secret=EnvVar("PARITY_SECRET"))}},
        prints=(
            f"out> secret {SECRET}, direct {SECRET}",
            "out> profile parity, region ap-south-1,"
            " key of-the-profile of shared-credentials-file,"
            " s3 at https://s3.ap-south-1.amazonaws.com,"
            " sqs at https://sqs.ap-south-1.amazonaws.com",
        ),
        launched=True,
    ),
    graph_case(
        surroundings,
        references=("multiprocess",),
        why=ONE_PROCESS,
        masks=frozenset({"own_variables"}),
        launched=True,
    ),
    graph_case(
        isolation,
        references=("multiprocess",),
        why=ONE_PROCESS,
        prints=(
            "out> global fresh",
            "out> environment None",
            "out> same random numbers False",
            "out> thread False",
            "out> leaves open files 1",
            "out> open files 0",
            "out> 6 of 6 differ",
        ),
        quick=True,
    ),
)


def definitions() -> Definitions:
    return jobs_of(CASES)
