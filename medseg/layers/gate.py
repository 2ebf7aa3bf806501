"""DRRMSAN's attention gates and its pooling of images, as modules."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.kernels import attention_gate
from medseg.kernels._backend import has_open_sizes

SMALLEST = {"msan1": 12, "msan2": 4, "msan3": 2}  # variant: the least H and W


class AttentionGate(nn.Module):
    """Gates a skip connection by what decoder and encoder see at once.

    "msan1": from decoder map and skip, each by a branch of its own, three maps of growing field of
    view are joined by sum and product (`attention_gate`) and pooled over 12 x 12; the sigmoid of
    all four products is brought back to size and convolved. "msan2": four stacked convolutions of
    the decoder map, pooled and summed, gate the skip. "msan3": such stacks of both, multiplied
    pair by pair, gate the decoder map.

    Args:
        channels: width of both maps and of the output.
        variant: "msan1", "msan2" or "msan3".
        bounded: takes log(1 + score) to the sigmoid instead of the score, whose degree is up to 8:
            the gate is (1 + score) / (2 + score) and keeps a gradient where the plain one is 1.

    Raises:
        ValueError: ``variant`` is unknown or ``channels`` below 1; in forward, a map is odd or too
            small, or the two differ in shape.

    Source: Pal and Mj, "Improving multi-scale attention networks", Imaging Science Journal 2023.
    """

    def __init__(self, channels: int, variant: str = "msan1", bounded: bool = False) -> None:
        super().__init__()
        if variant not in SMALLEST:
            raise ValueError(f"variant must be one of {', '.join(SMALLEST)}, got {variant!r}")
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels, self.variant, self.bounded = channels, variant, bounded
        if variant == "msan1":
            self.dec, self.skip = _Branch(channels), _Branch(channels)
            self.out = _conv(channels, 3)
            return
        for side in ("dec",) if variant == "msan2" else ("dec", "skip"):
            for i in range(1, 5):
                self.add_module(f"{side}{i}", _conv(channels, 3))

    def forward(self, d: Tensor, k: Tensor) -> Tensor:
        """d, the decoder's, and k, the skip: (N, C, H, W), H and W even; returns that shape."""
        if d.dim() != 4 or d.shape[1] != self.channels:
            raise ValueError(f"d must be (N, {self.channels}, H, W), got {tuple(d.shape)}")
        if k.shape != d.shape:
            raise ValueError(f"k must be {tuple(d.shape)} like d, got {tuple(k.shape)}")
        least = SMALLEST[self.variant]
        if any(size < least or size % 2 for size in d.shape[2:]):
            raise ValueError(
                f"{self.variant} needs H and W even and at least {least}, got {tuple(d.shape)}"
            )
        if self.variant == "msan1":
            gate = self._sigmoid(self.dec(d) * self.skip(k), d)
            return self.out(F.pad(F.interpolate(gate, scale_factor=2), (5, 5, 5, 5)))
        if self.variant == "msan2":
            score = sum(F.max_pool2d(_wide(u), 3, 2) for u in self._chain("dec", d))
            gate = F.interpolate(self._sigmoid(score, d), scale_factor=2)  # pyright: ignore
            return F.pad(gate, (1, 1, 1, 1)) * k
        pairs = zip(self._chain("dec", d), self._chain("skip", k), strict=True)
        score = sum(_wide(F.max_pool2d(u, 2)) * _wide(F.max_pool2d(v, 2)) for u, v in pairs)
        return F.interpolate(self._sigmoid(score, d), scale_factor=2) * d  # pyright: ignore

    def _chain(self, side: str, x: Tensor) -> list[Tensor]:
        found = []
        for i in range(1, 5):
            x = self.get_submodule(f"{side}{i}")(x).relu()
            found.append(x)
        return found

    def _sigmoid(self, score: Tensor, like: Tensor) -> Tensor:
        return (score.log1p() if self.bounded else score).sigmoid().to(like.dtype)

    def extra_repr(self) -> str:
        return f"variant={self.variant!r}, bounded={self.bounded}"


class _Branch(nn.Module):
    """max-pool of relu(conv(A + B + C)) times max-pool of relu(conv(A * B * C)), in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.joint = _conv(channels, 2), _conv(channels, 2)
        self.c3 = _conv(channels, 3)
        self.c5a, self.c5b = _conv(channels, 3), _conv(channels, 3)
        self.c7a, self.c7b, self.c7c = (_conv(channels, 3) for _ in "abc")
        self.upper, self.lower = _conv(channels, 2), _conv(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.joint(self.theta(x))
        a, b, c = self.c3(x), self.c5b(self.c5a(x)), self.c7c(self.c7b(self.c7a(x)))
        total, product = attention_gate(a, b, c)
        return _pooled_relu(self.upper(total)) * _pooled_relu(self.lower(product))


class MinPool(nn.Module):
    """2 x 2 minimum over the entries that are not zero; 0 where all four are.

    The gradient goes to the entry that was taken, the first of equals.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); returns (N, C, H // 2, W // 2)."""
        zero = x == 0
        least = -F.max_pool2d(torch.where(zero, -torch.inf, -x), 2)
        found = F.max_pool2d(torch.where(zero, 0.0, 1.0), 2) > 0
        return torch.where(found, least, 0.0)


class _Corner(nn.Conv2d):
    """2 x 2, zeros at right and bottom; Conv2d's "same" pads so too, but warns."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)))


def _conv(channels: int, size: int) -> nn.Conv2d:
    """Keeps the size; starts as in Keras, by Glorot's rule and with no bias."""
    conv = (
        _Corner(channels, channels, 2)
        if size == 2
        else nn.Conv2d(channels, channels, size, padding=size // 2)
    )
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return conv


def _pooled_relu(x: Tensor) -> Tensor:
    """maxpool(relu(x)) of window 12, stride 2, exactly: ReLU last, 2 x 2 first, then 6 + 6."""
    differentiated = x.requires_grad and torch.is_grad_enabled()
    if x.device.type == "cpu" and not differentiated and not has_open_sizes(x):
        return _wide(_six(_six(_halved(x), 2), 3)).relu()
    x = F.max_pool2d(F.max_pool2d(F.max_pool2d(x, 2), (6, 1), 1), (1, 6), 1)
    return _wide(x).relu()


def _halved(x: Tensor) -> Tensor:
    """max_pool2d(x, 2), four times as fast on a CPU, whose pooling notes where each maximum was."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    rows = torch.maximum(x[:, :, 0:height:2, :width], x[:, :, 1:height:2, :width])
    return torch.maximum(rows[..., 0::2], rows[..., 1::2])


def _six(x: Tensor, dim: int) -> Tensor:
    """Maximum of windows of 6 along ``dim``, stride 1: by pairs, pairs of those, and a third."""
    count = x.shape[dim] - 5
    two = torch.maximum(x.narrow(dim, 0, count + 4), x.narrow(dim, 1, count + 4))
    four = torch.maximum(two.narrow(dim, 0, count), two.narrow(dim, 2, count))
    return torch.maximum(four, two.narrow(dim, 4, count))


def _wide(x: Tensor) -> Tensor:
    """Float32 at least: the products that the gates are made of leave the range of float16."""
    return x if x.dtype is torch.float64 else x.float()
