"""Files made to harm: refused in one printable sentence that names the file, and soon."""

import copy
import pickle
import time
import zipfile

import pytest
import torch

from medseg import create_model
from medseg.errors import UserError
from medseg.models import load_weights
from medseg.models.checkpoint import read_state
from medseg.models.names import renamed

SIGN = "context_branch_layers.0.0.conv1.conv.weight"  # by which a file of HPDDRNet is known
ODD = "a\nb\x1b[31m" + "x" * 5000
SPOILT = {
    "huge": lambda: torch.zeros(1).expand(1 << 40),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "meta": lambda: torch.zeros(3, device="meta"),
    "sparse": lambda: torch.zeros(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
    "half a byte": lambda: torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


@pytest.fixture(scope="module")
def models():
    return {name: create_model(name, width=4) for name in ("dra_net", "hpddrnet")}


def refused(model, path, *parts):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert message.startswith(f"weights {path}: ") and message.isprintable()
    assert len(message) < len(str(path)) + 500
    for part in parts:
        assert part in message, message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def of_authors(model):
    state = model.state_dict()
    state[SIGN] = state.pop("context.3.0.conv1.conv.weight")
    return state


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("key", ["data_preprocessor.mean", "head.bn1.bias", "decode_head.x", ODD])
def test_spoilt_tensor_of_the_authors(models, tmp_path, key, spoil):
    torch.save(of_authors(models["hpddrnet"]) | {key: spoil()}, tmp_path / "odd.pth")
    refused(models["hpddrnet"], tmp_path / "odd.pth", key[:1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("key", ["head.bias", "head.weight", "enc1.proj.weight"])
def test_spoilt_tensor(models, tmp_path, key, spoil):
    torch.save(models["dra_net"].state_dict() | {key: spoil()}, tmp_path / "odd.pth")
    refused(models["dra_net"], tmp_path / "odd.pth", f"{key} is ")


@pytest.mark.parametrize("value", [torch.zeros(1 << 20), torch.zeros(2), torch.zeros(3)])
def test_mean_of_images(models, tmp_path, value):
    state = of_authors(models["hpddrnet"]) | {"img_norm_cfg.mean": value}
    torch.save(state, tmp_path / "odd.pth")
    refused(models["hpddrnet"], tmp_path / "odd.pth", "img_norm_cfg.mean is [0.0, 0.0", "ImageNet")


@pytest.mark.parametrize("extra", [{ODD: 1}, {"head.bias": 7}, {"data_preprocessor." + ODD: 3}])
@pytest.mark.filterwarnings("ignore:these weights were trained")
def test_names_are_printable(models, tmp_path, extra):
    extra = {key: torch.ones(count) for key, count in extra.items()}
    for name, model in models.items():
        state = of_authors(model) if name == "hpddrnet" else model.state_dict()
        torch.save(state | extra, tmp_path / "odd.pth")
        refused(model, tmp_path / "odd.pth")
    torch.save(extra, tmp_path / "other.pth")
    refused(models["dra_net"], tmp_path / "other.pth")


@pytest.mark.filterwarnings("ignore:these weights were trained")
def test_two_names_of_one_entry(models, tmp_path):
    model = models["hpddrnet"]
    twice = {"backbone.stem.0.bn.bias": torch.ones(4), "stem.conv1.bn.bias": torch.zeros(4)}
    torch.save(of_authors(model) | twice, tmp_path / "twice.pth")
    words = "backbone.stem.0.bn.bias are two names of stem.conv1.bn.bias"
    refused(model, tmp_path / "twice.pth", words, "leave one")
    torch.save(
        {"ecaa1.conv.weight": torch.ones(1), "up6.tranconv.0.weight": torch.ones(1)}
        | {"conv10.bias": torch.ones(1), "head.bias": torch.zeros(1)},
        tmp_path / "dra.pth",
    )
    refused(models["dra_net"], tmp_path / "dra.pth", "conv10.bias and head.bias are two names of")
    with pytest.raises(UserError, match=r"'a\\n.*\.\.\. and b are two names of c; leave one"):
        renamed({ODD: torch.ones(1), "b": torch.ones(1)}, lambda key: "c")


@pytest.fixture
def soon():
    start = time.process_time()
    yield
    assert time.process_time() - start < 10


def rewritten(path, change, method=zipfile.ZIP_STORED):
    """The same file with its data.pkl changed."""
    with zipfile.ZipFile(path) as old:
        held = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in held.items():
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_compressed_pickle(models, tmp_path, soon):
    path = tmp_path / "deflated.pth"
    torch.save({"a": torch.ones(1)}, path)
    rewritten(path, lambda data: data[:2] + b"]0" * 10_000_000 + data[2:], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    refused(models["dra_net"], path, "is compressed, which PyTorch does not do")


@pytest.mark.parametrize("zipped", [True, False])
def test_long_pickle(models, tmp_path, zipped, soon):
    path = tmp_path / "long.pth"
    if zipped:
        torch.save({"a": torch.ones(1)}, path)
        rewritten(path, lambda data: data[:2] + b"]0" * 10_000_000 + data[2:])
    else:
        path.write_bytes(pickle.dumps(None, 2)[:2] + b"]0" * 10_000_000 + b"N.")
    refused(models["dra_net"], path, "more than 1048576 steps of pickle")


def test_modules_that_share_children(models, tmp_path, soon):
    module = torch.nn.Identity()
    for _ in range(40):
        module = torch.nn.Sequential(module, module)
    torch.save({"model": module}, tmp_path / "shared.pth")
    with pytest.raises(UserError, match="a model of more than 16384 modules"):
        read_state(tmp_path / "shared.pth", unsafe=True)


def test_module_that_stands_in_two_places(tmp_path):
    layer = torch.nn.Linear(2, 2)
    module = torch.nn.Sequential(layer, layer)
    torch.save(module, tmp_path / "tied.pth")
    assert read_state(tmp_path / "tied.pth", unsafe=True).keys() == module.state_dict().keys()
