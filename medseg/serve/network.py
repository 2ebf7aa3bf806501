"""The network behind a queue: one thread shows it the images, in the order in which they came."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import HTTPException

from ..inference import Predictor

Result = TypeVar("Result")
GONE = 499  # the client left before its answer; nobody reads this status but the metrics


class Network:
    """Takes in so many requests and no more, and works on them one by one.

    Args:
        predictor: does the work; only this thread calls it.
        most: requests that are taken in at once.
    """

    def __init__(self, predictor: Predictor, most: int) -> None:
        self.predictor, self.most = predictor, most
        self.taken = 0
        self._pool = ThreadPoolExecutor(1, "network")
        self._seconds = 0.1  # of one image, smoothed

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, to be had before anything of the request is read.

        Raises:
            HTTPException: 503, all are taken.
        """
        if self.taken >= self.most:
            wait = min(60, max(1, round(self._seconds * self.taken)))
            words = f"{self.most} images are waiting already: ask again in {wait} seconds."
            raise HTTPException(503, words, {"Retry-After": str(wait)})
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[[], Result], gone: Awaitable[Any]) -> Result:
        """What ``work`` returns, or raises, on the network's thread.

        Args:
            work: a call.
            gone: ends when nobody wants the result any more; work not begun is then left.

        Raises:
            HTTPException: 499, nobody wants it.
        """
        future = self._pool.submit(self._timed, work)
        job = asyncio.wrap_future(future)
        leaving = asyncio.ensure_future(gone)
        try:
            await asyncio.wait((job, leaving), return_when=asyncio.FIRST_COMPLETED)
            if future.cancel():
                raise HTTPException(GONE, "nobody waits for the answer any more.")
            return await job
        finally:
            leaving.cancel()

    def close(self) -> None:
        """Ends the thread, once it has done what it is at."""
        self._pool.shutdown(cancel_futures=True)

    def _timed(self, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self._seconds += 0.2 * (time.perf_counter() - start - self._seconds)
