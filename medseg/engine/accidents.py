"""What can befall a run, as one sentence that names the flag to change."""

import contextlib
import re
from collections.abc import Iterator

from ..config import TrainConfig
from ..errors import UserError
from ..inference import full_memory

_TERMINATED = "is killed by signal: Terminated"  # PyTorch's words on a process that reads images
_LOST = "Connection closed by peer|Connection reset by peer|Broken pipe|NCCL|Gloo|gloo|socket"


class Diverged(UserError):
    """The loss is no longer a finite number; every process finds so in the same step."""


@contextlib.contextmanager
def accidents(config: TrainConfig) -> Iterator[None]:
    """Turns full memory, dead workers and lost processes inside the block into a UserError."""
    try:
        yield
    except MemoryError as error:
        raise UserError(str(_too_large(config, error)), 3) from None
    except UserError as error:
        if "DataLoader worker" not in str(error):
            raise
        told = str(error).strip().splitlines()[-1]  # behind the worker's traceback
        raise UserError(told.partition("UserError: ")[2], 3) from None
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if _TERMINATED in str(error):  # as the whole run is: the readers were only the first
            raise KeyboardInterrupt from None
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            first = str(error).strip().splitlines()[0].rstrip(".")
            raise UserError(
                f"--compile true: PyTorch cannot compile the network here ({first}); leave it out."
            ) from error
        sentence = _too_large(config, error) or _sentence(config, str(error))
        if sentence is None:
            raise
        raise UserError(sentence, 3) from error


def _sentence(config: TrainConfig, text: str) -> str | None:
    worker = re.search(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.*?)[.\n]", text + "\n")
    if worker:
        return (
            f"--workers {config.workers}: a process that reads images {worker[1]}, most often "
            "because memory or /dev/shm is full; take fewer, 0 reads them in the run itself."
        )
    if re.search(_LOST, text):
        return (
            f"--devices {config.devices}: another process of this run has ended or cannot be "
            f"reached ({text.splitlines()[0].strip().rstrip('.')}); its own message says why."
        )
    return None


def _too_large(config: TrainConfig, error: Exception) -> str | None:
    if (where := full_memory(error)) is None:
        return None
    return (
        f"--batch {config.batch}, --size {config.size}: they do not fit into the memory of {where};"
        " make one smaller. A smaller --batch with --accumulate takes the same number of images a "
        "step."
    )
