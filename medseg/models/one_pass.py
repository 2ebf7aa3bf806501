"""Convolution, batch norm, ReLU or sum; in inference on a CPU as one pass over the map."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore

from medseg.kernels._backend import wanted_backend, watched_by_forward_ad

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)
_HALVES = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# oneDNN's own ReLU makes 0 of NaN, which would hide that a network has diverged; this one does not.
_RELU = ("leaky_relu", [1e-30], "")
_NONE = ("none", [], "")
_SMALL = 200_000  # numbers of map and weights


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module, relu: bool = True) -> Tensor:
    """relu(norm(conv(x))).

    Three modules are three passes over the map. Where no gradient will be asked for, the norm is in
    eval mode and the weights are fewer than the numbers of the map, its scale goes into the weights
    of this call, and oneDNN applies the shift and the ReLU to what its convolution still holds in
    registers: the same numbers up to rounding. Where the weights are more, oneDNN gets them as they
    are, while ``conv`` would bring them to the layout of the map first. The backend "reference"
    runs the modules one by one.

    Args:
        x: (N, C, H, W).
        conv, norm: a Conv2d, and a batch norm or Identity; others run as they are.
        relu: whether a ReLU comes last.
    """
    if _goes_to_onednn(x, conv, norm):
        if _gains(x, conv, norm):
            return _at_once(x, conv, norm, relu)
        y = norm(_at_once(x, conv, None, relu=False))
    else:
        y = norm(conv(x))
    return F.relu(y, inplace=True) if relu else y


def conv_norm_add(x: Tensor, conv: nn.Module, norm: nn.Module, other: Tensor) -> Tensor:
    """norm(conv(x)) + other, in one pass where ``conv_norm`` takes one.

    Args:
        x, conv, norm: as for ``conv_norm``.
        other: the shape and dtype of the result.
    """
    alike = type(other) is Tensor and other.dtype is x.dtype
    if alike and _goes_to_onednn(x, conv, norm) and _gains(x, conv, norm):
        return _at_once(x, conv, norm, relu=False, other=other)
    y = conv_norm(x, conv, norm, relu=False)
    return y + other if y is x else y.add_(other)


class PackedConv2d(nn.Conv2d):
    """A convolution for inference; on a CPU it keeps its weights, once more, as oneDNN reads them.

    Else every call brings them to that order, some 2 to 6 % of DPSAU2-Net's time. The
    copy is made in a call and again when weights or the size of the image change; it belongs to
    no state dict, copy or file. What is written into ``weight.data``, past the parameter, goes
    unnoticed, as it does in all that keeps weights twice.
    """

    _packed: tuple[Any, Tensor, Tensor] | None = None  # key, packed, and what the key points to

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, in_channels, H, W); as nn.Conv2d."""
        if _in_one_pass(x, self, hooked=True):
            return _at_once(x, self, None, relu=False)
        return super().forward(x)

    def packed(self, x: Tensor) -> Tensor:
        """The weights in the order that suits images like ``x``."""
        weight = self.weight
        if weight.is_inference():  # nothing would tell that they changed
            return weight
        key = (weight.data_ptr(), weight._version, weight.dtype, x.shape[1:])
        packed = self._packed  # held, since another thread may pack for its own image
        if packed is None or packed[0] != key:
            place = (self.padding, self.stride, self.dilation, self.groups)
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            plain = weight.detach()
            self._packed = packed = key, reorder(plain, *place, x.shape), plain
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


def scaled(conv: Any, norm: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the norm behind it in them, worked out in ``dtype``.

    Args:
        conv: a convolution, or a transposed one of one group.
        norm: a batch norm with running statistics.
    """
    mean, scale = norm.running_mean.to(dtype), (norm.running_var.to(dtype) + norm.eps).rsqrt_()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean if conv.bias is None else conv.bias - mean
    shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
    axis = 1 if conv.transposed else 0
    shape = [-1 if i == axis else 1 for i in range(conv.weight.dim())]
    weight = conv.weight * scale.view(shape)
    return weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)


def _at_once(x: Tensor, conv: Any, norm: Any, relu: bool, other: Tensor | None = None) -> Tensor:
    if isinstance(norm, nn.BatchNorm2d):
        weight, bias = scaled(conv, norm)
    else:
        weight = conv.packed(x) if isinstance(conv, PackedConv2d) else conv.weight
        bias = conv.bias
    place = (conv.padding, conv.stride, conv.dilation, conv.groups)
    run = torch.ops.mkldnn._convolution_pointwise
    if other is None:
        return run(x, weight, bias, *place, *(_RELU if relu else _NONE))
    return run.binary(x, other, weight, bias, *place, "add", None, None, [], None)


def _in_one_pass(x: Tensor, conv: Any, hooked: bool = False) -> bool:
    """Whether oneDNN takes the image, and nothing but the result can tell it from the module.

    ``hooked``: whether hooks of ``conv`` have their turn already.
    """
    if not (_ONEDNN and torch.backends.mkldnn.enabled) or torch.is_autocast_enabled("cpu"):  # pyright: ignore
        return False
    if type(conv) not in (nn.Conv2d, PackedConv2d) or conv.padding_mode != "zeros":
        return False
    return only_result_counts(x) and _fits(x, conv) and (hooked or not _is_watched(conv))


def only_result_counts(x: Tensor) -> bool:
    """Whether x is a map on a CPU, of which nothing but the numbers made of it will be asked."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return False
    if type(x) is not Tensor or x.device.type != "cpu" or x.dim() != 4 or not x.numel():
        return False
    if wanted_backend() not in (None, "auto", "cpu") or torch._C._len_torch_dispatch_stack():
        return False
    return not watched_by_forward_ad() and peek_interpreter_stack() is None  # jvp, vmap


def _fits(x: Tensor, conv: Any) -> bool:
    """Whether dtypes and channels agree; what does not is left to PyTorch's own words."""
    weight, bias = conv.weight, conv.bias
    if x.dtype is not torch.float32 and not (x.dtype is torch.bfloat16 and _HALVES):
        return False
    if weight.dtype is not x.dtype or not (bias is None or bias.dtype is x.dtype):
        return False
    padding, steps, kernel = conv.padding, conv.dilation, conv.kernel_size
    if isinstance(padding, str) or weight.shape[1] * conv.groups != x.shape[1]:
        return False
    reach = [step * (side - 1) + 1 for step, side in zip(steps, kernel, strict=True)]
    return all(x.shape[2 + i] + 2 * padding[i] >= reach[i] for i in (0, 1))


def _goes_to_onednn(x: Tensor, conv: Any, norm: Any) -> bool:
    return not _is_small(x, conv, norm) and _in_one_pass(x, conv) and _is_plain(norm, conv)


def _is_small(x: Tensor, conv: Any, norm: Any) -> bool:
    """Whether three passes take no longer than to scale the weights and to look for hindrances.

    Never of a graph that is being made: the answer would tie it to sizes.
    """
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return False
    batch_norm = isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
    return batch_norm and x.numel() + conv.weight.numel() < _SMALL


def _gains(x: Tensor, conv: Any, norm: Any) -> bool:
    """Whether scaling the weights takes less than the passes over the map that it saves."""
    numbers = x.shape[0] * conv.out_channels * x.shape[2] * x.shape[3]
    most = numbers // (conv.stride[0] * conv.stride[1])
    return isinstance(norm, nn.Identity) or conv.weight.numel() <= most


def _is_plain(norm: Any, conv: Any) -> bool:
    if type(norm) is nn.Identity:
        return not _is_watched(norm)
    batch_norm = isinstance(norm, nn.BatchNorm2d) and not norm.training
    if not batch_norm or type(norm).forward is not nn.BatchNorm2d.forward:
        return False
    fits = norm.running_mean is not None and norm.num_features == conv.out_channels
    return fits and not _is_watched(norm)


def _is_watched(module: Any) -> bool:
    """Whether hooks or another forward of its own would notice that the module did not run."""
    own = "forward" in vars(module) or "_conv_forward" in vars(module)
    hooked = any(getattr(module, hooks) for hooks in _HOOKS)
    return own or hooked or bool(torch.nn.modules.module._has_any_global_hook())
