"""Which images each step takes, in each of several processes."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EpochBatches(Sampler[list[int]]):
    """The batches of one process: an order drawn from seed and epoch, cut into equal shares.

    The processes together take at each step the images that one process with the batches of all
    would take. Images that fill no step any more wait for another epoch's order.

    Args:
        count: images of the set, at least as many as processes.
        batch: images a step in each process; fewer where there are not so many.
        seed: of the order.
        rank, processes: which of how many.
    """

    def __init__(
        self, count: int, batch: int, seed: int, rank: int = 0, processes: int = 1
    ) -> None:
        if count < processes:
            raise ValueError(f"count must be at least {processes}, got {count}")
        self.count, self.seed, self.rank, self.processes = count, seed, rank, processes
        self.batch = min(batch, count // processes)
        self.epoch = self.done = 0

    def start(self, epoch: int, done: int = 0) -> None:
        """Sets the epoch that is iterated over next, and how many steps of it to leave out."""
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self.count // (self.batch * self.processes)

    def __iter__(self) -> Iterator[list[int]]:
        draw = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.count, generator=draw).tolist()
        for step in range(self.done, len(self)):
            start = (step * self.processes + self.rank) * self.batch
            yield order[start : start + self.batch]
