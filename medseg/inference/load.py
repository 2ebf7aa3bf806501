"""A trained network out of its file, ready to predict."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..models import create_model, fuse_conv_bn, list_models
from .tiles import View

_LARGEST = 1 << 16  # side of a view: what is above is no setting but damage


@dataclass(frozen=True)
class Trained:
    """A network in eval mode and all that its file says of it."""

    network: nn.Module
    path: Path  # of the weights
    model: str
    channels: int
    names: tuple[str, ...]  # of class 0, 1, ...
    values: tuple[int, ...]  # the mask value of class 0, 1, ...
    view: View
    normalize: str = "none"  # of its images
    options: Mapping[str, Any] = field(default_factory=dict)  # of the network
    epoch: int | None = None
    dice: float | None = None  # mean foreground Dice on the val part, in training

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def name(self) -> str:
        """The run's name, or the file's where it has another name than in a run."""
        return self.path.parent.resolve().name if self.path.stem == "best" else self.path.stem


def load_trained(path: str | Path, device: str = "cpu", fold: bool = True) -> Trained:
    """Opens what a training has written; no code of the file is run.

    Args:
        path: a run folder, or its best.safetensors under any name.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1".
        fold: take batch norms into convolutions where that is exact; the network can then not be
            trained, and its state dict has other entries.

    Raises:
        UserError: there is no such file, it is damaged or was not written by a training, or there
            is no such device.
    """
    target = pick_device(device)
    path = Path(path)
    file = path / "best.safetensors" if path.is_dir() else path
    facts = _Facts(file)
    classes = facts.read("classes", lambda v: isinstance(v, int) and 2 <= v <= 255)
    options = facts.read("options", lambda v: isinstance(v, dict), {})
    model = facts.read("model", lambda v: v in list_models())
    channels = facts.read("in_channels", lambda v: v in (1, 3))
    network = create_model(model, channels, classes, file, **options).eval()
    return Trained(
        network=_at_work(fuse_conv_bn(network) if fold else network, target),
        path=file,
        model=model,
        channels=channels,
        names=tuple(facts.read("class_names", lambda v: _is_list(v, str, classes))),
        values=tuple(facts.read("mask_values", lambda v: _is_mask_values(v, classes))),
        view=View(
            size=facts.read("size", _is_side),
            window=facts.read("window", lambda v: v is None or _is_side(v), None),
            patches=facts.read("patches", lambda v: isinstance(v, bool), False),
        ),
        normalize=facts.read("normalize", lambda v: v in ("none", "imagenet"), "none"),
        options=options,
        epoch=facts.read("epoch", lambda v: isinstance(v, int), None),
        dice=facts.read("dice", lambda v: isinstance(v, float), None),
    )


def _at_work(network: nn.Module, device: torch.device) -> nn.Module:
    """Without gradients, on its device, the weights as convolutions there take them."""
    network = network.requires_grad_(False).to(device)
    return nn.Module.to(network, memory_format=torch.channels_last)  # pyright: ignore


def pick_device(name: str) -> torch.device:
    """The device of a flag.

    Raises:
        UserError: it is no device, or not here.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"--device {name}: must be auto, cpu, cuda or, of several GPUs, cuda:1.")
    if kind == "cuda" and gpus <= int(number or 0):
        found = f"finds {gpus} GPUs" if gpus else "finds no GPU"
        raise UserError(f"--device {name}: PyTorch {found} here; take --device cpu.")
    return torch.device(name)


class _Facts:
    """The metadata of a weight file, checked one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found = _metadata(path)

    def read(self, key: str, fits: Callable[[Any], bool], *default: Any) -> Any:
        """The value of a key; ``default`` where the file has none.

        Raises:
            UserError: it is not there and has no default, or it does not fit.
        """
        text = self.found.get(key)
        if text is None and default:
            return default[0]
        if text is None:
            raise UserError(
                f"{self.path} does not say its {key}, so it was not written by medseg train: name "
                "a run folder or its best.safetensors; weights of others are where a training "
                "starts, by its --weights.",
                code=3,
            )
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):  # plain text
            value = text
        if not fits(value):
            raise UserError(
                f"{self.path} says {key} = {text[:80]}, which no training writes: it is damaged "
                "or of another version of medseg; take the file of the run again.",
                code=3,
            )
        return value


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        what = "has no best.safetensors" if path.name == "best.safetensors" else "is not there"
        name = path.parent if path.name == "best.safetensors" else path
        raise UserError(f"--weights {name}: {what}; name a finished run or its best.safetensors.")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"--weights {path}: is no safetensors file or is damaged ({reason}); name a run folder "
            "or its best.safetensors.",
            code=3,
        ) from None


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST


def _is_list(value: Any, kind: type, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(one, kind) and not isinstance(one, bool) for one in value)
    )


def _is_mask_values(value: Any, count: int) -> bool:
    fine = _is_list(value, int, count) and all(0 <= one <= 65535 for one in value)
    return fine and len(set(value)) == count
