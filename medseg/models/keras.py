"""Reading weights that Keras 2 or 3 saved to HDF5, with h5py and without Keras.

An HDF5 file may point into other files, ask for code that unpacks it, and declare sizes that it
does not hold. So only what Keras writes is read: plain numbers that lie in the file itself, found
by hard links, and all together no larger than the file. Nothing in a file is executed.
"""

import math
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.errors import UserError

from .names import shown, told

_MOST_NAMES = 1 << 14  # entries in a list of layers or weights
_MOST_LETTERS = 1 << 12  # in one of them, where all have one length
_SHOWN = 80  # letters of a name in an error
_DEPTH = 16  # of groups in groups
_HEAP = b"GCOL\1\0\0\0"  # how a heap of names begins
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # Keras 3, and 2.12 to 2.15
_STATISTICS = ("moving_mean", "moving_variance")
_NORM = {4: ("gamma", "beta", *_STATISTICS), 3: ("beta", *_STATISTICS), 2: _STATISTICS}


def read_h5(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file that Keras saved, of a model or of its weights alone.

    Args:
        path: .h5 or .hdf5 of Keras 2 and of Keras 3's older format, or .weights.h5.

    Returns:
        "layer/weight" -> tensor, layers in the order of the file; kernels of convolutions,
        transposed ones too, with the axes of PyTorch: (3, 2, 0, 1). In a .weights.h5 a layer is
        "layers/" and its class with a number, and the layers of a class stand together.

    Raises:
        UserError: h5py is missing, or the file is damaged, hostile or not of Keras; the message
            says which.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"weights {path}: reading it needs h5py ({error}); pip install 'medseg[keras]'"
        ) from error
    try:
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            return _Reader(h5py, Path(path).stat().st_size).state(file)
    except _Refusal as error:
        raise UserError(f"weights {path}: {error}") from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise UserError(
            f"weights {path}: the file is damaged or no HDF5 ({told(error)})"
        ) from error


def _check_heaps(path: str | Path) -> None:
    """Refuses a heap, where HDF5 keeps names, with an entry of no length.

    The library (2.0) reads such an entry again and again, for ever.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_HEAP)
        while at >= 0:
            end = min(at + int.from_bytes(data[at + 8 : at + 16], "little"), len(data))
            entry = at + 16
            while entry + 16 <= end:
                index = int.from_bytes(data[entry : entry + 2], "little")
                size = int.from_bytes(data[entry + 8 : entry + 16], "little")
                size = 16 + size + -size % 8 if index else size
                if not 16 <= size <= end - entry:
                    raise _Refusal("the file is damaged or no HDF5 (an entry of odd length)")
                entry += size
            at = data.find(_HEAP, at + 16)


class _Refusal(Exception):
    """What is wrong with a file, in the words that follow its name."""


class _Reader:
    """Goes through one open file; ``size`` is that of the file in bytes."""

    def __init__(self, h5py: Any, size: int) -> None:
        self.h5py, self.left = h5py, size
        self.found: dict[str, Tensor] = {}

    def state(self, file: Any) -> dict[str, Tensor]:
        root = self.child(file, "model_weights") if "model_weights" in file else file
        containers = [name for name in _CONTAINERS if name in root]
        if "layer_names" in root.attrs or "layer_names0" in root.attrs:
            for layer in self.names(root, "layer_names"):
                self.listed(self.child(root, layer), layer)
            if "top_level_model_weights" in root:  # those of no layer
                self.listed(self.child(root, "top_level_model_weights"), "top_level_model_weights")
        elif containers:
            self.numbered(self.child(root, containers[0]), "layers")
        else:
            raise _Refusal("holds no weights of Keras")
        if not self.found:
            raise _Refusal("lists layers of Keras, none of which has weights")
        return self.found

    def listed(self, group: Any, layer: str) -> None:
        """A layer whose weights are listed by name."""
        paths = self.names(group, "weight_names")
        leaves = [path.rpartition("/")[2].partition(":")[0] for path in paths]
        for path, leaf in zip(paths, leaves, strict=True):
            name = leaf if leaves.count(leaf) == 1 else path.partition(":")[0]
            self.take(self.child(group, path), layer, name)

    def numbered(self, group: Any, name: str, depth: int = 0) -> None:
        """Groups of layers, down to those that hold "vars", whose weights are numbered."""
        if depth > _DEPTH:
            raise _Refusal(f"nests groups more than {_DEPTH} deep")
        if len(group) > _MOST_NAMES:
            raise _Refusal(f"has {len(group)} layers in {shown(name)}")
        for key in sorted(group, key=_number_last):
            child = self.child(group, key)
            if key != "vars" and isinstance(child, self.h5py.Group):
                self.numbered(child, f"{name}/{key}", depth + 1)
                continue
            if key != "vars" or len(child) > _MOST_NAMES:
                raise _Refusal(f"has {shown(f'{name}/{key}')}, which Keras does not write")
            kind = _number_last(name.rpartition("/")[2])[0]
            leaves = _NORM.get(len(child)) if kind == "batch_normalization" else ("kernel", "bias")
            for i, number in enumerate(sorted(child, key=_number_last)):
                leaf = leaves[i] if leaves and i < len(leaves) else number
                self.take(self.child(child, number), name, leaf)

    def child(self, group: Any, path: str) -> Any:
        """What lies at a path below a group; links to other places are not followed."""
        for part in path.split("/"):
            link = None
            if isinstance(group, self.h5py.Group) and part not in ("", ".", ".."):
                link = group.get(part, getlink=True)
            if link is None:
                raise _Refusal(f"lists {path[:_SHOWN]!r}, which it does not hold")
            if not isinstance(link, self.h5py.HardLink):
                raise _Refusal(
                    f"has a link to another place at {path[:_SHOWN]!r}, which is not followed"
                )
            group = group[part]
        return group

    def names(self, group: Any, attribute: str) -> list[str]:
        """A list of names; Keras cuts long ones into attributes numbered from 0."""
        keys = [attribute]
        if attribute not in group.attrs:
            keys = [key for key in group.attrs if re.fullmatch(rf"{attribute}\d+", key)]
            keys.sort(key=lambda key: int(key.removeprefix(attribute)))
        found: list[str] = []
        for key in keys:
            kind = group.attrs.get_id(key)
            count = math.prod(kind.shape or ())
            if len(found) + count > _MOST_NAMES or kind.dtype.itemsize > _MOST_LETTERS:
                raise _Refusal(
                    f"lists {count} names of {kind.dtype.itemsize} bytes in {shown(key)}"
                )
            for name in np.ravel(group.attrs[key]):
                text = name.decode("utf-8") if isinstance(name, bytes) else name
                if not isinstance(text, str):
                    raise _Refusal(f"lists {str(text)[:40]!r} in {shown(key)}, which is no name")
                found.append(text)
        return found

    def take(self, data: Any, layer: str, leaf: str) -> None:
        """Reads one weight, once it is sure that it lies in the file and fits into it."""
        key = f"{layer}/{leaf}"
        name = shown(key)
        if not isinstance(data, self.h5py.Dataset) or data.dtype.kind not in "fiu":
            raise _Refusal(f"{name} is no array of numbers")
        if key in self.found:
            raise _Refusal(f"holds {name} twice")
        if data.external or data.is_virtual:
            raise _Refusal(f"{name} lies in another file, which is not read")
        if data.id.get_create_plist().get_nfilters():
            raise _Refusal(f"{name} is compressed, which Keras does not do")
        needed = math.prod(data.shape) * data.dtype.itemsize
        self.left -= needed
        if needed > data.id.get_storage_size() or self.left < 0:
            raise _Refusal(f"{name} is said to be {data.shape}, for which the file is too small")
        value = np.asarray(data[()])
        if leaf == "kernel" and value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        native = value.dtype.newbyteorder("=")
        self.found[key] = torch.from_numpy(np.array(value, native, order="C"))


def _number_last(name: str) -> tuple[str, int]:
    """("conv2d", 10) of conv2d_10 and ("", 3) of 3: 10 comes after 9; without a number, 0."""
    stem, number = re.fullmatch(r"(.*?)_?(\d*)", name, re.DOTALL).groups()  # type: ignore
    return stem, int(number[:9] or 0)
