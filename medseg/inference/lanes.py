"""Many images, several threads: each takes a batch of them from the file to the result.

On a CPU each thread runs the network on its share of the cores. So they do not wait for each other
at every operator, as the threads of one network must, and reading and writing find the cores busy
but never blocked. On a GPU, which runs one batch at a time, the others read and write meanwhile.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from .tiles import Rows, Slab

if TYPE_CHECKING:
    from .predictor import Predictor

LANES = 4  # threads, which need the memory of as many batches
_SMALL = 1 << 22  # pixels of an image, above which it has all cores and the memory for itself
_MOST = 1 << 24  # pixels that all threads together begin with at a time

Image = TypeVar("Image", bound=Rows)
Result = TypeVar("Result")
Work = Callable[[Image, Iterator[Slab]], Result]
Jobs = list[tuple[Image, Future[Result]]]


def in_lanes(
    predictor: "Predictor", images: Iterable[Image], work: Work[Image, Result]
) -> Generator[tuple[Image, Future[Result]]]:
    """What `Predictor.stream` does."""
    cores, on_cpu = torch.get_num_threads(), predictor.trained.device.type == "cpu"
    lanes = min(LANES, cores) if on_cpu else LANES
    share = cores // lanes if on_cpu else 1
    waiting: deque[tuple[Jobs[Image, Result], Future[None]]] = deque()
    predictor.forward  # noqa: B018 - made here, by one thread
    pool = ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, (share,))
    try:
        for group, alone in _groups(images, predictor.batch, lanes):
            jobs: Jobs[Image, Result] = [(image, Future()) for image in group]
            while waiting and (alone or len(waiting) == 2 * lanes):
                yield from _finished(*waiting.popleft())
            if alone:
                _run(predictor, jobs, work)
                yield from jobs
            else:
                waiting.append((jobs, pool.submit(_run, predictor, jobs, work)))
        while waiting:
            yield from _finished(*waiting.popleft())
        pool.shutdown()
    finally:
        pool.shutdown(cancel_futures=True)  # of a stream that is closed before its end
        torch.set_num_threads(cores)  # which the threads have set for those that come after


def _finished(jobs: Jobs[Image, Result], all_done: Future[None]) -> Jobs[Image, Result]:
    """The images of one thread, all at once: to wake up for each would cost the others time."""
    all_done.result()
    return jobs


def _groups(images: Iterable[Image], batch: int, lanes: int) -> Iterator[tuple[list[Image], bool]]:
    """Images for one thread after the other; and whether they are to be done alone."""
    held: list[Image] = []
    pixels = 0
    for image in images:
        size = image.height * image.width
        if size > _SMALL or len(held) == lanes * batch or pixels + size > _MOST:
            yield from _shares(held, lanes)
            held, pixels = [], 0
        if size > _SMALL:
            yield [image], True
        else:
            held.append(image)
            pixels += size
    yield from _shares(held, lanes)


def _shares(held: list[Image], lanes: int) -> Iterator[tuple[list[Image], bool]]:
    each = -(-len(held) // lanes)
    for start in range(0, len(held), max(1, each)):
        yield held[start : start + each], len(held) == 1


def _run(predictor: "Predictor", jobs: Jobs[Image, Result], work: Work[Image, Result]) -> None:
    """Settles every future: what one image raises is its own, what the network raises is all's."""
    try:
        squares = [_square(predictor, image, future) for image, future in jobs]
        seen = [square for square in squares if square is not None]
        logits = iter(predictor.forward(torch.stack(seen)) if seen else ())
        for (image, future), square in zip(jobs, squares, strict=True):
            if future.done():
                continue
            if square is None:
                slabs = predictor.slabs(image)
            else:
                slabs = predictor.view.slabs(next(logits)[None], image.height, image.width)
            _settle(future, work, image, slabs)
    except BaseException as error:
        for _, future in jobs:
            if not future.done():
                future.set_exception(error)


def _square(predictor: "Predictor", image: Rows, future: Future[Any]) -> Tensor | None:
    """The square of an image that is seen whole."""
    try:
        if predictor.view.holds(image.height, image.width):
            return predictor.view.square(image.rows(0, image.height))
    except Exception as error:
        future.set_exception(error)
    return None


def _settle(
    future: Future[Result], work: Work[Image, Result], image: Image, slabs: Iterator[Slab]
) -> None:
    try:
        future.set_result(work(image, slabs))
    except Exception as error:
        future.set_exception(error)
