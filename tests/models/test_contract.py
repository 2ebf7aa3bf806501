"""What every registered network must do, whatever it is.

The small variants run; of the others only the build is looked at, which their own tests go beyond.
"""

import copy

import pytest
import torch
from safetensors.torch import save_file

from medseg import create_model, list_models
from medseg.errors import UserError
from medseg.kernels import use_backend
from medseg.kernels._backend import why_not
from medseg.layers import PositionAttention
from medseg.models import Network, Outputs, load_weights

from .watch import Ops, kept_bytes, key

CLASSES = 3
SMALL = list_models("*_s")
pytestmark = pytest.mark.usefixtures("no_small_position")


@pytest.fixture(scope="module", params=SMALL)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def built(name):
    """One network per name for the whole file; tests that change it take a copy."""
    torch.manual_seed(0)
    model = create_model(name, classes=CLASSES)
    for module in model.modules():  # what is random cannot be compared
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, PositionAttention):
            module.dropout = 0.0
    return model


@pytest.fixture
def model(built):
    return copy.deepcopy(built)


def image(model, n=2, size=(32, 48), **options):
    """Deterministic, of a legal size."""
    generator = torch.Generator().manual_seed(1)
    shape = (n, model.in_channels, *(model.legal_size(side) for side in size))
    return torch.rand(shape, generator=generator).to(**options)


def tensors(out):
    """Logits and those of auxiliary heads."""
    return [out.logits, *out.aux] if isinstance(out, Outputs) else [out]


def backward(model, x):
    """Outputs, after the gradients of all of them are in the parameters."""
    out = tensors(model(x))
    torch.stack([each.square().mean() for each in out]).sum().backward()
    return [each.detach() for each in out]


def assert_same(model, other, rtol):
    """Gradients and running statistics of two networks of one class."""
    top = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        if a.grad is None:  # of an auxiliary head, in eval mode
            assert b.grad is None, name
            continue
        scale = max(float(a.grad.abs().max()), 1e-3 * top)  # biases before a norm have 0
        assert float((a.grad - b.grad).abs().max()) <= rtol * scale, name
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=rtol, atol=rtol, msg=name)


@pytest.mark.parametrize("size", list_models())
def test_every_variant_builds(size):
    with torch.device("meta"):
        model = create_model(size, in_channels=4, classes=2)
    assert isinstance(model, Network)
    assert (model.in_channels, model.classes) == (4, 2)
    assert model.paper and 2015 < model.year < 2030 and model.fused
    assert any(size.startswith(small.removesuffix("_s")) for small in SMALL)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("deep", [False, True])
def test_outputs(name, deep, training):
    """Logits at the size of the image; in training, those of auxiliary heads, if asked for."""
    model = create_model(name, classes=CLASSES, deep_supervision=deep).train(training)
    x = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(x)
    assert isinstance(out, Outputs if deep and training else torch.Tensor)
    assert len(tensors(out)) > 1 or not (deep and training)
    for each in tensors(out):
        assert each.shape == (2, CLASSES, 33, 47) and each.dtype is torch.float32
        assert each.isfinite().all()


@pytest.mark.parametrize(("in_channels", "classes"), [(1, 1), (4, 2)])
def test_channels_and_classes(name, in_channels, classes):
    model = create_model(name, in_channels=in_channels, classes=classes).eval()
    with torch.no_grad():
        assert model(image(model, n=1, size=(1, 1))).shape[1] == classes


@pytest.mark.parametrize("size", [(5, 18), (1, 1)])
def test_smaller_than_the_deepest_level(model, size):
    with torch.no_grad():
        out = model.eval()(torch.rand(1, 3, *size))
    assert out.shape == (1, CLASSES, *size) and out.isfinite().all()


def test_odd_size_is_the_image_continued(model):
    """As if the caller had repeated the last row and column, and cut the logits."""
    x = image(model.eval())
    height, width = x.shape[2:]
    small = x[:, :, : height - 1, : width - 2]
    if (model.legal_size(height - 1), model.legal_size(width - 2)) != (height, width):
        pytest.skip("the network takes that size as it is")
    grown = torch.nn.functional.pad(small, (0, 2, 0, 1), mode="replicate")
    with torch.no_grad():
        torch.testing.assert_close(model(small), model(grown)[:, :, :-1, :-2], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 2, 32, 32), (1, 3, 0, 32)])
def test_refuses_other_ranks_and_channels(model, shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), H and W at least 1, got"):
        model(torch.zeros(shape))


def test_gradient_reaches_everything(model):
    x = image(model).requires_grad_()
    backward(model, x)
    assert x.grad is not None and x.grad.isfinite().all()
    for key_, parameter in model.named_parameters():
        assert parameter.grad is not None, key_
        assert parameter.grad.isfinite().all(), key_


def test_train_changes_statistics_and_eval_does_not(model):
    x = image(model)
    before = copy.deepcopy(dict(model.named_buffers()))
    with torch.no_grad():
        model.train()(x)
        trained = copy.deepcopy(dict(model.named_buffers()))
        first, second = model.eval()(x), model(x)
    for key_, value in before.items():
        assert not torch.equal(trained[key_], value) or "running_" not in key_, key_
    assert all(torch.equal(value, trained[key_]) for key_, value in model.named_buffers())
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_batch_does_not_matter_in_eval(model):
    x = image(model.eval())
    with torch.no_grad():
        both, alone = model(x)[:1], model(x[:1])
    assert float((both - alone).abs().max()) <= 1e-4 * float(alone.abs().max())


@pytest.mark.parametrize("kind", ["safetensors", "pth", "pt"])
def test_weights_round_trip(name, model, kind, tmp_path):
    path = tmp_path / f"weights.{kind}"
    state = model.state_dict()
    save_file(state, path) if kind == "safetensors" else torch.save(state, path)
    again = create_model(name, classes=CLASSES, weights=path)
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key_]) for key_, value in again.state_dict().items())


@pytest.mark.parametrize("spoil", [torch.Tensor.sum, lambda t: t.flatten(), lambda t: t[None]])
def test_hostile_shapes_are_refused(name, model, spoil, tmp_path):
    state = {key_: spoil(value) for key_, value in model.state_dict().items()}
    torch.save(state, tmp_path / "odd.pth")
    for reset_head in (False, True):
        with pytest.raises(UserError, match=r"weights .*odd\.pth: "):
            load_weights(model, tmp_path / "odd.pth", reset_head=reset_head)


def test_head_of_another_number_of_classes(name, model, tmp_path):
    """Refused, with the way out; on that way all but the head is loaded."""
    other = create_model(name, classes=CLASSES + 2)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"classes={CLASSES + 2}.*reset_head=True"):
        load_weights(model, tmp_path / "other.pth")
    before = copy.deepcopy(model.state_dict())
    anew = load_weights(model, tmp_path / "other.pth", reset_head=True)
    assert 0 < len(anew) < len(before) / 4
    for key_, value in model.state_dict().items():
        assert torch.equal(value, before[key_] if key_ in anew else other.state_dict()[key_])


def test_copy_is_independent(model):
    x, other = image(model.eval()), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert not torch.equal(other(x), model(x))


@pytest.mark.parametrize("training", [False, True])
def test_fused_equals_reference(model, training):
    """Outputs, gradients and statistics; in float64, where no rounding flips a ReLU.

    A batch norm over the two numbers of a batch, as in split attention's gates, magnifies them yet.
    """
    plain = copy.deepcopy(model.to(torch.float64).train(training))
    x = image(model, dtype=torch.float64)
    ours = backward(model, x)
    with use_backend("reference"):
        theirs = backward(plain, x)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())
    assert_same(plain, model, 1e-6)


def test_keeps_no_more_for_backward_than_plain(model):
    reason = why_not("cpu", "eca", "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    x = image(model, size=(96, 96))
    ours = kept_bytes(model, lambda: model(x))
    with use_backend("reference"):
        plain = kept_bytes(model, lambda: model(x))
    assert ours <= plain, f"{ours} bytes, plain PyTorch {plain}"


def test_attention_is_fused_or_left_out(name, model):
    """`fused` names the ops that run; attention="none" runs none and has no more parameters."""
    x = image(model.eval())
    bare = create_model(name, classes=CLASSES, attention="none").eval()
    with Ops() as ops, torch.no_grad():
        model(x)
    with Ops() as none, torch.no_grad():
        out = bare(x)
    assert ops.fused == {key(function) for function in model.fused}
    assert not none.fused and out.shape == (2, CLASSES, *x.shape[2:])
    counts = [sum(p.numel() for p in m.parameters()) for m in (bare, model)]
    assert counts[0] <= counts[1]
    backward(bare.train(), x)
    assert all(p.grad is not None for p in bare.parameters())


def test_channels_last_gives_the_same_without_copies(model):
    x = image(model.eval())
    with torch.no_grad():
        out = model(x)
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        with Ops() as ops:
            other = model(x)
    torch.testing.assert_close(other, out, rtol=1e-4, atol=1e-4 * float(out.abs().max()))
    maps = [s for s in ops.copied if len(s) == 4 and min(s[2:]) > 1 and s[0] == 2]
    assert not maps, f"maps are copied: {maps}"


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
        out = tensors(model(x))
    torch.stack([each.float().square().mean() for each in out]).sum().backward()
    assert all(p.grad is not None and p.grad.dtype is p.dtype for p in model.parameters())


@pytest.mark.parametrize("wrong", ["no", 1, None])
def test_switches_are_true_or_false(name, wrong):
    with pytest.raises(UserError, match="deep_supervision must be True or False"):
        create_model(name, deep_supervision=wrong)


def test_training_on_no_image(model):
    """As a last batch may be, on one of many devices: gradients of zero."""
    frozen = model.train()
    for module in frozen.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # a batch norm refuses to norm nothing
    outs = tensors(frozen(image(model, n=0)))
    torch.stack([out.sum() for out in outs]).sum().backward()
    assert all(out.shape[0] == 0 for out in outs)
    grads = [p.grad for p in frozen.parameters() if p.grad is not None]
    assert grads and not any(grad.any() for grad in grads)
