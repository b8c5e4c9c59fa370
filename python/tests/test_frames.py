from __future__ import annotations

import array
import os
import socket

import pytest

from dagster_stepfleet.frames import FrameError, FrameSocket


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield ours, FrameSocket(theirs)
    ours.close()
    theirs.close()


def raw(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_frames_in_pieces_and_together(pair):
    ours, frames = pair
    data = raw(b'{"op":"a"}') + raw(b'{"op":"b"}')
    for n in range(7):
        ours.sendall(data[n : n + 1])
    ours.sendall(data[7:])
    assert frames.receive() == {"op": "a"}
    assert frames.receive() == {"op": "b"}
    ours.close()
    assert frames.receive() is None


def test_large_frame(pair):
    ours, frames = pair
    peer = FrameSocket(ours)
    import threading

    big = {"op": "run", "payload": "x" * 3_000_000}
    thread = threading.Thread(target=peer.send, args=(big,))
    thread.start()
    assert frames.receive() == big
    thread.join()


def test_descriptor_comes_along(pair):
    ours, frames = pair
    read, write = os.pipe()
    ours.sendmsg(
        [raw(b'{"op":"fork"}')],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))],
    )
    assert frames.receive() == {"op": "fork"}
    fd = frames.take_fd()
    assert fd is not None and not os.get_inheritable(fd)
    os.write(fd, b"hi")
    assert os.read(read, 2) == b"hi"
    for each in (read, write, fd):
        os.close(each)
    assert frames.take_fd() is None


@pytest.mark.parametrize("body", [b"[1]", b"nonsense", b'{"no":"op"}'])
def test_what_is_no_frame(pair, body):
    ours, frames = pair
    ours.sendall(raw(body))
    with pytest.raises(FrameError):
        frames.receive()


def test_limit(pair):
    ours, frames = pair
    ours.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(FrameError, match="limit"):
        frames.receive()
