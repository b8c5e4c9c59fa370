"""Memory that is copied ahead of need."""

from __future__ import annotations

import contextlib
import mmap
import os
import sys

import pytest

from dagster_stepfleet import pages
from tests.fakes import TemplateProcess
from tests.payloads import create_run, step

PAGE = os.sysconf("SC_PAGE_SIZE")


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


linux = pytest.mark.skipif(
    not sys.platform.startswith("linux") or _kernel() < (5, 14), reason="Linux 5.14 and later"
)


def in_fork(question) -> bytes:
    """Returns what question returns in a fork of this process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, question())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer


@pytest.fixture
def memory():
    """Eight written pages, and the number of the first."""
    import ctypes

    memory = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for n in range(8):
        memory[n * PAGE] = 1
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory)) // PAGE
    yield memory, first


@linux
def test_a_fork_shares_pages_until_it_writes(memory):
    area, first = memory
    mine = {*range(first, first + 8)}

    def question() -> bytes:
        before = pages.shared() & mine
        area[3 * PAGE] = 2
        return bytes([len(before), *(n - first for n in before - pages.shared())])

    assert in_fork(question) == bytes([8, 3])


@linux
def test_populated_pages_are_the_forks_own_and_as_they_were(memory):
    area, first = memory
    mine = {*range(first, first + 8)}
    hot = pages.Hot([first + 1, first + 2, first + 5])

    def question() -> bytes:
        hot.populate()
        return bytes(
            [*sorted(n - first for n in mine & pages.shared()), area[PAGE], area[5 * PAGE]]
        )

    assert in_fork(question) == bytes([0, 3, 4, 6, 7, 1, 1])


@linux
@pytest.mark.parametrize("pidfd", [True, False])
def test_what_is_not_to_be_had_is_passed_over(memory, monkeypatch, pidfd):
    """By one call, and by a call for each range, which older systems need."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open")
    _, first = memory
    hot = pages.Hot([1, first + 1, 3, first + 3])
    answer = in_fork(lambda: hot.populate() or bytes(first + n in pages.shared() for n in range(4)))
    assert answer == bytes([1, 0, 1, 0])


@linux
def test_one_call_does_for_more_ranges_than_the_kernel_takes():
    import ctypes

    area = mmap.mmap(-1, 4400 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    first = ctypes.addressof(ctypes.c_char.from_buffer(area)) // PAGE
    for n in range(4400):
        area[n * PAGE] = 1
    wanted = {*range(first, first + 4400, 2)}
    hot = pages.Hot(wanted)
    assert in_fork(lambda: hot.populate() or bytes([bool(wanted & pages.shared())])) == b"\0"


def test_ranges_join_neighbours():
    assert pages.ranges([7, 3, 4, 9]) == [
        (3 * PAGE, 5 * PAGE),
        (7 * PAGE, 8 * PAGE),
        (9 * PAGE, 10 * PAGE),
    ]


def test_lessons():
    lesson = pages.pack({5, 3})
    assert pages.unpack(lesson) == {3, 5}
    assert pages.unpack(lesson[:-1]) == set(), "its teller died"
    assert pages.unpack(b"") == set()
    assert pages.unpack(pages.pack(range(pages.MAX_PAGES + 1))) == set()


def _private_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Private_"))


@linux
def test_children_begin_with_what_steps_have_copied(instance):
    run = create_run(instance, "chain")
    # A template of its own: the one that tests share has had its lessons.
    with contextlib.closing(TemplateProcess([{"module": "tests.defs"}])) as template:
        small = []
        for _ in range(2):
            child = template.fork()
            child.ready()
            small.append(_private_bytes(child.pid))
            child.run(*step(instance, run, "one"))
            template.exited(child.pid)
        child = template.fork()
        child.ready()
        assert _private_bytes(child.pid) > max(small) + (2 << 20)
        result = child.run(*step(instance, run, "one"))
        assert result["outcome"] == "succeeded"


@linux
def test_a_child_tells_once_or_lets_another_tell(memory):
    area, first = memory
    read, write = os.pipe()

    def question() -> bytes:
        lesson = pages.Lesson(write)
        area[2 * PAGE] = 2
        lesson.tell()
        return b""

    in_fork(question)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert first + 2 in pages.unpack(pipe.read())
    read, write = os.pipe()
    pages.Lesson(write).decline()
    with os.fdopen(read, "rb") as pipe:
        assert pages.unpack(pipe.read()) == set()
