"""Full memory, as one sentence that names the flags to change."""

import contextlib
from collections.abc import Iterator

import torch

from ..errors import UserError

_FULL = (  # the words of PyTorch, OpenCV and onnxruntime
    "DefaultCPUAllocator",
    "not enough memory",
    "nsufficient memory",
    "Failed to allocate memory",
)


def full_memory(error: BaseException) -> str | None:
    """Which memory an error found full, in words; None where it says something else."""
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU"
    full = isinstance(error, MemoryError) or any(words in str(error) for words in _FULL)
    return "this machine" if full else None


@contextlib.contextmanager
def naming_flags(**flags: object) -> Iterator[None]:
    """Names the flags that decide how much memory the block takes.

    Args:
        **flags: with their values; None for those that were not given.

    Raises:
        UserError: memory was full.
    """
    try:
        yield
    except Exception as error:
        where = None if isinstance(error, UserError) else full_memory(error)
        if where is None:
            raise
        given = [f"--{name} {value}" for name, value in flags.items() if value is not None]
        raise UserError(
            f"{', '.join(given)}: the memory that this takes is more than {where} has free; take "
            "less.",
            3,
        ) from None
