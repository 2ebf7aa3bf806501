"""Each small network as one graph, in PyTorch and in onnxruntime, at odd sizes too."""

import json

import pytest
import torch

from medseg import export, list_models
from medseg.inference import load_trained

SIZES = ((1, 64, 48), (2, 37, 53), (3, 1, 17))
WANTED = 1e-4


@pytest.fixture(scope="module", params=list_models("*_s"))
def trained(request, run_of):
    return load_trained(run_of(request.param))


def images(trained):
    for n, height, width in SIZES:
        yield torch.rand(n, trained.channels, height, width)


def assert_same(trained, run):
    for image in images(trained):
        with torch.inference_mode():
            wanted = trained.network(image)
            error = float((run(image) - wanted).abs().max())
        assert error <= WANTED, image.shape


def test_graph_holds_for_all_sizes(trained, captured):
    """With the guards that a reader of the file meets; nothing of medseg is left in it."""
    program = captured(trained)
    assert_same(trained, program.module())
    assert not any("medseg" in str(node.target) for node in program.graph.nodes)


def test_onnx(trained, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra [export] is not installed")
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    out = tmp_path / "n.onnx"
    sizes = [f"{height}x{width}" for _, height, width in SIZES]
    assert not export.main(
        ["--weights", str(trained.path), "--out", str(out), "--json", "--sizes", *sizes]
    )
    document = json.loads(capsys.readouterr().out)
    assert [(c["images"], c["height"], c["width"]) for c in document["checks"]] == list(SIZES)
    assert all(0 < c["error"] <= WANTED for c in document["checks"])
    session = onnxruntime.InferenceSession(str(out))
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 3, "height", "width"]
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["mask_values"]) == [0, 128, 255] and known["model"] == trained.model
    assert_same(
        trained, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    )
