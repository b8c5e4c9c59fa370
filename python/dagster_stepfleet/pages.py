"""Copies, ahead of need, the memory that a step will write to.

A forked process shares the template's memory until it writes, and Python writes wherever it looks:
every object has a reference count. A small step so copies some five thousand pages, one fault
each, which is a third of its CPU time. Which pages these are hardly depends on the step, for they
hold Dagster's own code and caches. So the first steps tell the template which ones they copied, and
the children that it forks from then on have the kernel copy those while they wait for a task.

Linux 5.14 and later; elsewhere nothing is copied ahead, and steps are slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Generator, Iterable
from typing import Any

_MADV_POPULATE_WRITE = 23
# Of every architecture that Python runs on under Linux. It serves the caller's own process with any
# advice since Linux 6.13.
_SYS_PROCESS_MADVISE = 440
_MAX_VECTORS = 1024  # UIO_MAXIOV
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Bits of an entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).
_PRESENT = 1 << 63
_EXCLUSIVE = 1 << 56
_ENTRY_BYTES = 8
# A child that waits must stay small: 48 MiB with pages of 4 KiB. A step that copies more is no
# guide to others.
MAX_PAGES = 12288
_HEADER = struct.Struct("<Q")


def shared() -> set[int]:
    """Returns the numbers of the writable private pages that this process and another share; none
    where the system does not tell."""
    found: set[int] = set()
    try:
        with (
            open("/proc/self/maps") as maps,
            open("/proc/self/pagemap", "rb", buffering=0) as pagemap,
        ):
            for line in maps.readlines():
                addresses, permissions = line.split(maxsplit=2)[:2]
                if permissions == "rw-p":
                    start, end = (int(text, 16) // _PAGE_BYTES for text in addresses.split("-"))
                    pagemap.seek(start * _ENTRY_BYTES)
                    entries = pagemap.read((end - start) * _ENTRY_BYTES)
                    for number, (entry,) in enumerate(struct.iter_unpack("<Q", entries), start):
                        if entry & _PRESENT and not entry & _EXCLUSIVE:
                            found.add(number)
    except OSError:
        return set()
    return found


class Lesson:
    """A child's answer to the template that has asked it which pages its step copies."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._shared = shared()

    def tell(self) -> None:
        """Tells what this process has copied since it was made. Without a template to tell, it does
        nothing."""
        with contextlib.suppress(OSError), os.fdopen(self._pipe, "wb") as pipe:
            pipe.write(pack(self._shared - shared()))

    def decline(self) -> None:
        """Lets another child tell: this one runs no step."""
        os.close(self._pipe)


def pack(numbers: Iterable[int]) -> bytes:
    """Returns a lesson: how many pages, and their numbers."""
    some = sorted(numbers)
    return struct.pack(f"<{1 + len(some)}Q", len(some), *some)


def unpack(lesson: bytes) -> set[int]:
    """Returns the pages of a lesson; none when it is not whole, or tells of too many."""
    if len(lesson) < _HEADER.size:
        return set()
    (count,) = _HEADER.unpack_from(lesson)
    if count > MAX_PAGES or len(lesson) != _HEADER.size * (1 + count):
        return set()
    return set(struct.unpack_from(f"<{count}Q", lesson, _HEADER.size))


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Joins neighbouring pages to half-open ranges of addresses."""
    joined: list[tuple[int, int]] = []
    for number in sorted(numbers):
        start, end = number * _PAGE_BYTES, (number + 1) * _PAGE_BYTES
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


class _Vector(ctypes.Structure):
    """A range of addresses, as `struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Hot:
    """Pages that each process forked from here copies at its start."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._libc = ctypes.CDLL(None)  # loaded here, for all that are forked
        joined = ranges(numbers)
        self._batches = [
            _Batch(joined[i : i + _MAX_VECTORS]) for i in range(0, len(joined), _MAX_VECTORS)
        ]

    def populate(self) -> None:
        """Has the kernel copy the pages now. One that is not to be had is passed over."""
        if not self._batches:
            return
        with _own_pidfd() as pidfd:
            for batch in self._batches:
                # One call for all: to enter the kernel costs as much as a page.
                if pidfd < 0 or self._advise_all(pidfd, batch.vectors) != batch.bytes:
                    self._advise_each(batch.vectors)

    def _advise_all(self, pidfd: int, vectors: Any) -> int:
        """Returns how many bytes were populated, negative where the system cannot."""
        count: int = self._libc.syscall(
            ctypes.c_long(_SYS_PROCESS_MADVISE),
            ctypes.c_int(pidfd),
            vectors,
            ctypes.c_size_t(len(vectors)),
            ctypes.c_int(_MADV_POPULATE_WRITE),
            ctypes.c_uint(0),
        )
        return count

    def _advise_each(self, vectors: Any) -> None:
        for vector in vectors:
            self._libc.madvise(
                ctypes.c_void_p(vector.base), ctypes.c_size_t(vector.length), _MADV_POPULATE_WRITE
            )


class _Batch:
    """Ranges for one call, in the kernel's form."""

    def __init__(self, joined: list[tuple[int, int]]) -> None:
        self.bytes = sum(end - start for start, end in joined)
        self.vectors = (_Vector * len(joined))(
            *(_Vector(start, end - start) for start, end in joined)
        )


@contextlib.contextmanager
def _own_pidfd() -> Generator[int, None, None]:
    """This process's descriptor of itself, -1 where there is none."""
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        yield -1
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)
