"""Files of Keras, read by h5py alone, and into the network."""

import copy
import json
from itertools import groupby
from typing import Any

import numpy as np
import pytest
import torch

from medseg import create_model
from medseg.errors import UserError
from medseg.models import load_weights
from medseg.models.drrmsan import mixed
from medseg.models.keras import read_h5
from tests import golden

from .keras_files import LAYERS, flat, save_2, save_3, tensors


def assert_same(got, want):
    assert list(got) == list(want)
    for key, value in want.items():
        assert got[key].is_contiguous() and torch.equal(got[key], value), key


@pytest.mark.parametrize("root", ["", "model_weights"])
@pytest.mark.parametrize("chunk", [None, 1, 4])
@pytest.mark.parametrize("suffix", [":0", ""])
def test_keras_2(tmp_path, root, chunk, suffix):
    layers = tensors()
    save_2(tmp_path / "w.h5", layers, root, chunk, suffix)
    assert_same(read_h5(tmp_path / "w.h5"), flat(layers))


@pytest.mark.parametrize("root", ["layers", "_layer_checkpoint_dependencies"])
def test_keras_3(tmp_path, root):
    layers = tensors({f"layer{i}": LAYERS["conv2d_10"] for i in range(12)} | LAYERS)
    save_3(tmp_path / "w.weights.h5", layers, root)
    got = read_h5(str(tmp_path / "w.weights.h5"))
    names = ["conv2d", *(f"conv2d_{i}" for i in range(1, 12)), "conv2d_12", "conv2d_13"]
    names = ["batch_normalization", *names, "conv2d_transpose"]
    assert [name for name, _ in groupby(key.split("/")[1] for key in got)] == names
    want = flat(layers)
    assert torch.equal(got["layers/conv2d_11/kernel"], want["layer11/kernel"])
    assert torch.equal(got["layers/conv2d_12/bias"], want["conv2d_9/bias"])
    assert torch.equal(got["layers/conv2d_transpose/kernel"], want["up6/kernel"])
    for leaf in ("beta", "moving_mean", "moving_variance"):
        key = f"batch_normalization_4/{leaf}"
        assert torch.equal(got[f"layers/batch_normalization/{leaf}"], want[key])
    assert len(got) == len(want)


def authors_layers(variant, rename=lambda name: name, **rule):
    """The layers of a golden variant in the order of the authors' files: Keras shapes and names."""
    folder = f"drrmsan_{variant}"
    state = golden.original_state(folder, rule.get("salt", 0), rule.get("beta_shift", 0.0))
    described = json.loads((golden.FOLDER / folder / "state_keys.json").read_text())
    layers = {layer: {} for layer in described["h5_layer_order"]}
    for key, value in state.items():
        layer, _, leaf = key.rpartition("/")
        layers[layer][leaf] = value.numpy()
    return {rename(layer): leaves for layer, leaves in layers.items()}


@golden.needs_golden
@pytest.mark.parametrize("save", [save_2, save_3])
@pytest.mark.parametrize(
    "case", ["msan1/case_eval_96x96", "msan2/case_eval_64x80", "msan3/case_eval_64x80"]
)
def test_file_of_the_authors(tmp_path, case, save):
    """Numbered as in a session that had built other networks before."""
    arrays, meta = golden.load(f"drrmsan_{case}")
    layers = authors_layers(case[:5], lambda name: f"{name}_7" if name[:4] == "conv" else name)
    save(tmp_path / "modelW_drrmsan.h5", layers)
    model: Any = create_model(
        "drrmsan",
        attention=case[:5],
        alphas=meta["build"]["alphas"],
        weights=tmp_path / "modelW_drrmsan.h5",
    ).eval()
    x = torch.from_numpy(arrays["x"])
    with torch.no_grad():
        maps = model.maps(x)
        for i, out in enumerate((*maps, mixed(maps, model.alphas))):
            assert golden.relative(out.sigmoid(), arrays[f"out_{i}"]) <= 1e-4
        assert golden.relative(model(x).sigmoid(), arrays["out_4"]) <= 1e-4


@golden.needs_golden
@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("msan3", "was made with attention=msan2, the model with attention=msan3"),
        ("fused", "attention=msan2, norm=False, the model with attention=msan1, norm=True"),
    ],
)
def test_file_of_another_variant(tmp_path, attention, message):
    save_2(tmp_path / "w.h5", authors_layers("msan2"))
    model = create_model("drrmsan", attention=attention)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        load_weights(model, tmp_path / "w.h5")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@golden.needs_golden
def test_every_entry_is_used_or_named(tmp_path):
    layers = authors_layers("msan2")
    model = create_model("drrmsan", attention="msan2")
    layers["conv2d_5"]["gain"] = np.ones(2, np.float32)
    save_2(tmp_path / "w.h5", layers)
    with pytest.raises(UserError, match=r"has respath1\.0\.shortcut\.conv\.gain, which the model"):
        load_weights(model, tmp_path / "w.h5")
    del layers["conv2d_5"]["gain"], layers["conv2d_5"]["kernel"]
    save_2(tmp_path / "w.h5", layers)
    with pytest.raises(UserError, match=r"is of another network.*it has conv2d/kernel"):
        load_weights(model, tmp_path / "w.h5")
