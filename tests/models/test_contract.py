"""What every registered network must do, whatever it is."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from medseg import create_model, list_models
from medseg.models import Outputs

CLASSES = 3


@pytest.fixture(scope="module", params=list_models())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def built(name):
    """One network per name for the whole file; tests that change it take a copy."""
    torch.manual_seed(0)
    return create_model(name, classes=CLASSES)


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


def main_logits(out):
    return out.logits if isinstance(out, Outputs) else out


def image(model, n=2, tiles=(2, 3), **options):
    """Deterministic, of the smallest legal height and width times ``tiles``."""
    m = model.size_multiple
    generator = torch.Generator().manual_seed(1)
    shape = (n, model.in_channels, tiles[0] * m, tiles[1] * m)
    return torch.rand(shape, generator=generator).to(**options)


def test_shape_and_attributes(model):
    x = image(model)
    out = model(x)
    assert out.shape == (2, CLASSES, *x.shape[2:])
    assert out.dtype is torch.float32
    assert (model.in_channels, model.classes) == (3, CLASSES)


@pytest.mark.parametrize(("in_channels", "classes"), [(1, 1), (4, 2)])
def test_channels_and_classes(name, in_channels, classes):
    model = create_model(name, in_channels=in_channels, classes=classes).eval()
    with torch.no_grad():
        out = model(image(model, n=1, tiles=(1, 1)))
    assert out.shape[1] == classes


def test_gradient_reaches_everything(model):
    x = image(model).requires_grad_()
    model(x).square().mean().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_train_changes_statistics_and_eval_does_not(model):
    x = image(model)
    before = copy.deepcopy(dict(model.named_buffers()))
    with torch.no_grad():
        model.train()(x)
        trained = copy.deepcopy(dict(model.named_buffers()))
        first, second = model.eval()(x), model(x)
    for key, value in before.items():
        assert not torch.equal(trained[key], value), key
    assert all(torch.equal(value, trained[key]) for key, value in model.named_buffers())
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_batch_does_not_matter_in_eval(model):
    x = image(model.eval())
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt"])
def test_weights_round_trip(name, model, kind, tmp_path):
    path = tmp_path / f"weights.{kind}"
    state = model.state_dict()
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    again = create_model(name, classes=CLASSES, weights=path)
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    torch.manual_seed(0)
    x, out = image(model), model(image(model))
    torch.manual_seed(0)
    torch.testing.assert_close(again(x), out, rtol=0, atol=0)


def test_copy_is_independent(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        out = other.eval()(image(model))
    assert not torch.equal(out, model.eval()(image(model)))


@pytest.mark.parametrize("size", [(33, 47), (5, 18)])
@pytest.mark.parametrize("training", [False, True])
def test_any_size(model, size, training):
    """Whatever the body needs, logits come at the size of the image."""
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = main_logits(model.train(training)(x))
    assert out.shape == (2, CLASSES, *size)
    assert out.isfinite().all()


def test_odd_size_is_the_image_continued(model):
    """As if the caller had repeated the last row and column, and cut the logits."""
    x = image(model.eval())
    height, width = (model.legal_size(side) for side in x.shape[2:])
    small = x[:, :, : height - 1, : width - 2]
    grown = torch.nn.functional.pad(small, (0, 2, 0, 1), mode="replicate")
    if (model.legal_size(height - 1), model.legal_size(width - 2)) != (height, width):
        pytest.skip("the network takes that size as it is")
    with torch.no_grad():
        torch.testing.assert_close(model(small), model(grown)[:, :, :-1, :-2], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 2, 32, 32), (1, 3, 0, 32)])
def test_refuses_other_ranks_and_channels(model, shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), H and W at least 1, got"):
        model(torch.zeros(shape))


def test_channels_last_gives_the_same(model):
    x = image(model.eval())
    with torch.no_grad():
        out = model(x)
        other = model.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
    torch.testing.assert_close(other, out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(model, dtype):
    x = image(model.eval())
    with torch.no_grad():
        out = model(x)
        other = model.to(dtype)(x.to(dtype))
    assert other.dtype is dtype
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-4
    assert (other.double() - out).abs().max() <= tolerance * out.abs().max()


def test_autocast(model):
    x = image(model)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype is p.dtype for p in model.parameters())


def test_export(model):
    x = image(model.eval())
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_compile(model):
    """One graph, forward and backward; the code that inductor makes is left to the layers."""
    model.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, torch.nn.Dropout2d) else None)
    other = copy.deepcopy(model)
    x = image(model)
    out, fused = model(x), torch.compile(other, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(fused, out, rtol=1e-3, atol=1e-4)
    out.square().mean().backward()
    fused.square().mean().backward()
    for (key, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        scale = max(float(a.grad.abs().max()), 1e-4)
        assert float((a.grad - b.grad).abs().max()) <= 0.05 * scale, key
    for (key, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, msg=key)
