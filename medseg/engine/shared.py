"""What several processes do together, so that they count as one with a larger batch."""

from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..losses import Loss


def shared_loss(loss: Loss, fabric: Fabric) -> Loss:
    """The loss of the batches of all processes together, in each of them.

    A mean of the losses of the parts is something else: the Dice of a batch, a mean over known
    pixels, the worst pixels of a batch are of the whole.
    """
    if fabric.world_size == 1:
        return loss

    def call(output: Any, target: Tensor) -> Tensor:
        logits, aux = output if isinstance(output, tuple) else (output, ())
        whole = _gather(logits, fabric), tuple(_gather(each, fabric) for each in aux)
        return loss(whole, _gather(target, fabric))

    return call


def same_buffers(fabric: Fabric, *networks: nn.Module) -> None:
    """Gives all processes the running statistics of the first, as DDP does before a step."""
    if fabric.world_size > 1:
        for network in networks:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


def _gather(x: Tensor, fabric: Fabric) -> Tensor:
    return _Gather.apply(x, fabric.global_rank, fabric.world_size)  # pyright: ignore


class _Gather(torch.autograd.Function):
    """The rows of all processes; each has the whole loss, so backward needs none from others."""

    @staticmethod
    def forward(ctx, x, rank, processes):  # noqa: ANN001
        ctx.rank, ctx.processes = rank, processes
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(processes)]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):  # noqa: ANN001
        own = grad.chunk(ctx.processes)[ctx.rank]
        return own * ctx.processes, None, None  # DDP divides the sum over processes by their number
