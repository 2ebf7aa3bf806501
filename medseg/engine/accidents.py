"""What can befall a run, as one sentence that names the flag to change."""

import contextlib
from collections.abc import Iterator

import torch

from ..config import TrainConfig
from ..errors import UserError


@contextlib.contextmanager
def memory_guard(config: TrainConfig) -> Iterator[None]:
    """Turns a GPU's full memory into a UserError that says what to make smaller."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"--batch {config.batch}, --size {config.size}: they do not fit into the memory of the "
            "GPU; make one smaller.",
            code=3,
        ) from None
