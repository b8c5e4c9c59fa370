"""Ops that print, each in a way that has cost somebody a log."""

import os
import signal
import socket
import subprocess
import sys
import time

from dagster import Definitions, job, op

from dagster_stepfleet import stepfleet_executor

LINE = "x" * 49
HUGE_LINES = 1 << 20


def await_release() -> None:
    while not os.path.exists(os.environ["RELEASE"]):
        time.sleep(0.02)


@op
def plain() -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)


@op
def waits() -> None:
    print("begun")
    await_release()
    print("ended")


@op
def waits_alone() -> None:
    print("threads", len(os.listdir("/proc/self/task")))
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        print("children", len(children.read().split()))


@op
def killed() -> None:
    print("a line")
    print("no line", end="")
    os.write(1, b", by the descriptor")
    subprocess.run(["sh", "-c", "printf ', by a subprocess'"], check=True)
    print("an error", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)


@op
def huge() -> None:
    for _ in range(HUGE_LINES):
        print(LINE)


@op
def closes() -> None:
    """Its connection gets the number that was stdout's."""
    print("before")
    sys.stdout.close()
    os.close(1)
    global connection
    connection = socket.socketpair()
    assert 1 in [s.fileno() for s in connection]


@op
def reopens() -> None:
    print("before")
    saved = os.dup(1)
    os.close(1)
    os.dup2(saved, 1)
    os.close(saved)
    sys.stdout = open(os.dup(1), "w", buffering=1)  # noqa: SIM115
    print("after")


@op
def interrupted() -> None:
    print("begun")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


@op
def leaves_a_writer() -> None:
    print("begun")
    subprocess.Popen(["sh", "-c", "sleep 30; echo late"])


@op
def s3_client() -> None:
    """Its client is made as ever, from the default session."""
    import boto3

    print(boto3.client("s3").meta.region_name)


@job(executor_def=stepfleet_executor)
def loud():
    for each in (
        plain,
        waits,
        waits_alone,
        killed,
        huge,
        closes,
        reopens,
        interrupted,
        leaves_a_writer,
        s3_client,
    ):
        each()


defs = Definitions(jobs=[loud])
