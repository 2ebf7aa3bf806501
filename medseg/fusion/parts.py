"""What a form asks of a block: which parts it has, and that each is what the fused op computes."""

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from medseg.kernels._arguments import FLOATS

Check = Callable[[Any], "str | None"]  # a part to what it is that does not fit, or None
_TENSORS = (nn.Parameter, Tensor)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def plain_name(cls: type | str) -> str:
    """The name of a class in letters and digits alone, small: eca_layer is ecalayer."""
    name = cls if isinstance(cls, str) else cls.__name__
    return "".join(filter(str.isalnum, name)).lower()


def why_other_forward(block: nn.Module, names: tuple[str, ...]) -> str | None:
    """Whether the forward that would run is another than that of the class named so."""
    cls = type(block)
    if "forward" in vars(block):
        return "its forward was replaced"
    owners = [c for c in cls.__mro__ if "forward" in vars(c) and c is not nn.Module]
    if not owners or plain_name(owners[0]) not in names or len(owners) > 1:
        return f"{cls.__name__} overrides forward"
    forward = vars(owners[0])["forward"]
    if not isinstance(forward, types.FunctionType):
        return f"the forward of {cls.__name__} is no plain function"
    home = (owners[0].__module__, f"{owners[0].__qualname__}.forward")
    if (forward.__module__, forward.__qualname__) != home:
        return f"the forward of {cls.__name__} was replaced"
    if cls.__call__ is not nn.Module.__call__:
        return f"{cls.__name__} overrides __call__"
    return None


def why_not_parts(
    block: nn.Module, needed: Mapping[str, Check], spare: Mapping[str, Check]
) -> str | None:
    """Whether a part is missing, unknown, watched by a hook that would no longer be called, or
    something else than the fused op stands for.

    Args:
        block: the block.
        needed: checks of the parts that must be there, by path.
        spare: checks of those that may be.
    """
    found = 0
    for path, part in _parts(block):
        check = needed.get(path) or spare.get(path)
        if check is None:
            return f"it has a part that the form does not, {path}"
        found += path in needed
        reason = check(part)
        if reason is not None:
            return f"{path} {reason}"
    if found < len(needed):
        missing = set(needed) - {path for path, _ in _parts(block)}
        return f"it has no {sorted(missing)[0]}"
    return None


def _parts(block: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, part in block._modules.items():
        if part is not None:
            yield prefix + name, part
            yield from _parts(part, f"{prefix}{name}.")


def called(part: nn.Module) -> str | None:
    """A part that the fused layer calls as the original does, so that it may be anything."""
    return None


def idle(part: nn.Module) -> str | None:
    """A part that the original never calls either."""
    return None


def bypassed(*classes: str) -> Check:
    """A part of one of these classes, with nothing to set, that the fused op stands for."""

    def check(part: Any) -> str | None:
        return why_watched(part) or why_class(part, classes)

    return check


def why_watched(part: Any) -> str | None:
    """Whether a hook waits for a call that would not come."""
    if any(getattr(part, hooks) for hooks in HOOKS) or "forward" in vars(part):
        return "has a hook or a forward of its own, which would no longer be called"
    return None


def why_class(part: Any, classes: tuple[str, ...]) -> str | None:
    """Whether it is of another class."""
    name = type(part).__name__
    return None if name in classes else f"is {name}, not {' or '.join(classes)}"


def softmax(part: Any) -> str | None:
    """nn.Softmax over the last axis."""
    found = bypassed("Softmax")(part)
    return found or (None if part.dim == -1 else f"is over axis {part.dim}, not -1")


def pool(part: Any) -> str | None:
    """nn.AdaptiveAvgPool2d to a single number."""
    found = bypassed("AdaptiveAvgPool2d")(part)
    whole = part.output_size in (1, (1, 1)) if found is None else False
    return found or (None if whole else f"pools to {part.output_size}, not to 1")


def taps(part: Any) -> str | None:
    """The nn.Conv1d of ECA: one channel, as long after as before."""
    found = why_watched(part) or _why_type(part, nn.Conv1d)
    if found is not None:
        return found
    kernel = part.kernel_size[0]
    wanted = (1, 1, (kernel // 2,), (1,), (1,), "zeros")
    got = (part.in_channels, part.out_channels, part.padding, part.stride, part.dilation)
    if (*got, part.padding_mode) != wanted or kernel % 2 == 0:
        return f"is no odd convolution of one channel padded with zeros: {part}"
    return None


def gate_conv(part: Any) -> str | None:
    """The nn.Conv2d of a gate: two planes to one, odd, without a bias."""
    found = why_watched(part) or _why_type(part, nn.Conv2d)
    if found is not None:
        return found
    side = part.kernel_size[0]
    shape = (part.in_channels, part.out_channels, part.groups, part.kernel_size, part.bias)
    place = (part.padding, part.stride, part.dilation, part.padding_mode)
    if shape != (2, 1, 1, (side, side), None) or side % 2 == 0 or side > 49:
        return f"is no square, odd convolution of two planes to one without bias: {part}"
    if place != ((side // 2,) * 2, (1, 1), (1, 1), "zeros"):
        return f"does not keep the size of the planes: {part}"
    return None


def pointwise(part: Any) -> str | None:
    """A 1x1 nn.Conv2d that the fused op computes as a matrix."""
    found = why_watched(part) or _why_type(part, nn.Conv2d)
    if found is None and (part.kernel_size, part.stride, part.padding) != ((1, 1), (1, 1), (0, 0)):
        return f"is no 1x1 convolution: {part}"
    return found


def norm(part: Any) -> str | None:
    """An nn.BatchNorm2d with parameters, running statistics and a momentum."""
    found = why_watched(part) or _why_type(part, nn.BatchNorm2d)
    if found is None and (not part.affine or part.running_mean is None or part.momentum is None):
        return "lacks parameters, running statistics or a momentum"
    return found


def norm_or_nothing(part: Any) -> str | None:
    """An nn.BatchNorm2d of any kind, or nn.Identity; called as a module but in inference."""
    return why_watched(part) or why_class(part, ("BatchNorm2d", "SyncBatchNorm", "Identity"))


def _why_type(part: Any, cls: type[nn.Module]) -> str | None:
    """Whether it is of another class, as quantised and parametrised layers are, or its weight."""
    # An export in which Python runs puts a class of the same name in the place of each.
    same = (type(part).__module__, type(part).__name__) == (cls.__module__, cls.__name__)
    if type(part) is not cls and not (same and torch.compiler.is_compiling()):
        return f"is {type(part).__module__}.{type(part).__name__}, not nn.{cls.__name__}"
    weight = part.weight
    if weight is None:
        return None
    plain = type(weight) in _TENSORS or torch.compiler.is_compiling()  # whose tensors are fake
    if not plain or weight.dtype not in FLOATS:
        return f"has a weight that is a {type(weight).__name__} of {weight.dtype}"
    return None


def why_scalar(block: nn.Module, name: str) -> str | None:
    """Whether a parameter of one number is missing."""
    value = getattr(block, name, None)
    fits = isinstance(value, Tensor) and value.numel() == 1
    return None if fits else f"it has no {name} of one number"
