"""Damaged and hostile files of Keras: each is refused in one sentence, and nothing is done."""

import builtins
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UserError
from medseg.models.keras import read_h5

from .keras_files import h5py, save_2, save_3, tensors


def refused(path, *parts):
    with pytest.raises(UserError) as caught:
        read_h5(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for part in (str(path), *parts):
        assert part in message, message


def spoil(change, tmp_path, save=save_2):
    """A good file, changed by ``change(h5py file)``; a read one must be refused."""
    path = tmp_path / "w.h5"
    save(path, tensors())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("save", [save_2, save_3])
def test_truncated(tmp_path, share, save):
    path = spoil(lambda file: None, tmp_path, save)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "the file is damaged or no HDF5")


@pytest.mark.parametrize("save", [save_2, save_3])
def test_damaged_bytes_never_escape_as_other_errors(tmp_path, save):
    """Whatever a byte is turned into, the file is read or refused in words."""
    path = spoil(lambda file: None, tmp_path, save)
    data, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        spoiled = np.frombuffer(data, np.uint8).copy()
        at = random.integers(0, min(len(data), 6000), 4)
        spoiled[at] = random.integers(0, 256, 4)
        path.write_bytes(spoiled.tobytes())
        try:
            found = read_h5(path)
        except UserError:
            continue
        assert sum(t.nbytes for t in found.values()) <= len(data)


K = "conv2d_9/conv2d_9/kernel:0"


def replace(at, **options):
    def change(file):
        del file[at]
        file.create_dataset(at, **options)

    return change


def linked(link):
    def change(file):
        del file[K]
        file[K] = link

    return change


def outside(file):
    del file[K]
    file.create_dataset(K, (2,), "f4", external=[("/etc/passwd", 0, 8)])


def virtual(file):
    del file[K]
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (2,))
    file.create_virtual_dataset(K, layout)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (replace(K, shape=(1 << 40, 9), dtype="f4", chunks=(1, 9)), ["too small"]),
        (replace(K, shape=(1 << 24,), dtype="f4"), ["is said to be (16777216,)", "too small"]),
        (replace(K, data=np.zeros((64, 64)), compression="gzip"), ["is compressed"]),
        (replace(K, data=np.array([b"x"])), ["conv2d_9/kernel is no array of numbers"]),
        (replace(K, data=np.zeros(2, [("a", "f4")])), ["is no array of numbers"]),
        (replace(K, data=np.zeros(2, "c8")), ["is no array of numbers"]),
        (linked(h5py.ExternalLink("other.h5", "/x")), ["a link to another place at 'conv2d_9/k"]),
        (linked(h5py.SoftLink("/up6/up6/bias:0")), ["a link to another place"]),
        (outside, ["lies in another file, which is not read"]),
        (virtual, ["lies in another file, which is not read"]),
        (lambda file: file.__delitem__(K), ["lists 'conv2d_9/kernel:0', which it does not hold"]),
        (lambda file: file.__delitem__("up6"), ["lists 'up6', which it does not hold"]),
        (lambda file: file.attrs.__setitem__("layer_names", [b"../x"]), ["does not hold"]),
        (lambda file: file.attrs.__setitem__("layer_names", [b"/up6"]), ["does not hold"]),
        (lambda file: file.attrs.__setitem__("layer_names", [1, 2]), ["which is no name"]),
        (lambda file: file.attrs.__setitem__("layer_names", [b"\xff"]), ["damaged"]),
        (
            lambda file: file.attrs.__setitem__("layer_names", [b"up6"] * 2),
            ["holds up6/kernel twice"],
        ),
        (lambda file: file.attrs.__setitem__("layer_names", [b"input_1"]), ["none of which has"]),
        (lambda file: file.attrs.__setitem__("layer_names", h5py.Empty("S1")), ["is no name"]),
        (lambda file: file.attrs.__delitem__("layer_names"), ["holds no weights of Keras"]),
    ],
)
def test_hostile(tmp_path, change, parts):
    refused(spoil(change, tmp_path), *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda file: file.create_dataset("layers/conv2d/odd", data=1.0), ["layers/conv2d/odd"]),
        (lambda file: file.create_group("/".join(["layers", *"x" * 40])), ["more than 16 deep"]),
        (lambda file: file.__setitem__("layers/loop", file["layers"]), ["more than 16 deep"]),
    ],
)
def test_hostile_groups(tmp_path, change, parts):
    refused(spoil(change, tmp_path, save_3), *parts)


def test_a_heap_that_never_ends(tmp_path):
    """HDF5 2.0 reads an entry without length for ever."""
    path = spoil(lambda file: None, tmp_path)
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL") + 16
    data[at : at + 16] = bytes(16)
    path.write_bytes(data)
    refused(path, "damaged", "an entry of odd length")


def test_many_names_for_the_same_bytes(tmp_path):
    """Each link costs little; read again and again, a small file would fill the memory."""

    def change(file):
        big = file.create_dataset("up6/up6/big", data=np.zeros(5000, np.float32))
        names = [f"up6/up6/big{i}" for i in range(100)]
        for name in names:
            file[name] = big
        file["up6"].attrs["weight_names"] = [n.removeprefix("up6/").encode() for n in names]

    refused(spoil(change, tmp_path), "for which the file is too small")


def test_other_files(tmp_path):
    refused(tmp_path / "none.h5", "damaged or no HDF5")
    (tmp_path / "text.h5").write_text("no")
    refused(tmp_path / "text.h5", "damaged or no HDF5")
    h5py.File(tmp_path / "empty.h5", "w").close()
    refused(tmp_path / "empty.h5", "holds no weights of Keras")


def test_without_h5py(tmp_path, monkeypatch):
    true = builtins.__import__

    def missing(name, *args):
        if name == "h5py":
            raise ModuleNotFoundError("No module named 'h5py'")
        return true(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    refused(Path(tmp_path / "w.h5"), "reading it needs h5py", "pip install 'medseg[keras]'")
