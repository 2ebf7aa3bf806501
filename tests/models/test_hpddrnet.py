"""HPDDRNet against the numbers of the authors' code, its options and memory."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false
import copy
import functools

import numpy as np
import pytest
import torch

from medseg import create_model
from medseg.errors import UserError
from medseg.kernels import use_backend
from medseg.models.ddr import DAPPM
from medseg.models.hpddrnet import MEAN, STD, HPDDRNet, clean_name
from tests import golden
from tests.memory import peak_bytes

from .watch import Ops

CASES = ("eval_128x128", "eval_72x104", "train_64x64")
DEAD = r"backbone\.(ecas|sps)\.2\."
AUX = r"decode_head\.aux_"


@functools.cache
def published(**options):
    return create_model("hpddrnet", classes=3, dropout=0.0, image_norm="imagenet", **options)


def authors(salt=0, beta_shift=0.0):
    return dict(golden.original_state("hpddrnet", salt, beta_shift))


@golden.needs_golden
@pytest.mark.parametrize(("backend", "dtype"), golden.RUNS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case, backend, dtype):
    """Their logits lie at an eighth of the size; those of their loss are ours, resized."""
    device = golden.device_for(backend, dtype, ("eca", "position"))
    arrays, meta = golden.load(f"hpddrnet/case_{case}")
    train, exact = meta["mode"] == "train", dtype is torch.float64
    model = copy.deepcopy(published(deep_supervision=train)).to(device, dtype).train(train)
    model.load_state_dict(model.translate(authors(meta["weight_salt"], meta["beta_shift"])))
    model.image_norm = "none"  # what they fed in had been normalised
    x = torch.from_numpy(arrays["x"]).to(device, dtype).requires_grad_()
    # By oneDNN's rounding one ReLU of the largest case falls on the other side of 0.
    convolutions = torch.backends.mkldnn.flags(enabled=False, allow_tf32=None)
    with use_backend(backend), torch.backends.cudnn.flags(allow_tf32=False), convolutions:
        found = model.coarse_logits(x)
        assert len(found) == meta["n_out"]
        loss = x.new_zeros(())
        for i, out in enumerate(found):
            assert golden.relative(out, arrays[f"out_{i}"]) <= (1e-10 if exact else 1e-4)
            cotangent = golden.unit(f"cotangent:{i}", tuple(out.shape), meta["cot_salt"])
            loss = loss + (out * torch.from_numpy(cotangent.astype(np.float32)).to(out)).sum()
        loss.backward()
    tolerance = 1e-7 if exact else 1e-3
    assert golden.relative(x.grad, arrays["grad_x"]) <= tolerance
    golden.check_gradients(model, arrays, "hpddrnet", clean_name, tolerance)
    if train:
        golden.check_buffers(model, arrays, "hpddrnet", clean_name, 1e-7 if exact else 1e-4, DEAD)


@golden.needs_golden
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden_pyramid(mode, dtype):
    arrays, _ = golden.load(f"ops/dappm_{mode}")
    exact = dtype is torch.float64
    model = DAPPM(32, 8, 12).to(dtype).train(mode == "train")
    weights = {key: torch.from_numpy(np.array(v)) for key, v in arrays.items() if key[:2] == "w/"}
    model.load_state_dict({pyramid_name(key[2:]): value for key, value in weights.items()})
    x = torch.from_numpy(arrays["x"]).to(dtype).requires_grad_()
    out = model(x)
    assert golden.relative(out, arrays["out"]) <= (1e-10 if exact else 1e-5)
    (out * torch.from_numpy(arrays["cot"]).to(dtype)).sum().backward()
    grads = {f"gw/{key}": model.get_parameter(pyramid_name(key)).grad for key in names(arrays)}
    top = max(np.abs(arrays[key]).max() for key in grads)
    for key, grad in {"grad_x": x.grad, **grads}.items():
        scale = max(np.abs(arrays[key]).max(), 1e-3 * top)
        difference = np.abs(grad.double().numpy() - arrays[key]).max()
        assert difference <= (1e-9 if exact else 1e-3) * scale, key
    for key, value in model.state_dict().items():
        if mode == "train" and "running_" in key:
            after = {pyramid_name(k[6:]): v for k, v in arrays.items() if k[:6] == "after/"}
            assert golden.relative(value, after[key]) <= (1e-10 if exact else 1e-5), key


def names(arrays):
    return [key[3:] for key in arrays if key[:3] == "gw/"]


def pyramid_name(key):
    return clean_name("spp." + key).removeprefix("dappm.")


def test_size_is_the_published_one(capsys):
    """10,209,519 in the authors' code, less the 3,410,435 that it never runs."""
    counts = {}
    for deep in (True, False):
        with torch.device("meta"):
            model = create_model("hpddrnet", classes=3, deep_supervision=deep)
        counts[deep] = sum(p.numel() for p in model.parameters())
    with capsys.disabled():
        print(f"\nhpddrnet: {counts[True]:,} parameters, {counts[False]:,} of them in eval mode")
    assert counts == {True: 10_209_519 - 3_410_435, False: 6_761_769}
    assert sum(b.numel() for b in published().buffers()) == 20_153


def test_start():
    """He's normal by fan-out, PyTorch's own in shortcuts, position attention near zero."""
    torch.manual_seed(0)
    model = create_model("hpddrnet")
    std = {key: float(p.detach().std()) for key, p in model.named_parameters() if p.dim() == 4}
    assert std["context.4.1.conv1.conv.weight"] == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert std["dappm.scale.1.conv.weight"] == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert std["head.conv.weight"] == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert std["context.5.0.proj.conv.weight"] == pytest.approx((1 / (3 * 256)) ** 0.5, rel=0.02)
    assert std["pa.4.conv.weight"] == pytest.approx((1 / (3 * 9 * 256)) ** 0.5, rel=0.02)
    assert float(model.pa["3"].o.weight.detach().std()) == pytest.approx(0.001, rel=0.1)


def small(**options):
    torch.manual_seed(0)
    return HPDDRNet(classes=3, width=4, **options)


def picture(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(72, 104), (8, 8), (1, 1), (7, 19)])
def test_logits_are_the_coarse_ones_resized(size):
    model = small().eval()
    x = picture(2, 3, *size)
    grown = torch.nn.functional.pad(x, (0, -size[1] % 8, 0, -size[0] % 8), mode="replicate")
    with torch.no_grad():
        coarse = model.coarse_logits(grown)[0]
        want = torch.nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear")
        assert coarse.shape == (2, 3, grown.shape[2] // 8, grown.shape[3] // 8)
        torch.testing.assert_close(model(x), want[:, :, : size[0], : size[1]])


def test_auxiliary_head_leaves_the_logits_alone():
    both, one = small(dropout=0.0), small(dropout=0.0, deep_supervision=False)
    one.load_state_dict(both.state_dict(), strict=False)
    x = picture(2, 3, 40, 56)
    outputs = both.train()(x)
    torch.testing.assert_close(outputs.logits, one.train()(x), rtol=0, atol=0)
    assert [aux.shape for aux in outputs.aux] == [(2, 3, 40, 56)]


def test_ablation_has_no_attention():
    """Without it the network is DDRNet: the same names but for those of attention."""
    full, bare = small(), small(attention="none")
    gone = {key for key in full.state_dict() if key not in bare.state_dict()}
    assert {key.partition(".")[0] for key in gone} == {"eca", "pa"}
    assert set(bare.state_dict()) < set(full.state_dict())
    with Ops() as ops, torch.no_grad():
        bare(picture(2, 3, 64, 64))
    assert not ops.fused


def test_residual_of_position_attention():
    """Where attention gives nothing, its residual hands the map on, as DDRNet would."""
    full, bare = small(pa_residual=True).eval(), small(attention="none").eval()
    closed = small().eval()
    for model in (full, closed):
        model.load_state_dict(bare.state_dict(), strict=False)
        for part in model.pa.values():
            torch.nn.init.zeros_(part.o.weight)
        for part in model.eca.values():
            torch.nn.init.zeros_(part.conv.weight)  # a gate of one half
    x = picture(1, 3, 64, 64)
    with torch.no_grad():
        stem = full.stem(x)
        context, down = full.context["3"](stem), full.fuse["3"].down(full.spatial["3"](stem).relu())
        opened, _ = full._stage("3", stem, stem)
        shut, _ = closed._stage("3", stem, stem)
    torch.testing.assert_close(opened, context / 2 + down)
    torch.testing.assert_close(shut, context / 2)


def test_depth():
    deep = small(depth=3)
    assert deep.made_with(deep.state_dict()) == {
        "in_channels": 3, "classes": 3, "width": 4, "depth": 3,
    }  # fmt: skip
    acts = [block.act for block in deep.context["3"]]
    assert acts == [True, True, False]


def test_images_as_the_authors_had_them():
    plain, normed = small().eval(), small(image_norm="imagenet").eval()
    x = picture(1, 3, 32, 32)
    mean, std = (torch.tensor(t)[:, None, None] for t in (MEAN, STD))
    with torch.no_grad():
        torch.testing.assert_close(normed(x), plain((x * 255 - mean) / std))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"attention": "eca"}, "attention must be one of 'fused', 'none', got 'eca'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"image_norm": "caffe"}, "image_norm must be one of 'none', 'imagenet', got 'caffe'"),
        (
            {"image_norm": "imagenet", "in_channels": 1},
            "image_norm='imagenet' is for 3 channels, got in_channels=1",
        ),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(UserError, match=message):
        create_model("hpddrnet", **options)


@pytest.fixture
def two_threads():
    """Each one more takes its own room in PyTorch's fused attention."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_memory_of_position_attention_at_1024(training, two_threads):
    """Both modules on the maps of an image of 1024 x 1024: a tenth of the plain form's peak."""
    torch.manual_seed(0)
    modules = create_model("hpddrnet").train(training).pa
    maps = {"3": torch.randn(1, 128, 64, 64), "4": torch.randn(1, 256, 32, 32)}

    def run():
        for stage, x in maps.items():
            with torch.set_grad_enabled(training):
                out = modules[stage](x.requires_grad_(training))
            if training:
                torch.autograd.grad(out.sum(), [x, *modules[stage].parameters()])

    ours = peak_bytes(run)
    with use_backend("reference"):
        plain = peak_bytes(run)
    assert plain > 2 * 4096 * 4096 * 4  # two matrices at least, so the meter sees them
    assert ours <= plain / 10, f"{ours / 1e6:.1f} MB of {plain / 1e6:.1f}"
