"""Triplet attention as a module."""

import torch
from torch import Tensor, nn

from medseg.kernels import triplet_apply, triplet_attention, triplet_pool


class TripletAttention(nn.Module):
    """Averages three gated copies of a map; each gate looks along another pair of axes.

    ``gate_h`` pools over H (plane C x W), ``gate_w`` over W (plane H x C), ``gate_c`` over C
    (plane H x W). Whether statistics are taken from the batch is decided by the batch norms of the
    gates, so they can be frozen apart from the rest.

    The fused op needs plain batch norms with running statistics that agree in momentum, eps and
    mode; ``SyncBatchNorm`` is one in eval mode. With any other norm in a gate (``SyncBatchNorm`` in
    training, ``momentum=None``, ``track_running_stats=False``) the gates run as the modules they
    are, between ``triplet_pool`` and ``triplet_apply`` of ``medseg.kernels``.

    Args:
        kernel_size: size of the square convolutions of the gates, odd.
        spatial: whether ``gate_c`` is there.

    Raises:
        ValueError: ``kernel_size`` is even or below 1.

    Attributes:
        backend: of the fused ops, as their argument; None takes the fastest that can run.

    Source: Misra et al., "Rotate to Attend", WACV 2021, arXiv:2010.03045.
    """

    backend: str | None = None

    def __init__(self, kernel_size: int = 7, spatial: bool = True) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {kernel_size}")
        self.gate_h = ZPoolGate(kernel_size)
        self.gate_w = ZPoolGate(kernel_size)
        self.gate_c = ZPoolGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); returns the same shape."""
        norms = [gate.bn for gate in self._gates()]
        return self._fused(x, norms) if _can_stack(norms) else self._by_modules(x)

    def _gates(self) -> list["ZPoolGate"]:
        gates = [self.gate_h, self.gate_w]
        return gates if self.gate_c is None else [*gates, self.gate_c]

    def _fused(self, x: Tensor, norms: list[nn.BatchNorm2d]) -> Tensor:
        first = norms[0]
        running = [n.running_mean for n in norms] + [n.running_var for n in norms]
        stats = torch.cat(running)  # pyright: ignore[reportArgumentType]  # a copy: (2 G,)
        mean, var = stats.chunk(2)
        out = triplet_attention(
            x,
            torch.cat([gate.conv.weight for gate in self._gates()]),
            torch.cat([n.weight for n in norms]),
            torch.cat([n.bias for n in norms]),
            mean,
            var,
            training=first.training,
            momentum=first.momentum,  # pyright: ignore[reportArgumentType]
            eps=first.eps,
            backend=self.backend,
        )
        if first.training:
            _write_back(norms, running, stats)
        return out

    def _by_modules(self, x: Tensor) -> Tensor:
        """Fused pooling, the gates as the modules they are, fused application."""
        gates = self._gates()
        planes = triplet_pool(x, spatial=len(gates) == 3, backend=self.backend)
        maps = [gate.gate(pooled) for gate, pooled in zip(gates, planes, strict=True)]
        return triplet_apply(x, maps, backend=self.backend)


class ZPoolGate(nn.Module):
    """One gate: x * sigmoid(bn(conv([max over axis 1, mean over axis 1])))."""

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, A, R, S), pooled over A; returns the same shape."""
        pooled = torch.stack((x.max(1).values, x.mean(1)), 1)  # (N, 2, R, S)
        return x * self.gate(pooled).to(x.dtype)

    def gate(self, pooled: Tensor) -> Tensor:
        """pooled: (N, 2, R, S), maximum and mean; returns the gate (N, 1, R, S)."""
        return self.bn(self.conv(pooled.to(self.conv.weight.dtype))).sigmoid()


@torch.no_grad()
def _write_back(norms: list[nn.BatchNorm2d], running: list[Tensor | None], stats: Tensor) -> None:
    """Leaves the norms as ``nn.BatchNorm2d`` would; one call for all of them, not nine."""
    torch._foreach_copy_(running, stats.split(1))  # pyright: ignore
    torch._foreach_add_([n.num_batches_tracked for n in norms], 1)  # pyright: ignore


def _can_stack(norms: list[nn.BatchNorm2d]) -> bool:
    """Whether one call of the op can stand for these norms."""
    first = norms[0]
    plain = (nn.BatchNorm2d,) if first.training else (nn.BatchNorm2d, nn.SyncBatchNorm)
    return all(
        type(n) in plain
        and n.affine
        and n.running_mean is not None
        and n.momentum is not None
        and (n.momentum, n.eps, n.training) == (first.momentum, first.eps, first.training)
        for n in norms
    )
