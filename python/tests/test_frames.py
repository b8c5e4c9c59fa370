from __future__ import annotations

import array
import ast
import os
import random
import socket
import time
from pathlib import Path

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


# The Go side's fuzzer keeps its inputs there, in Go's notation.
KEPT = Path(__file__).parents[2] / "internal/pyhost/testdata/fuzz/FuzzReceive"


def kept_inputs() -> list[bytes]:
    lines = (path.read_text().splitlines()[1] for path in sorted(KEPT.iterdir()))
    return [ast.literal_eval("b" + line[len("[]byte(") : -1]) for line in lines]


def changed(rng: random.Random, data: bytes) -> bytes:
    """The input with a few bytes changed, added or taken out, mostly with its length put right."""
    mutable = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(mutable))
        if rng.random() < 0.3:
            del mutable[at : at + rng.randint(1, 4)]
        elif rng.random() < 0.5:
            mutable[at:at] = rng.choice([b"[", b'"', b"{", b"\\", b"\xff", b"1e999", b'"op"', b":"])
        elif at < len(mutable):
            mutable[at] = rng.randrange(256)
    body = bytes(mutable[4:])
    return raw(body) if rng.random() < 0.7 else bytes(mutable)


def read_whole(data: bytes) -> list[dict]:
    """The frames at the beginning of the data; FrameError after the last one is fine."""
    ours, theirs = socket.socketpair()
    frames, found = FrameSocket(theirs), []
    try:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        while (frame := frames.receive()) is not None:
            found.append(frame)
    except FrameError:
        pass
    finally:
        ours.close()
        frames.close()
    return found


def test_fuzz_what_a_peer_may_send():
    """Only frames and FrameErrors come of any bytes; STEPFLEET_FUZZ_SECONDS looks longer."""
    seed = int(os.environ.get("STEPFLEET_FUZZ_SEED") or time.time_ns())
    rng, inputs = random.Random(seed), kept_inputs()
    assert len(inputs) > 5
    until = time.monotonic() + float(os.environ.get("STEPFLEET_FUZZ_SECONDS") or 1)
    data = b""
    try:
        for data in inputs:
            read_whole(data)
        while time.monotonic() < until:
            data = changed(rng, rng.choice(inputs))
            for frame in read_whole(data):
                assert isinstance(frame["op"], str)
    except BaseException:
        print(f"STEPFLEET_FUZZ_SEED={seed}, input {data!r}")
        raise
