"""The sending side of one client connection: how it ends, and for how long it may wait for the client.

- Closing a socket that still has unread bytes makes the kernel send a reset, and a reset can take away the last answer
  before the client has read it: a 413 would look like a broken network. So while the client may still be sending we say
  that we are done, throw away what comes, and close when it closes or when its time is up.
- A client that reads nothing keeps what is waiting for it in our memory, and an upstream call open. If nothing of that
  moves for long enough, the connection is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from proxy.http.framing import Limits


class Outgoing(asyncio.Transport):
    """A transport as uvicorn's parts see it. `is_sending()` says whether more may come from the client."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        limits: Limits,
        is_sending: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.write = transport.write  # type: ignore[method-assign]  # every chunk of every stream goes this way
        self._transport = transport
        self._limits = limits
        self._is_sending = is_sending
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._ending = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._ending or self._transport.is_closing()

    def close(self) -> None:
        """End after everything that was written; a second call waits for the client no longer."""
        if self._ending or self._transport.is_closing():
            self._transport.close()
            return
        self._ending = True
        self._stop_watching()
        if self._is_sending():
            self._transport.resume_reading()
            self._transport.write_eof()
            self._timer = self._loop.call_later(self._limits.linger, self._give_up)
        else:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._watch()

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def has_sent_all(self) -> bool:
        """Whether nothing waits for the client, as far as we can see; the kernel may have some more."""
        return not self._transport.get_write_buffer_size()

    def pause_writing(self) -> None:
        """More is waiting for the client than it should."""
        if not self._ending:
            self._watch()

    def resume_writing(self) -> None:
        if not self._ending:
            self._stop_watching()

    def lost(self) -> None:
        """The connection is gone."""
        self._stop_watching()
        self._ending = True
        self._is_sending = lambda: False  # lets go of the protocol, which holds us

    def _give_up(self) -> None:
        if self._transport.get_write_buffer_size():
            self._watch()  # it sends no more, but it may still be reading
        else:
            self._transport.abort()

    def _watch(self) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._limits.write_stall, self._look)

    def _look(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent < self._unsent:
            self._watch()
        else:
            self._transport.abort()

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
