"""`fuse` and `unfuse`: the walk through a model and the choice of what is replaced."""

from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medseg.kernels._backend import BACKENDS, choose
from medseg.layers import ECA, MDEFilter, PositionAttention, SplitAttention, TripletAttention

from .block import Fused, fused_blocks, take
from .forms import FORMS, UNSERVED
from .layout import is_turned, turn_back
from .parts import plain_name, why_other_forward
from .places import Place, put_all
from .probe import why_unequal
from .report import FusedBlock, Report, SkippedBlock
from .verify import verified

Model = TypeVar("Model", bound=nn.Module)

_OWN = (ECA, MDEFilter, PositionAttention, SplitAttention, TripletAttention)


def fuse(
    model: nn.Module,
    *,
    ops: Collection[str] | None = None,
    backend: str | None = None,
    verify: Any = None,
    channels_last: bool = False,
) -> Report:
    """Makes the attention blocks of a model run on the fused ops, in place.

    Blocks are known by class name and structure: ECA, triplet attention, split attention, DANet's
    position and channel attention, HPDDRNet's position attention, and fixed depthwise stencils,
    of the packages that docs/fuse.md lists; none of them is imported. Only the class of a block
    changes, so parameters, buffers, hooks, names and the state dict stay, and with them
    checkpoints, optimizers, DDP and averages of weights. A block is fused once random numbers have
    shown that both formulas agree; what is not certain to be equal is left alone and named in the
    report. `unfuse` gives the original back.

    Args:
        model: any module; blocks inside of wrappers (DDP, `torch.compile`) are found too.
        ops: fuse only blocks on these ops: "eca", "triplet", "split", "position", "mde".
        backend: of the fused ops: "cpu", "cuda", "triton" or "reference"; None takes the fastest
            that can run, in each call.
        verify: an input, or a tuple of them: the model is run on it before and after, and outputs
            and gradients must agree as closely as rounding allows; time and memory are measured.
        channels_last: on a CPU also bring images to that layout, by a hook, and so the maps behind
            them: convolutions mostly gain more than attention can. The numbers are the same up to
            rounding; a model that calls ``view`` on its maps may refuse, as ``verify`` finds out.
            The model sees copies of the images, in lists and dicts too, but not in dataclasses.

    Returns:
        The report: ``fused``, ``skipped``, and with ``verify`` the costs; print it for a table.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``ops`` or ``backend`` is unknown.
        RuntimeError: ``backend`` cannot run here, or ``verify`` found a difference: the message
            names the worst block. The model is then as it was.
    """
    _check(model, ops, backend, channels_last)
    report, places = Report(channels_last=channels_last), []
    for path, block, found in _attention(model, ""):
        reason = found if isinstance(found, str) else _why_left(block, found, ops)
        if reason is None and not isinstance(found, str):
            places.append(Place(path, block, found))
        else:
            report.skipped.append(SkippedBlock(path, _kind(block), reason or ""))
    chosen = [choose(p.form.op, _tensor(p.block), backend) for p in places]  # or refuses
    report.fused = [
        FusedBlock(p.path, _kind(p.block), p.form.label, name)
        for p, name in zip(places, chosen, strict=True)
    ]
    if verify is not None and (places or channels_last):
        inputs = verify if isinstance(verify, tuple) else (verify,)
        verified(model, inputs, places, backend, report)
    else:
        put_all(places, backend, model if channels_last else None)
    report.channels_last = is_turned(model)
    return report


def unfuse(model: Model) -> Model:
    """Gives every fused block of a model its original forward back, and its maps their layout, in
    place; returns the model."""
    for _, block in fused_blocks(model):
        take(block)
    for module in model.modules():
        turn_back(module)
    return model


def _check(
    model: Any, ops: Collection[str] | None, backend: str | None, channels_last: Any
) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    known = sorted({form.op for form in FORMS})
    if isinstance(ops, str) or not set(ops or ()) <= set(known):
        raise ValueError(f"ops must be a list of some of {', '.join(known)}, got {ops!r}")
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if not isinstance(channels_last, bool):
        raise ValueError(f"channels_last must be True or False, got {channels_last!r}")
    if channels_last and isinstance(model, torch.jit.ScriptModule):
        raise ValueError("channels_last=True takes no scripted model; fuse before torch.jit.script")


def _attention(
    module: nn.Module, path: str, seen: set[int] | None = None
) -> Iterator[tuple[str, nn.Module, type[Fused] | str]]:
    """(path, block, its form or why it has none) of every block, each once, none inside another."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    found = _form(module)
    if found is not None:
        yield path or "(model)", module, found
        return
    for name, child in module.named_children():
        yield from _attention(child, f"{path}.{name}" if path else name, seen)


def _form(module: nn.Module) -> type[Fused] | str | None:
    """The form that a module has, or why one that is attention has none, or None: no attention."""
    if isinstance(module, Fused):
        return "it is fused already"
    if isinstance(module, _OWN):
        return "it is medseg's own layer, which is fused"
    names = {plain_name(cls) for cls in type(module).__mro__[:-2]}  # but nn.Module and object
    if isinstance(module, torch.jit.ScriptModule):
        names = {plain_name(getattr(module, "original_name", ""))}
    known = [form for form in FORMS if names & set(form.names)]
    if isinstance(module, torch.jit.ScriptModule):
        attention = any(form.op != "mde" for form in known) or names & set(UNSERVED)
        return "it is scripted; fuse the model before torch.jit.script" if attention else None
    fitting = [form for form in known if form.may_be(module)]
    if fitting:
        return fitting[0]
    if any(form.op != "mde" for form in known):
        return "its parts are those of no form that medseg knows"
    return next((UNSERVED[name] for name in names if name in UNSERVED), None)


def _why_left(block: nn.Module, form: type[Fused], ops: Collection[str] | None) -> str | None:
    if ops is not None and form.op not in ops:
        return f"its op, {form.op}, is not among the ops asked for"
    clash = [name for name in ("backend", "original", *form.extra) if hasattr(block, name)]
    if clash:
        return f"it has an attribute {clash[0]} of its own"
    return why_other_forward(block, form.names) or form.why_not(block) or why_unequal(block, form)


def _kind(block: nn.Module) -> str:
    cls = block.original if isinstance(block, Fused) else type(block)
    return getattr(block, "original_name", cls.__name__)


def _tensor(block: nn.Module) -> Tensor:
    return next(t for t in (*block.parameters(), *block.buffers()) if t.is_floating_point())
