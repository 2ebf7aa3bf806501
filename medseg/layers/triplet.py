"""Triplet attention as a module."""

import torch
from torch import Tensor, nn

from medseg.kernels import triplet_attention

# Of each gate: the axis of x that it pools, whether its plane (N, R, S) is what that leaves of x
# with two axes swapped, and where the axes of the gate (N, 1, R, S) belong in x.
_AXES = {
    "gate_h": (2, False, (0, 2, 1, 3)),
    "gate_w": (3, True, (0, 3, 2, 1)),
    "gate_c": (1, False, (0, 1, 2, 3)),
}


class TripletAttention(nn.Module):
    """Averages three gated copies of a map; each gate looks along another pair of axes.

    ``gate_h`` pools over H (plane C x W), ``gate_w`` over W (plane H x C), ``gate_c`` over C
    (plane H x W). Whether statistics are taken from the batch is decided by the batch norms of the
    gates, so they can be frozen apart from the rest.

    The fused op needs plain batch norms with running statistics that agree in momentum, eps and
    mode; ``SyncBatchNorm`` is one in eval mode. With any other norm in a gate (``SyncBatchNorm`` in
    training, ``momentum=None``, ``track_running_stats=False``) the map is pooled along its axes as
    it lies, the norms run as the modules they are, and the map is gated once by the mean of the
    gates, on every backend.

    Args:
        kernel_size: size of the square convolutions of the gates, odd.
        spatial: whether ``gate_c`` is there.

    Raises:
        ValueError: ``kernel_size`` is even or below 1.

    Attributes:
        backend: of the fused op, as its argument; None takes the fastest that can run.

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
        gates = [self.gate_h, self.gate_w]
        if self.gate_c is not None:
            gates.append(self.gate_c)
        norms = [gate.bn for gate in gates]
        if not _can_stack(norms):
            return self._by_modules(x)
        return self._fused(x, gates, norms)

    def _fused(self, x: Tensor, gates: list["ZPoolGate"], norms: list[nn.BatchNorm2d]) -> Tensor:
        first = norms[0]
        running = [n.running_mean for n in norms] + [n.running_var for n in norms]
        stats = torch.cat(running)  # pyright: ignore[reportArgumentType]  # a copy: (2 G,)
        mean, var = stats.chunk(2)
        out = triplet_attention(
            x,
            torch.cat([gate.conv.weight for gate in gates]),
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
        modules = {"gate_h": self.gate_h, "gate_w": self.gate_w, "gate_c": self.gate_c}
        gates = []
        for name, gate in modules.items():
            if gate is not None:
                axis, turned, back = _AXES[name]
                planes = torch.stack((x.max(axis).values, x.mean(axis)), 1)  # (N, 2, R, S)
                gates.append(gate.gate(planes.mT if turned else planes).permute(back))
        mean = sum(gates[1:], gates[0]) / len(gates)
        return x * mean.to(x.dtype)


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
