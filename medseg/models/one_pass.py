"""Convolution, batch norm and ReLU; in inference on a CPU as one pass over the map."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.kernels._backend import wanted_backend

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_convolution_pointwise"
)
_HALVES = _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module, relu: bool = True) -> Tensor:
    """relu(norm(conv(x))).

    Three modules are three passes over the map. Where no gradient will be asked for and the norm is
    in eval mode, its scale goes into the weights of this call, which are few beside the map, and
    oneDNN applies the shift and the ReLU to what its convolution still holds in registers: the same
    numbers up to rounding. The backend "reference" runs the modules one by one.

    Args:
        x: (N, C, H, W).
        conv, norm: a Conv2d, and a batch norm or Identity; others run as they are.
        relu: whether a ReLU comes last.
    """
    if _in_one_pass(x, conv) and _is_plain(norm):
        return _at_once(x, conv, norm, relu)
    y = norm(conv(x))
    return F.relu(y, inplace=True) if relu else y


class PackedConv2d(nn.Conv2d):
    """A convolution for inference; on a CPU it keeps its weights, once more, as oneDNN reads them.

    Else every call brings them to that order, which takes 4 to 8 % of a whole network's time. The
    copy is made in a call and again when weights or the size of the image change; it belongs to
    no state dict, copy or file.
    """

    _packed: tuple[Any, Tensor] | None = None

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
            self._packed = packed = key, reorder(weight.detach(), *place, x.shape)
        return packed[1]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_packed"}


def scaled(conv: Any, norm: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the norm behind it in them, worked out in ``dtype``.

    Args:
        conv: a convolution, or a transposed one of one group.
        norm: a batch norm with running statistics.
    """
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -norm.running_mean.to(dtype)
    if conv.bias is not None:
        shift = shift + conv.bias.to(dtype)
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    axis = 1 if conv.transposed else 0
    shape = [-1 if i == axis else 1 for i in range(conv.weight.dim())]
    weight = conv.weight.to(dtype) * scale.view(shape)
    return weight.to(conv.weight.dtype), shift.to(conv.weight.dtype)


def _at_once(x: Tensor, conv: Any, norm: Any, relu: bool) -> Tensor:
    if isinstance(norm, nn.BatchNorm2d):
        weight, bias = scaled(conv, norm)
        if relu and not bias.isfinite().all():  # of NaN oneDNN's ReLU makes 0, which would hide it
            return F.relu(norm(conv(x)), inplace=True)
    else:
        weight = conv.packed(x) if isinstance(conv, PackedConv2d) else conv.weight
        bias = conv.bias
    place = (conv.padding, conv.stride, conv.dilation, conv.groups)
    then = "relu" if relu else "none"
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *place, then, [], "")


def _in_one_pass(x: Tensor, conv: Any, hooked: bool = False) -> bool:
    """Whether oneDNN takes the image, and nothing but the result can tell it from the module.

    ``hooked``: whether hooks of ``conv`` have their turn already.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore
        return False
    if type(x) is not Tensor or x.device.type != "cpu" or x.dim() != 4 or not x.numel():
        return False
    if not (_ONEDNN and torch.backends.mkldnn.enabled) or torch.is_autocast_enabled("cpu"):  # pyright: ignore
        return False
    if wanted_backend() not in (None, "auto", "cpu") or torch._C._len_torch_dispatch_stack():
        return False
    if type(conv) not in (nn.Conv2d, PackedConv2d) or conv.padding_mode != "zeros":
        return False
    fits = x.dtype is torch.float32 or (x.dtype is torch.bfloat16 and _HALVES)
    fits = (
        fits and conv.weight.dtype is x.dtype and conv.weight.shape[1] * conv.groups == x.shape[1]
    )
    return fits and not isinstance(conv.padding, str) and (hooked or not _is_watched(conv))


def _is_plain(norm: Any) -> bool:
    if type(norm) is nn.Identity:
        return not _is_watched(norm)
    batch_norm = isinstance(norm, nn.BatchNorm2d) and not norm.training
    if not batch_norm or type(norm).forward is not nn.BatchNorm2d.forward:
        return False
    return norm.running_mean is not None and not _is_watched(norm)


def _is_watched(module: Any) -> bool:
    """Whether hooks or another forward of its own would notice that the module did not run."""
    return "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS)
