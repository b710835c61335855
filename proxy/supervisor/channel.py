"""What the supervisor and a worker tell each other, and the supervisor's end of the socket between them.

A message is its length in four bytes and its MessagePack. Sender and reader are the same program, so it has no version.
"""

from __future__ import annotations

import socket

import msgspec


class Reload(msgspec.Struct, frozen=True, tag=True):
    """To a worker: from now on serve what these changes make of that with which it began. They hold secrets, so the
    repr shows nothing of them."""

    generation: int
    changes: bytes

    def __repr__(self) -> str:
        return f"Reload({self.generation})"


class Drain(msgspec.Struct, frozen=True, tag=True):
    """To a worker: take nothing new, and end when what is open has ended or the drain is over."""


class End(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the drain is over."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it serves."""

    generation: int


class Applied(msgspec.Struct, frozen=True, tag=True):
    """From a worker: requests that begin now are served by this generation."""

    generation: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it could not apply this generation, though the supervisor found nothing wrong with it."""

    generation: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker: why it ends. Text of ours, fit to be seen."""

    reason: str


Order = Reload | Drain | End
Report = Ready | Applied | Refused | Failed

LENGTH = 4
"""Bytes of a message's length."""

_AT_ONCE = 1 << 16


_encode = msgspec.msgpack.Encoder().encode
_report = msgspec.msgpack.Decoder(Report).decode
_order = msgspec.msgpack.Decoder(Order).decode


def packed(message: Order | Report) -> bytes:
    data = _encode(message)
    return len(data).to_bytes(LENGTH, "big") + data


def order(data: bytes) -> Order:
    """An order without its length."""
    read: Order = _order(data)
    return read


class Channel:
    """The supervisor's end. Nothing here waits for the worker, which may be stopped or busy: what does not fit into the
    socket waits, and of each kind of message only the newest."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._leaving = b""
        self._waiting: dict[type[Order], Order] = {}
        self._arrived = b""
        self.ended = False

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    @property
    def pending(self) -> bool:
        """Whether `flush` has something to do as soon as the socket can be written to."""
        return bool(self._leaving or self._waiting)

    def send(self, message: Order) -> None:
        self._waiting[type(message)] = message
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes."""
        try:
            while self.pending:
                if not self._leaving:
                    self._leaving = packed(self._waiting.pop(next(iter(self._waiting))))
                self._leaving = self._leaving[self._sock.send(self._leaving) :]
        except BlockingIOError:
            return
        except OSError:  # the worker is gone, and what was to be said to it
            self._leaving = b""
            self._waiting.clear()

    def receive(self) -> list[Report]:
        """What has come. `ended` is set once nothing more can come."""
        try:
            while piece := self._sock.recv(_AT_ONCE):
                self._arrived += piece
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        return list(self._whole())

    def _whole(self) -> list[Report]:
        reports = []
        while len(self._arrived) >= LENGTH:
            size = int.from_bytes(self._arrived[:LENGTH], "big")
            end = LENGTH + size
            if len(self._arrived) < end:
                break
            reports.append(_report(self._arrived[LENGTH:end]))
            self._arrived = self._arrived[end:]
        return reports
