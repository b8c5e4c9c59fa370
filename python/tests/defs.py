"""The code location of the tests."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckResult,
    AssetMaterialization,
    Definitions,
    DynamicOut,
    DynamicOutput,
    HookContext,
    In,
    Nothing,
    Out,
    RetryPolicy,
    asset,
    asset_check,
    define_asset_job,
    in_process_executor,
    job,
    op,
    resource,
    success_hook,
)

from dagster_stepfleet import idempotency, stepfleet_executor


@op
def one() -> int:
    print("hello from one")
    print("oops from one", file=sys.stderr)
    return 1


@op
def add(n: int) -> int:
    return n + 1


@job(executor_def=stepfleet_executor)
def chain():
    add.alias("c")(add.alias("b")(one()))


@op(out=DynamicOut(int))
def split():
    for n in range(3):
        yield DynamicOutput(n, mapping_key=f"k{n}")


@op
def collect(values: list[int]) -> int:
    return sum(values)


@job(executor_def=stepfleet_executor)
def dynamic():
    collect(split().map(add).collect())


@op
def boom() -> int:
    raise ValueError("this op fails")


@job(executor_def=stepfleet_executor)
def failing():
    add(boom())


@op(retry_policy=RetryPolicy(max_retries=2**40))
def tireless() -> int:
    return 1


@job(executor_def=stepfleet_executor)
def patient():
    tireless()


@op(retry_policy=RetryPolicy(max_retries=2, delay=0))
def flaky(context) -> int:
    if context.retry_number < 1:
        raise ValueError("first try")
    return context.retry_number


@job(executor_def=stepfleet_executor)
def retried():
    flaky()


def later(context, *then) -> None:
    time.sleep(1)
    print("a thread prints later")
    context.log.info("a thread logs later")
    context.log_event(AssetMaterialization("of_a_thread"))
    for call in then:
        call()


@op(out=Out(Nothing))
def leaves_a_thread(context):
    threading.Thread(target=later, args=(context,)).start()


@op(out=Out(Nothing))
def leaves_a_pool(context):
    """A pool that is not shut down, with more to do than it has threads."""
    pool = ThreadPoolExecutor(1)
    pool.submit(time.sleep, 0.1)
    pool.submit(later, context)


@op(out=Out(Nothing))
def leaves_a_deadly_thread(context):
    threading.Thread(target=later, args=(context, lambda: os._exit(7))).start()


@op(out=Out(Nothing))
def leaves_a_daemon(context):
    threading.Thread(target=time.sleep, args=(300,), daemon=True).start()


@job(executor_def=stepfleet_executor)
def leaving_threads():
    leaves_a_thread()
    leaves_a_pool()
    leaves_a_deadly_thread()
    leaves_a_daemon()


@op
def die_once(context) -> int:
    if context.retry_number < 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


@job(executor_def=stepfleet_executor)
def dying():
    add(die_once())


@op(retry_policy=RetryPolicy(max_retries=1))
def dies(context) -> int:
    """Dies in its first attempts, as many as DEATHS says."""
    if context.retry_number < int(os.environ["DEATHS"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


@job(executor_def=stepfleet_executor)
def dying_often():
    dies()


@op(tags={"stepfleet/queue": "nowhere"})
def unknown_queue() -> int:
    return 1


@op
def fine() -> int:
    return 1


@job(executor_def=stepfleet_executor)
def misplaced():
    unknown_queue()
    fine()


@op(tags={"stepfleet/priority": "high"})
def badly_tagged() -> int:
    return 1


@job(executor_def=stepfleet_executor)
def warned():
    badly_tagged()


@op
def environ() -> str:
    return ",".join(sorted(n for n in os.environ if n.startswith("STEPFLEET_")))


@job(executor_def=stepfleet_executor)
def environment():
    environ()


@op(out=Out(Any))
def tells_key():
    return idempotency.key(), idempotency.fence()


@job(executor_def=stepfleet_executor)
def idempotent():
    tells_key()


@op
def forks() -> int:
    print("before the kill")
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@job(executor_def=stepfleet_executor)
def printing():
    forks()


@op(out=Out(Nothing))
def forker(context):
    """Logs and reports from four processes of its own, and from itself meanwhile."""
    import multiprocessing

    def work(number):
        for n in range(25):
            context.log.info(f"process {number} says {n}")
            context.log_event(AssetMaterialization(f"of_{number}"))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    work(4)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


@job(executor_def=stepfleet_executor)
def forking():
    forker()


@op(out=Out(Nothing))
def sleeper(context):
    mark = Path(os.environ["MARK"])
    child = subprocess.Popen(["sleep", "300"])
    mark.write_text(f"{os.getpid()} {child.pid}")
    time.sleep(300)


@job(executor_def=stepfleet_executor)
def sleeping():
    sleeper()


@resource
def broken(_):
    raise RuntimeError("no such database")


@op(required_resource_keys={"broken"}, ins={"n": In(Nothing)})
def needs_broken():
    pass


@job(executor_def=stepfleet_executor, resource_defs={"broken": broken})
def broken_resource():
    needs_broken(fine())


@resource
def mended(context):
    """Works at the run's second try."""
    mark = Path(tempfile.gettempdir()) / f"stepfleet-mended-{context.run_id}"
    if mark.exists():
        mark.unlink()
        return
    mark.touch()
    raise RuntimeError("no such database yet")


@op(required_resource_keys={"mended"}, retry_policy=RetryPolicy(max_retries=1))
def needs_mended() -> int:
    return 1


@job(executor_def=stepfleet_executor, resource_defs={"mended": mended})
def mended_resource():
    add(needs_mended())


@op(out={"a": Out(int, is_required=False), "b": Out(int, is_required=False)})
def only_a():
    from dagster import Output

    yield Output(1, "a")


@job(executor_def=stepfleet_executor)
def skipping():
    a, b = only_a()
    add.alias("after_a")(a)
    add.alias("after_b")(b)


@success_hook
def takes_its_time(context: HookContext) -> None:
    time.sleep(2.5)


@op
def quick() -> None: ...


@job(executor_def=stepfleet_executor, hooks={takes_its_time})
def slow_hook() -> None:
    """The hook outlasts the look that finds the step's success."""
    quick()


@job(executor_def=stepfleet_executor)
def skip_join():
    """One of two branches is skipped, and what joins them runs."""
    a, b = only_a()
    collect.alias("join")([add.alias("after_a")(a), add.alias("after_b")(b)])


@job(executor_def=stepfleet_executor)
def wide():
    add(collect([fine.alias(f"w{n}")() for n in range(4)]))


DELAY_SECONDS = 5


@op(retry_policy=RetryPolicy(max_retries=1, delay=DELAY_SECONDS))
def flaky_later(context) -> int:
    if context.retry_number < 1:
        raise ValueError("first try")
    return 1


@job(executor_def=stepfleet_executor)
def delayed():
    flaky_later()


POOL = "resumed"


@job(executor_def=stepfleet_executor)
def pooled():
    add(op(name="in_pool", pool=POOL)(lambda _: 1)())


@asset
def raw() -> int:
    return 3


@job(executor_def=in_process_executor)
def alone():
    one()


@job(executor_def=in_process_executor)
def alone_environ():
    environ()


@job(executor_def=in_process_executor)
def alone_failing():
    boom()


@asset
def cooked(raw: int) -> int:
    return raw * 2


@asset_check(asset=cooked)
def cooked_is_even(cooked: int):
    return AssetCheckResult(passed=cooked % 2 == 0)


defs = Definitions(
    assets=[raw, cooked],
    asset_checks=[cooked_is_even],
    jobs=[
        alone,
        alone_environ,
        alone_failing,
        chain,
        dynamic,
        failing,
        patient,
        retried,
        dying,
        dying_often,
        leaving_threads,
        misplaced,
        warned,
        sleeping,
        environment,
        idempotent,
        forking,
        printing,
        broken_resource,
        mended_resource,
        skipping,
        slow_hook,
        skip_join,
        wide,
        delayed,
        pooled,
        define_asset_job("assets", executor_def=stepfleet_executor),
    ],
)
