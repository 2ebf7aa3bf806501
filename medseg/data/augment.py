"""Random changes of a batch that a blood smear or a micrograph could have shown as well."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..losses import IGNORE

Augmentation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build_augmentation(size: int, ignore: bool = False) -> Augmentation:
    """Flips, quarter turns, small affine moves, stain, exposure, blur, noise, on whole batches.

    The mask moves with its image, by the nearest pixel; both are reflected at the border, so that a
    label stays on what it names and unknown pixels (-1) stay unknown. All draws come from torch's
    global generator: ``torch.manual_seed`` repeats them.

    Args:
        size: side of the square images.
        ignore: what is moved in over the border is unknown (-1) in the mask, not reflected.

    Returns:
        callable: image float32 (N, C, size, size) in 0..1, mask int64 (N, size, size) -> the same.
    """
    moves, optics = _moves(ignore), _optics()

    @torch.no_grad()
    def augment(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[-2:] != (size, size) or mask.shape[-2:] != (size, size):
            raise ValueError(
                f"image and mask must be {size}x{size}, "
                f"got {tuple(image.shape)} and {tuple(mask.shape)}"
            )
        # one more, so that the zeros which moves bring in stand for IGNORE
        moved, labels = moves(image, (mask[:, None] - IGNORE).to(image.dtype))
        changed = optics(_expose(moved)).clamp_(0, 1)
        return changed, labels[:, 0].round().to(mask.dtype) + IGNORE

    return augment


def _moves(ignore: bool) -> Callable[..., list[Tensor]]:
    """What changes the place of a pixel: image and mask together."""
    import kornia.augmentation as ka
    from kornia.constants import DataKey, Resample, SamplePadding

    return ka.AugmentationSequential(
        ka.RandomHorizontalFlip(p=0.5),
        ka.RandomVerticalFlip(p=0.5),
        ka.RandomRotation90((0, 3), p=1.0),
        ka.RandomAffine(
            15, translate=(0.06, 0.06), scale=(0.85, 1.15), padding_mode="reflection", p=0.5
        ),
        data_keys=["input", "mask"],
        extra_args={
            DataKey.MASK: {
                "resample": Resample.NEAREST,
                "align_corners": None,
                "padding_mode": SamplePadding.ZEROS if ignore else SamplePadding.REFLECTION,
            }
        },
    )


def _optics() -> Callable[[Tensor], Tensor]:
    """What the lens and the camera do: the image alone."""
    import kornia.augmentation as ka

    return ka.AugmentationSequential(
        ka.RandomGaussianBlur((3, 3), (0.3, 1.0), p=0.2),
        ka.RandomGaussianNoise(std=0.02, p=0.3),
        data_keys=["input"],
    )


def _expose(image: Tensor) -> Tensor:
    """gain * (image - mean) + mean + shift: contrast and brightness by image, stain by channel.

    One pass instead of a colour-space round trip for each property.
    """
    count, channels = image.shape[:2]
    draw = torch.rand(4, count, channels, 1, 1).mul_(2).sub_(1).to(image)  # -1 .. 1
    gain = 1 + 0.2 * draw[0, :, :1] + 0.05 * draw[1]  # (N, C, 1, 1)
    shift = 0.1 * draw[2, :, :1] + 0.04 * draw[3]
    mean = image.mean((2, 3), keepdim=True)
    return torch.addcmul(mean * (1 - gain) + shift, image, gain)
