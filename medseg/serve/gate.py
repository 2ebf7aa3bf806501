"""What every request passes before the pages: whose it is, how large it may be, what is counted."""

import time
from collections.abc import Collection

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .measures import Measures
from .names import name_in

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Gate:
    """Refuses strangers' names and large bodies, adds the headers of security, measures.

    A page of another site cannot use the server through its visitor's browser: such a request
    names that site as its origin, or, where that site's name was bent to this address (DNS
    rebinding), as its host.

    Args:
        app: what lies behind.
        hosts: names by which it may be called; None for any.
        most: bytes of a body.
        measures: are kept up.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str] | None, most: int, measures: Measures
    ) -> None:
        self.app, self.hosts, self.most, self.measures = app, hosts, most, measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        with self.measures.in_flight.track_inprogress():
            try:
                headers = Headers(scope=scope)
                refusal = self._stranger(headers) or self._too_large(headers)
                if refusal is None:
                    await self.app(scope, self._counted(receive), answer)
                else:
                    await refusal(scope, receive, answer)
            finally:
                self.measures.answered(scope["path"], status, time.perf_counter() - start)

    def _stranger(self, headers: Headers) -> JSONResponse | None:
        host = headers.get("host", "")
        name = name_in(host)
        if (host and not name) or (self.hosts is not None and name not in self.hosts):
            return _sentence(
                421,
                f"the server does not go by the name {(name or host)[:80]!r}: call it by its "
                "address, or start it with --allow_hosts NAME.",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower().partition("://")[2] != (host.lower() or None):
            return _sentence(403, "pages of other sites may not use this server.")
        return None

    def _too_large(self, headers: Headers) -> JSONResponse | None:
        length = headers.get("content-length", "0")
        return _sentence(413, self._most()) if int(length) > self.most else None

    def _counted(self, receive: Receive) -> Receive:
        """Ends a body that says no length, or a wrong one, where it grows too large."""
        seen = 0

        async def counting() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise HTTPException(413, self._most())
            return message

        return counting

    def _most(self) -> str:
        return (
            f"the upload is too large, {self.most / 1e6:g} MB are the most here: send a smaller "
            "file, or use medseg predict."
        )


def _sentence(status: int, words: str) -> JSONResponse:
    return JSONResponse({"error": words}, status)
