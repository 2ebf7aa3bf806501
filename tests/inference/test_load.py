"""What a training wrote is opened whole; what it did not write is refused in a sentence."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg.errors import UserError
from medseg.inference import Predictor, load_trained

from .conftest import write_run


def test_run_folder_and_file_are_the_same(run):
    folder, file = load_trained(run), load_trained(run / "best.safetensors")
    assert folder.names == ("background", "cytoplasm", "nucleus") and folder.values == (0, 128, 255)
    assert (folder.model, folder.channels, folder.view.size) == ("hpddrnet_s", 3, 32)
    assert (folder.epoch, folder.dice, folder.name) == (2, 0.5, "fitted")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(folder.network(x), file.network(x))


def test_folding_changes_no_more_than_rounding(run):
    plain, folded = load_trained(run, fold=False), load_trained(run)
    assert not plain.network.training and len(plain.network.state_dict()) > len(
        folded.network.state_dict()
    )
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(plain.network(x), folded.network(x), rtol=1e-4, atol=1e-4)


def test_options_of_the_network_are_read(tmp_path):
    run = write_run(tmp_path / "r", options={"deep_supervision": True, "attention": "none"})
    assert load_trained(run).options == {"deep_supervision": True, "attention": "none"}


def test_view_of_patches(patch_run):
    view = load_trained(patch_run).view
    assert (view.size, view.window, view.patches) == (32, 32, True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_of_any_kind(tmp_path, channels, dtype):
    predictor = Predictor(load_trained(write_run(tmp_path / "r", in_channels=channels)))
    pixels = np.random.default_rng(0).integers(0, 255, (20, 31, 4)).astype(dtype)
    for shown in (pixels, pixels[:, :, :3], pixels[:, :, 0], pixels[:, :, :1]):
        probabilities = predictor.probabilities(shown)
        assert probabilities.shape == (3, 20, 31)
        torch.testing.assert_close(probabilities.sum(0), torch.ones(20, 31))
        assert np.array_equal(probabilities.argmax(0).numpy(), predictor.labels(shown))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((2, 3, 3), np.float32), "uint8 or uint16, got float32"),
        (np.zeros(4, np.uint8), "must be"),
        (np.zeros((0, 3), np.uint8), "must be"),
    ],
)
def test_strange_arrays_are_refused(run, pixels, words):
    with pytest.raises(ValueError, match=words):
        Predictor(load_trained(run)).labels(pixels)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": None}, "does not say its classes"),
        ({"classes": "1000000000"}, "classes = 1000000000"),
        ({"classes": "true"}, "classes = true"),
        ({"model": "resnet"}, "model = resnet"),
        ({"in_channels": "-3"}, "in_channels = -3"),
        ({"size": "1e99"}, "size = 1e99"),
        ({"size": '"x'}, "size"),
        ({"class_names": '["a", "b"]'}, "class_names"),
        ({"mask_values": "[0, 0, 1]"}, "mask_values"),
        ({"mask_values": "[0, 1, 70000]"}, "mask_values"),
        ({"mask_values": "[" * 5000}, "mask_values"),
        ({"options": '{"widht": 3}'}, "has no option 'widht'"),
        ({"options": "[1]"}, "options"),
        ({"classes": "4", "class_names": '["a", "b", "c", "d"]', "mask_values": "[0,1,2,3]"}, "4"),
        ({"model": "dra_net_s"}, "another network"),
    ],
)
def test_strange_facts_are_refused(run, tmp_path, change, words):
    from safetensors import safe_open

    with safe_open(run / "best.safetensors", framework="pt") as file:
        facts = dict(file.metadata())
    facts = {key: value for key, value in (facts | change).items() if value is not None}
    save_file(load_file(run / "best.safetensors"), tmp_path / "w.safetensors", facts)
    with pytest.raises(UserError) as caught:
        load_trained(tmp_path / "w.safetensors")
    assert words in str(caught.value)


HEADER = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
DAMAGED = {
    "empty": b"",
    "no header": b"\xff" * 8,
    "text": b"hello, this is no weight file at all",
    "long header": struct.pack("<Q", 1 << 60) + b"{}",
    "absurd tensor": struct.pack("<Q", len(HEADER)) + HEADER.encode(),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="damaged") as caught:
        load_trained(tmp_path / "w.safetensors")
    assert caught.value.code == 3


def test_cut_file_is_refused(run, tmp_path):
    whole = (run / "best.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged"):
        load_trained(tmp_path / "w.safetensors")


def test_missing_files_and_devices_are_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"has no best\.safetensors"):
        load_trained(tmp_path)
    with pytest.raises(UserError, match="is not there"):
        load_trained(tmp_path / "other.safetensors")
    for device in ("gpu", "cuda:x", "cpu:1", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {device}"):
            load_trained(run, device)
