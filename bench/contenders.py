"""What a case is measured against: eager, torch.compile, every backend that runs, two copies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import DTYPES, Case
from medseg.kernels import eca_attention, triplet_attention
from medseg.kernels._backend import BACKENDS, why_not

Call = Callable[..., Tensor]


@dataclass
class Setup:
    """The tensors of a case and a forward for every contender."""

    x: Tensor
    cotangent: Tensor
    params: list[Tensor]
    forwards: dict[str, Call]

    def steps(self, case: Case) -> dict[str, Callable[[], Any]]:
        """What is timed: two yardsticks, then every contender."""
        kept = torch.empty_like(self.x)
        found: dict[str, Callable[[], Any]] = {
            "copy_": lambda: kept.copy_(self.x),
            "clone": self.x.clone,
        }
        for name, forward in self.forwards.items():
            found[name] = self.step(case, forward)
        return found

    def step(self, case: Case, forward: Call) -> Callable[[], Any]:
        """One inference, or forward and backward to the input and every parameter."""
        if case.step == "inference":
            return torch.no_grad()(lambda: forward(self.x, *self.params))
        leaves = [t.detach().requires_grad_() for t in (self.x, *self.params)]
        return lambda: torch.autograd.grad(forward(*leaves), leaves, self.cotangent)


def device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare(case: Case, compiled: bool) -> Setup:
    """Builds a case, with `torch.compile` of the reference beside it if asked."""
    torch.manual_seed(0)
    layout = torch.channels_last if case.layout == "channels_last" else torch.contiguous_format
    x = torch.randn(case.shape).to(device(), DTYPES[case.dtype]).contiguous(memory_format=layout)
    forward, params = {"eca": _eca, "triplet": _triplet}[case.op](case)
    forwards: dict[str, Call] = {"eager": forward("reference")}
    if compiled:
        torch._dynamo.reset()
        forwards["compile"] = torch.compile(forward("reference"), dynamic=False)
    for backend in BACKENDS[:-1]:
        if why_not(backend, case.op, device(), x.dtype) is None:
            forwards[backend] = forward(backend)
    return Setup(x, torch.randn_like(x), [p.to(device()) for p in params], forwards)


def _eca(case: Case) -> tuple[Callable[[str], Call], list[Tensor]]:
    def forward(backend: str) -> Call:
        return lambda x, weight: eca_attention(x, weight, backend=backend)

    return forward, [torch.randn(3)]


def _triplet(case: Case) -> tuple[Callable[[str], Call], list[Tensor]]:
    running = [torch.zeros(3, device=device()), torch.ones(3, device=device())]
    training = case.step != "inference"

    def forward(backend: str) -> Call:
        return lambda x, *learned: triplet_attention(
            x, *learned, *running, training=training, backend=backend
        )

    return forward, [torch.randn(3, 2, 7, 7) / 7, torch.rand(3) + 0.5, torch.randn(3)]
