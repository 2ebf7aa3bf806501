"""The middle of DRRMSAN's attention gate in plain PyTorch."""

from torch import Tensor


def gate_reference(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(A + B + C, A * B * C) with A = relu(a), B = relu(b), C = relu(c).

    Args:
        a, b, c: maps (N, C, H, W) before their activation, any float dtype, any device.

    Source: Pal and Mj, "Improving multi-scale attention networks", Imaging Science Journal 2023.
    """
    a, b, c = a.relu(), b.relu(), c.relu()
    return a + b + c, a * b * c
