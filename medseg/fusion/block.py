"""What turns a module into a fused one and back: another class, the same object.

A block keeps its identity, and with it parameters, buffers, children, hooks, names, state dict and
whatever points to it: an optimizer, DDP, an average of weights. Only its class changes, to one made
of the fused layer and of the class it had, so that `isinstance` still says what it said.
"""

import functools
from typing import Any, ClassVar

from torch import Tensor, nn

from medseg.kernels._arguments import FLOATS


class Fused(nn.Module):
    """Base of the fused layers; a form (forms.py) adds how it is recognised and what it computes.

    Attributes:
        label: what the report calls the form.
        op: the fused op it runs on.
        names: classes that it stands for, in letters and digits alone, small.
        extra: attributes that it keeps on a block beside ``backend``.
        own_weights: whether what it computes hangs on the values of the weights.
        keeps_parts: tells `fuse_conv_bn` to leave the parts of a block alone.
        original: the class that the block had, and has again after `unfuse`.
        backend: of the fused op; None takes the fastest that can run.
    """

    label: ClassVar[str]
    op: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    extra: ClassVar[tuple[str, ...]] = ()
    own_weights: ClassVar[bool] = False
    keeps_parts: ClassVar[bool] = True
    original: ClassVar[type[nn.Module]]
    backend: Any

    @staticmethod
    def may_be(module: Any) -> bool:
        """Whether a module of one of the names is of this form, fit to be fused or not."""
        return True

    @staticmethod
    def why_not(block: Any) -> str | None:
        """Why the fused layer could compute something else than the block, in one sentence.

        It is asked before a block is fused, and again in each call: a norm that was converted, a
        layer that got a hook or another weight sends that call through the original forward.
        """
        raise NotImplementedError

    @staticmethod
    def channels(block: Any) -> int:
        """Channels of a map that the block takes."""
        raise NotImplementedError

    def fused(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W); what the original forward returns."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The fused formula for a map (N, C, H, W), the original forward for all else."""
        if len(args) == 1 and not kwargs and _is_map(args[0]) and self.why_not(self) is None:
            return self.fused(args[0])
        return self.original.forward(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and copied by its two classes: the one made of them has no place to import."""
        _, _, *state = super().__reduce_ex__(max(2, protocol))
        return _blank, (_layer(type(self)), self.original), *state


def _is_map(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() == 4 and x.dtype in FLOATS and x.numel() > 0


def put(block: nn.Module, layer: type[Fused], backend: str | None) -> None:
    """Makes a block a fused one."""
    block.__class__ = made(layer, type(block))
    vars(block)["backend"] = backend


def take(block: Fused) -> None:
    """Makes a fused block what it was."""
    for name in ("backend", *block.extra):
        vars(block).pop(name, None)
    block.__class__ = block.original  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def made(layer: type[Fused], original: type[nn.Module]) -> type[Fused]:
    """The class of a fused block; one for each pair, so that types can be compared."""
    space = {"original": original, "__module__": layer.__module__, "__doc__": layer.__doc__}
    return type(f"Fused{original.__name__}", (layer, original), space)


def _layer(cls: type) -> type[Fused]:
    return cls.__bases__[0]


def _blank(layer: type[Fused], original: type[nn.Module]) -> Fused:
    cls = made(layer, original)
    return cls.__new__(cls)


def fused_blocks(model: nn.Module) -> list[tuple[str, Fused]]:
    """(path, block) of every fused block, each once."""
    return [(path, m) for path, m in model.named_modules() if isinstance(m, Fused)]
