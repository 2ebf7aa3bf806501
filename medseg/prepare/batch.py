"""What `--batch auto` takes: on a GPU what its memory holds, on a CPU a rule."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from ..config import TrainConfig
from ..data import Table
from ..losses import build_loss

_CPU_PIXELS = 8 * 128 * 128  # in a step: more does not go faster on a CPU
_MOST = 64  # images: larger batches learn less from as many passes
_ROOM = 0.8  # of the free memory of a GPU
_LEAST_STEPS = 4  # of an epoch


def choose_batch(config: TrainConfig, fabric: Fabric, network: nn.Module, table: Table) -> int:
    """Images a step in each process: a power of two, 2 at least, the same in every process.

    On a CPU as many as have, together, the pixels of 8 images of 128x128, up to 8. On a GPU as many
    as fit into four fifths of its free memory, up to 64: from the memory that training steps of 2
    and of 4 images take, proven by one of that many. Never so many that an epoch has fewer than
    four steps.

    Args:
        config: the settings; patches are counted.
        fabric: launched.
        network: on its device; left as it is.
        table: the data.
    """
    of_each = config.patches if isinstance(config.patches, int) else 1
    images = len(table.part("train")) * of_each // fabric.world_size
    most = max(2, _power_of_two(min(_MOST, images // _LEAST_STEPS)))
    if fabric.device.type != "cuda":
        return max(2, _power_of_two(min(most, 8, _CPU_PIXELS // config.size**2)))
    free, _ = torch.cuda.mem_get_info(fabric.device)
    room = free + torch.cuda.memory_reserved(fabric.device)
    trial = _Trial(config, fabric, network, table)
    batch = largest_batch(trial.peak, int(_ROOM * room), most)
    return min(_everywhere(batch, fabric))


def largest_batch(peak: Callable[[int], int], room: int, most: int) -> int:
    """The largest power of two, 2..``most``, whose step takes no more than ``room`` bytes.

    Args:
        peak: bytes that a step of so many images takes; may raise torch.OutOfMemoryError.
        room: bytes there are.
        most: a power of two.

    Raises:
        torch.OutOfMemoryError: not even 2 images fit.
    """
    two = peak(2)
    try:
        each = max(1, (peak(4) - two) // 2)
    except torch.OutOfMemoryError:
        return 2
    batch = max(2, _power_of_two(min(most, 2 + (room - two) // each)))
    while batch > 4:
        try:
            if peak(batch) <= room:
                break
        except torch.OutOfMemoryError:
            pass
        batch //= 2
    return batch


class _Trial:
    """Training steps of a copy of the network on blank images."""

    def __init__(
        self, config: TrainConfig, fabric: Fabric, network: nn.Module, table: Table
    ) -> None:
        self.fabric, self.network = fabric, copy.deepcopy(network).train()
        self.shape = (table.channels, config.size, config.size)
        self.loss = build_loss(config.loss, len(table.names))
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        self.fixed = 3 * weights  # of the optimizer and of averaged weights

    def peak(self, batch: int) -> int:
        """Bytes of a step of so many images, all that lives meanwhile included."""
        device = self.fabric.device
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            image = torch.rand(batch, *self.shape, device=device)
            target = torch.zeros(batch, *self.shape[1:], dtype=torch.int64, device=device)
            with self.fabric.autocast():
                output: Any = self.network(image)
            self.loss(output, target).backward()
            return torch.cuda.max_memory_reserved(device) + self.fixed
        finally:
            self.network.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()


def _everywhere(batch: int, fabric: Fabric) -> list[int]:
    if fabric.world_size == 1:
        return [batch]
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, batch)
    return found


def _power_of_two(number: int) -> int:
    """The largest that is no larger; 1 for less."""
    return 1 << max(0, number.bit_length() - 1) if number > 0 else 1
