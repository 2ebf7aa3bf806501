"""What a case is measured against: eager, torch.compile, every backend that runs, the peers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case
from bench.peers import PEERS, AbsentError
from bench.recipes import RECIPES, device, tensors
from medseg.kernels._backend import BACKENDS, ORDER, why_not

ABSENT: dict[str, str] = {}  # contenders that cannot run here, and why


@dataclass
class Contender:
    """A call with its tensors; `wanted` are those that get a gradient."""

    call: Callable[..., Any]
    inputs: list[Tensor]
    wanted: list[Tensor]

    def forward(self) -> tuple[Tensor, ...]:
        """The outputs."""
        return tensors(self.call(*self.inputs))


@dataclass
class Setup:
    """The map of a case and its contenders, eager first."""

    x: Tensor
    contenders: dict[str, Contender]
    cotangents: list[Tensor]

    def steps(self, case: Case) -> dict[str, Callable[[], Any]]:
        """What is timed: two yardsticks, then every contender."""
        kept = torch.empty_like(self.x)
        found: dict[str, Callable[[], Any]] = {
            "copy_": lambda: kept.copy_(self.x),
            "clone": self.x.clone,
        }
        for name in self.contenders:
            found[name] = self.step(case, name)
        return found

    def step(self, case: Case, name: str) -> Callable[[], Any]:
        """One inference, or forward and backward to every input that learns."""
        contender = self.contenders[name]
        if not case.training:
            return torch.no_grad()(contender.forward)
        return lambda: torch.autograd.grad(contender.forward(), contender.wanted, self.cotangents)


def prepare(case: Case, compiled: bool) -> Setup:
    """Builds a case, with `torch.compile` of the reference beside it if asked."""
    torch.manual_seed(0)
    recipe = RECIPES[case.op](case)
    inputs = recipe.inputs
    for t in inputs[: recipe.learned if case.training else 0]:
        t.requires_grad_()
    wanted = [t for t in inputs if t.requires_grad]
    eager = Contender(recipe.forward("reference"), inputs, wanted)
    contenders = {"eager": eager}
    if compiled:
        torch._dynamo.reset()
        contenders["compile"] = Contender(torch.compile(eager.call, dynamic=False), inputs, wanted)
    x = inputs[0].detach()
    for backend in BACKENDS[:-1]:
        reason = why_not(backend, recipe.kernel, device(), x.dtype)
        if reason is not None:
            ABSENT[backend] = reason
        elif backend in ORDER[recipe.kernel][device()]:
            contenders[backend] = Contender(recipe.forward(backend), inputs, wanted)
    contenders |= _peers(case, inputs)
    with torch.no_grad():
        cotangents = [torch.randn_like(out) for out in eager.forward()]
    return Setup(x, contenders, cotangents)


def _peers(case: Case, inputs: list[Tensor]) -> dict[str, Contender]:
    """Those that can be imported; the reasons of the others go to ABSENT."""
    found = {}
    for name, build in PEERS.get(case.op, {}).items():
        try:
            found[name] = Contender(*build(case, inputs))
        except AbsentError as error:
            ABSENT[name] = str(error)
    return found
