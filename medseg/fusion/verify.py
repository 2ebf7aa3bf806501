"""`fuse(verify=...)`: outputs and gradients before and after, block by block and as a whole.

Rounding differs between two formulas, and networks magnify it, batch norms of few numbers most.
How much, the model itself tells: it is run once more with the outputs of its blocks, or a block
with its input, changed by a unit in the last place. Fusing may change results by `TOLERANCE`, or by
`MARGIN` times what such a change does. Where each block agrees and the whole model does not, it is
float64 that decides, in which rounding stays small.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .cost import costs
from .layout import is_turned, turn
from .places import Place, put_all, take_all
from .report import Cost, Report
from .results import Difference, as_found, difference, floats, leaf, results

EXACT = 1e4  # times as much for a whole network in float64: 1e-6


def verified(
    model: nn.Module,
    inputs: tuple[Any, ...],
    places: list[Place],
    backend: str | None,
    report: Report,
) -> None:
    """Fuses the blocks, and turns the maps where the report says so, if only rounding changes.

    Raises:
        RuntimeError: something changes; the model is as it was.
    """
    device = device_of(model, inputs)
    turned = model if report.channels_last and not is_turned(model) else None
    try:
        with as_found(model, device), torch.inference_mode(False), torch.enable_grad():
            calls = _compare(model, inputs, places, backend, device) if places else {}
            if turned is not None:
                _compare_layouts(turned, inputs, device)
            report.step = "training step" if model.training else "inference"
            step = _stepper(model, inputs)
            report.before, report.after = _both(places, backend, step, device, turned)
            for place, row in zip(places, report.fused, strict=True):
                if maps := calls[place.path]:
                    row.before, row.after = _block_costs(place, maps, backend, device)
        put_all(places, backend, turned)
    except BaseException:
        take_all(places, turned)
        raise


def device_of(model: nn.Module, inputs: tuple[Any, ...]) -> torch.device:
    """Where a model runs."""
    tensors = (t for t in (*model.parameters(), *tree_leaves(inputs)) if isinstance(t, Tensor))
    return next(tensors, torch.zeros(0)).device


def _compare(
    model: nn.Module,
    inputs: tuple[Any, ...],
    places: list[Place],
    backend: str | None,
    device: torch.device,
) -> dict[str, list[Tensor]]:
    """Refuses what differs; returns what each block was called with."""
    calls: dict[str, list[Tensor]] = {place.path: [] for place in places}
    plain = results(model, inputs, device, {p.block: _keeper(calls[p.path]) for p in places})
    jittered = results(model, inputs, device, {p.block: _jitter_output for p in places})
    put_all(places, backend)
    fused = results(model, inputs, device, {})
    whole = difference(plain, fused, jittered)
    worst, by_block = places[0], Difference(-1.0, 1.0)
    for place in places:
        for x in calls[place.path]:
            found = _block_difference(place, x, backend, device)
            if found.excess > by_block.excess:
                worst, by_block = place, found
    if by_block.excess <= 1 and whole.excess > 1:
        whole = _in_float64(model, inputs, device, places, backend)
    if whole.excess <= 1 and by_block.excess <= 1:
        return calls
    raise RuntimeError(
        f"fusing changes results, so the model was left as it was; the worst layer is {worst.path} "
        f"({type(worst.block).original.__name__}), off by {by_block.found:.1e} where "  # pyright: ignore
        f"{by_block.allowed:.1e} is rounding; the whole model is off by {whole.found:.1e} where "
        f"{whole.allowed:.1e} is"
    )


def _in_float64(
    model: nn.Module,
    inputs: tuple[Any, ...],
    device: torch.device,
    places: list[Place],
    backend: str | None,
) -> Difference:
    """How far a copy of the model, all of it in float64, is apart before and after fusing."""
    take_all(places)
    exact = copy.deepcopy(model).double()
    put_all(places, backend)
    wide = tree_map(lambda t: t.double() if floats(t) else t, inputs)
    plain = results(exact, wide, device, {})
    put_all([p._replace(block=exact.get_submodule(p.path)) for p in places], None)
    return difference(plain, results(exact, wide, device, {}), plain, EXACT)


def _compare_layouts(model: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> None:
    """Refuses channels_last where it changes more than the order of sums, in float64."""
    exact = copy.deepcopy(model).double()
    wide = tree_map(lambda t: t.double() if floats(t) else t, inputs)
    plain = results(exact, wide, device, {})
    refused = "channels_last=True was refused, so the model was left as it was"
    turn(exact)
    try:
        turned = results(exact, wide, device, {})
    except (RuntimeError, ValueError, TypeError) as problem:
        words = str(problem).split("\n", 1)[0]
        raise RuntimeError(f"{refused}: it does not run on maps in that layout ({words})") from None
    found = difference(plain, turned, plain, EXACT)
    if found.excess > 1:
        words = f"off by {found.found:.1e} where {found.allowed:.1e} is rounding"
        raise RuntimeError(f"{refused}: results are {words}")


def _keeper(into: list[Tensor]) -> Callable[..., None]:
    def hook(block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if torch.is_grad_enabled() and len(args) == 1 and isinstance(args[0], Tensor):
            into.append(args[0].detach().clone())

    return hook


def _jitter_output(block: nn.Module, args: Any, out: Any) -> Any:
    return tree_map(_jittered, out)


def _jittered(t: Any) -> Any:
    """Each number changed by up to a unit in its last place."""
    if not isinstance(t, Tensor) or not t.is_floating_point():
        return t
    wide = torch.promote_types(t.dtype, torch.float32)
    noise = torch.rand(t.shape, dtype=wide, generator=torch.Generator().manual_seed(0))
    return (t * (1 + torch.finfo(t.dtype).eps * noise.to(t.device))).to(t.dtype)


def _block_difference(
    place: Place, x: Tensor, backend: str | None, device: torch.device
) -> Difference:
    """The block against itself, fused, on a map that it got in the model."""
    take_all([place])
    plain = results(place.block, (x,), device, {})
    jittered = results(place.block, (_jittered(x),), device, {})
    put_all([place], backend)
    return difference(plain, results(place.block, (x,), device, {}), jittered)


def _stepper(model: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], Any]:
    """One inference, or in training mode forward and backward."""

    def infer() -> Any:
        with torch.no_grad():
            return model(*inputs)

    def train() -> Any:
        leaves = tree_map(leaf, inputs)
        outputs = [out for out in floats(model(*leaves)) if out.requires_grad]
        asked = [t for t in (*floats(leaves), *model.parameters()) if t.requires_grad]
        grads = [torch.ones_like(out) for out in outputs]
        return torch.autograd.grad(outputs, asked, grads, allow_unused=True) if outputs else None

    return train if model.training else infer


def _both(
    places: list[Place],
    backend: str | None,
    step: Callable[[], Any],
    device: torch.device,
    turned: nn.Module | None = None,
) -> tuple[Cost, Cost]:
    """What a step costs with the blocks as they were and fused; and the model in channels_last."""

    def plain() -> Any:
        take_all(places, turned)
        return step()

    def fused() -> Any:
        put_all(places, backend, turned)
        return step()

    before, after = costs([plain, fused], device)
    return before, after


def _block_costs(
    place: Place, maps: list[Tensor], backend: str | None, device: torch.device
) -> tuple[Cost, Cost]:
    """The same of one block: the time of all its calls, the memory of the largest."""
    pairs = [_both([place], backend, _stepper(place.block, (x,)), device) for x in maps]
    before, after = (
        Cost(sum(cost.ms for cost in side), max(cost.mb for cost in side))
        for side in zip(*pairs, strict=True)
    )
    return before, after
