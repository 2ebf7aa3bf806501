"""A network called on squares."""

import threading
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..data.normalize import normalize

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """Runs squares through a network, under its precision and with flips.

    Args:
        network: in eval mode.
        precision: "fp32", "bf16" or "fp16".
        flips: average the probabilities over the square and its three mirror images.
        normalize: what is taken from the squares and what they are divided by, as `normalize` says.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: str = "fp32",
        flips: bool = False,
        normalize: str = "none",
    ) -> None:
        self.network = network
        self.normalize = normalize
        self.device = next(network.parameters()).device
        self.dtype = PRECISIONS[precision]
        # several threads have the memory of one pass on a GPU, which does one at a time anyway
        self._turn = threading.Lock() if self.device.type == "cuda" else nullcontext()
        self.flips: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3)) if flips else ((),)

    @torch.inference_mode()
    def __call__(self, squares: Tensor) -> Tensor:
        """float32 (N, C, size, size) -> float32 logits (N, K, size, size).

        With flips they are log probabilities, whose softmax is the average.
        """
        with self._turn:
            return self._logits(squares)

    def _logits(self, squares: Tensor) -> Tensor:
        squares = normalize(squares.to(self.device, non_blocking=True), self.normalize)
        found = []
        for dims in self.flips:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                logits = self.network(squares.flip(dims) if dims else squares)
            found.append(logits.float().flip(dims) if dims else logits.float())
        if len(found) == 1:
            return found[0]
        return torch.stack([each.log_softmax(1) for each in found]).logsumexp(0)
