"""Frames of the host protocol: a 4-byte big-endian length and that many bytes of JSON."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from typing import Any

# The version of the host protocol (docs/protocol.md section 2). A worker that knows only an earlier
# one refuses this process.
PROTOCOL_VERSION = 2
# The protocol's limit on one frame. A payload is at most 8 MiB, so this is never met in earnest.
MAX_FRAME_BYTES = 64 << 20

# One frame carries at most one descriptor; room for more keeps a confused peer from truncating.
_MAX_FDS = 8

Frame = dict[str, Any]


class FrameError(Exception):
    """The peer sent something that is no frame."""


class FrameSocket:
    """Reads and writes frames on a stream socket, with the descriptors that came along."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self.fds: deque[int] = deque()

    def send(self, frame: Frame) -> None:
        body = json.dumps(frame, separators=(",", ":")).encode()
        if len(body) > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME_BYTES}")
        self.sock.sendall(struct.pack(">I", len(body)) + body)

    def receive(self) -> Frame | None:
        """Blocks for the next frame. Returns None when the peer has gone."""
        while True:
            frame = self.take()
            if frame is not None:
                return frame
            if not self.fill():
                return None

    def take_fd(self) -> int | None:
        """Returns the oldest descriptor received and not yet taken."""
        return self.fds.popleft() if self.fds else None

    def close(self) -> None:
        self.sock.close()

    def take(self) -> Frame | None:
        """Returns the next frame that has been read whole, None when there is none."""
        if len(self._buffer) < 4:
            return None
        (length,) = struct.unpack_from(">I", self._buffer)
        if length > MAX_FRAME_BYTES:
            raise FrameError(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        if len(self._buffer) < 4 + length:
            return None
        body = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        try:
            frame = json.loads(body)
        except (ValueError, RecursionError) as err:  # the latter is for what is nested too deep
            raise FrameError(f"a frame is not JSON: {err}") from err
        if not isinstance(frame, dict) or not isinstance(frame.get("op"), str):
            raise FrameError('a frame is not an object with an "op"')
        return frame

    def fill(self) -> bool:
        """Reads what is there, at least one byte. Returns False at the end of the stream."""
        fds = array.array("i")
        try:
            data, ancillary, _, _ = self.sock.recvmsg(
                1 << 16, socket.CMSG_LEN(_MAX_FDS * fds.itemsize)
            )
        except (ConnectionError, OSError):
            return False
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
            self.fds.append(fd)
        self._buffer += data
        return bool(data)
