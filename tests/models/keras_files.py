"""Writing files as Keras does, from layers: {name: {leaf: array in the shape of Keras}}."""

import numpy as np
import pytest
import torch

h5py = pytest.importorskip("h5py", reason="h5py is not installed; pip install 'medseg[keras]'")

LAYERS = {
    "conv2d_9": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "conv2d_10": {"kernel": (1, 1, 4, 4)},
    "batch_normalization_4": {"beta": (4,), "moving_mean": (4,), "moving_variance": (4,)},
    "up6": {"kernel": (2, 2, 5, 4), "bias": (5,)},
}


def tensors(layers=LAYERS):
    random = np.random.default_rng(0)
    return {
        layer: {leaf: random.random(shape).astype(np.float32) for leaf, shape in leaves.items()}
        for layer, leaves in layers.items()
    }


def save_2(path, layers, root="", chunk=None, suffix=":0"):
    """As Keras 2 does, and Keras 3 in its older format; ``chunk`` cuts the list of layers."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root) if root else file
        names = [name.encode() for name in ("input_1", *layers, "activation")]
        if chunk is None:
            group.attrs["layer_names"] = names
        for i in range(0, len(names), chunk or len(names)):
            if chunk is not None:
                group.attrs[f"layer_names{i // chunk}"] = names[i : i + chunk]
        for name in names:
            layer, leaves = group.create_group(name.decode()), layers.get(name.decode(), {})
            paths = [f"{name.decode()}/{leaf}{suffix}" for leaf in leaves]
            layer.attrs["weight_names"] = [p.encode() for p in paths]
            for at, value in zip(paths, leaves.values(), strict=True):
                layer.create_dataset(at, data=value)


def save_3(path, layers, root="layers"):
    """As Keras 3 does: layers have the names of their classes, counted in their order."""
    counts = {}
    with h5py.File(path, "w") as file:
        file.create_group("vars")
        for name, leaves in layers.items():
            kind = "batch_normalization" if "moving_mean" in leaves else "conv2d"
            kind += "_transpose" if name.startswith("up") else ""
            number = counts.get(kind, 0)
            counts[kind] = number + 1
            group = file.create_group(
                f"{root}/{kind}_{number}/vars" if number else f"{root}/{kind}/vars"
            )
            group.attrs["name"] = name
            for i, value in enumerate(leaves.values()):
                group.create_dataset(str(i), data=value)
        file.create_group(f"{root}/activation/vars")
        file["optimizer/vars/0"] = np.ones(3)


def flat(layers):
    """What is to be read of them."""
    return {
        f"{layer}/{leaf}": torch.from_numpy(
            value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        )
        for layer, leaves in layers.items()
        for leaf, value in leaves.items()
    }
