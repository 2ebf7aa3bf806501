"""One client's connection, and how long it may stay open without asking anything."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """Closes where the head of a request is not whole in ``timeout_keep_alive`` seconds.

    uvicorn's own timer begins after the first answer and ends at the next byte: clients that send
    nothing, or a head without end, would keep their places until nobody else has one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
        """Begins to wait for the first head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self._waiting.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begins to wait for the next head."""
        self._waiting.cancel()
        self._await_head()
        super().on_response_complete()  # which may find that head

    def _await_head(self) -> None:
        self._waiting = self.loop.call_later(self.timeout_keep_alive, self._end)

    def _end(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
