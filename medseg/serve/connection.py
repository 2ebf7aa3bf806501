"""One client's connection, and how long it may stay open without asking or taking anything."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

_UNREAD = 30  # seconds in which a client must take the part of an answer that was sent: 256 kB


class Connection(H11Protocol):
    """Closes where the head of a request is not whole in ``timeout_keep_alive`` seconds.

    uvicorn's own timer begins after the first answer and ends at the next byte: clients that send
    nothing, or a head without end, would keep their places until nobody else has one. Those that do
    not read their answer would, too, and keep its file.
    """

    _waiting: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        """Begins to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends all waiting."""
        _cancel(self._waiting)
        _cancel(self._unread)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begins to wait for the client to read."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """It has read; of a connection that is closed it must read the rest, too."""
        _cancel(self._unread)
        if self.transport.is_closing():
            self._await_reader()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Begins to wait for the next head."""
        self._await_head()
        super().on_response_complete()  # which may find that head

    def _await_head(self) -> None:
        _cancel(self._waiting)
        self._waiting = self.loop.call_later(self.timeout_keep_alive, self._end)

    def _await_reader(self) -> None:
        _cancel(self._unread)
        self._unread = self.loop.call_later(_UNREAD, self.transport.abort)

    def _end(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()  # once the rest of the answer was read
            self._await_reader()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
