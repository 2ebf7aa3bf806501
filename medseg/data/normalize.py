"""What is taken from an image, and what it is divided by, before a network sees it."""

from torch import Tensor

# Mean and deviation of red, green and blue over ImageNet, as torchvision and Albumentations have it
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize(image: Tensor, kind: str) -> Tensor:
    """Brings images to the range that a network was trained on.

    Args:
        image: float (N, C, H, W) in 0..1; three channels are red, green, blue.
        kind: "none", or "imagenet": (image - mean) / deviation of each colour, with any other
            number of channels of the mean colour.

    Raises:
        ValueError: ``kind`` is neither.
    """
    if kind == "none":
        return image
    if kind != "imagenet":
        raise ValueError(f"kind must be none or imagenet, got {kind!r}")
    mean, deviation = image.new_tensor(_MEAN), image.new_tensor(_DEVIATION)
    if image.shape[1] != 3:
        mean, deviation = mean.mean(), deviation.mean()
    return (image - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
