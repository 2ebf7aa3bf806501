"""E-DU against its definition written out, its parameter counts, and its options."""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from medseg import create_model
from medseg.errors import UserError
from medseg.kernels import use_backend
from medseg.kernels._backend import why_not
from medseg.models.e_du import EDU

# The filter of the preset "mde" as one 7x7 stencil times 8192: a quadrant, from the centre out.
QUADRANT = (
    (6192, 852, -216, -20),
    (852, 287, -154, -15),
    (-216, -154, -52, -6),
    (-20, -15, -6, -1),
)


def image(n=2, size=(32, 48), dtype=torch.float32):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1)).to(dtype)


def build(**options):
    """A narrow network whose statistics and norms are no longer those of a new one."""
    torch.manual_seed(0)
    model = EDU(**{"classes": 2, "width": 8, **options})
    with torch.no_grad():
        model(image())
        for key, value in model.state_dict().items():
            if ".bn." in key and value.is_floating_point():
                value += 0.1 * torch.rand_like(value)
    return model


class Written:
    """The network as the specification has it, on the entries of a state dict."""

    def __init__(self, state, training):
        self.state, self.training = state, training

    def norm(self, key, x):
        entries = (self.state[f"{key}.bn.{leaf}"] for leaf in ("weight", "bias"))
        mean, var = (self.state[f"{key}.bn.running_{leaf}"].clone() for leaf in ("mean", "var"))
        return F.batch_norm(x, mean, var, *entries, training=self.training).relu()

    def conv(self, key, x):
        weight = self.state[f"{key}.conv.weight"]
        return self.norm(key, F.conv2d(x, weight, padding=weight.shape[2] // 2))

    def dense(self, key, x):
        for i in range(4):
            inside = self.conv(f"{key}.layers.{i}.0", x)
            x = torch.cat([x, self.conv(f"{key}.layers.{i}.1", inside)], 1)
        return x

    def mde(self, x):
        half = torch.tensor(QUADRANT, dtype=x.dtype) / 8192
        rows = torch.cat([half.flip(0)[:-1], half])
        stencil = torch.cat([rows.flip(1)[:, :-1], rows], 1).expand(x.shape[1], 1, 7, 7)
        return F.conv2d(x, stencil, padding=3, groups=x.shape[1])

    def __call__(self, x):
        skips, x = [], self.conv("stem", x)
        for level in range(1, 5):
            skips.append(self.dense(f"enc{level}.dense", x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.dense("bottleneck", x)
        for level in range(4, 0, -1):
            up = F.conv_transpose2d(x, self.state[f"dec{level}.up.deconv.weight"], stride=2)
            up = self.norm(f"dec{level}.up", up)
            x = self.conv(f"dec{level}.reduce", torch.cat([up, self.mde(skips.pop())], 1))
            x = self.dense(f"dec{level}.dense", x)
        return F.conv2d(x, self.state["head.weight"], self.state["head.bias"])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("training", [False, True])
def test_is_what_the_specification_says(backend, training):
    reason = why_not(backend, "mde", "cpu", torch.float64)
    if reason is not None:
        pytest.skip(reason)
    model, x = build().double().train(training), image(dtype=torch.float64)
    state = {
        k: v.detach().clone().requires_grad_(k.endswith("weight"))
        for k, v in model.state_dict().items()
        if v.is_floating_point()
    }
    expected = Written(state, training)(x)
    with use_backend(backend):
        out = model(x)
        out.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    expected.square().sum().backward()
    for key, parameter in model.named_parameters():
        if key.endswith("weight"):
            torch.testing.assert_close(parameter.grad, state[key].grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "in_channels", "count"),
    [
        ("e_du_s", {}, 1, 2_373_681),
        ("e_du_s", {}, 3, 2_373_969),
        ("e_du", {"width": 48}, 1, 5_334_025),
        ("e_du", {"width": 48}, 3, 5_334_457),
        ("e_du", {}, 1, 9_476_705),
        ("e_du", {}, 3, 9_477_281),
        ("e_du", {"attention": "none"}, 3, 9_477_281),
        ("e_du", {"learn_gains": True}, 3, 9_477_281 + 3_840),
        ("e_du_s", {"learn_gains": True}, 3, 2_373_969 + 1_920),
    ],
)
def test_parameter_counts(name, options, in_channels, count):
    model = create_model(name, in_channels=in_channels, **options)
    found = sum(p.numel() for p in model.parameters())
    print(f"{name} {options} with {in_channels} channels has {found:,} parameters")
    assert found == count


def test_identity_is_the_plain_network():
    """Value for value: the filter then writes a copy."""
    plain, model = build(attention="none").eval(), build(preset="identity").eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    assert not [key for key in plain.state_dict() if ".mde." in key]
    with torch.no_grad():
        torch.testing.assert_close(model(image()), plain(image()), rtol=0, atol=0)


class Concatenations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.cat.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("attention", "extra"), [("fused", 0), ("none", 4)])
def test_filter_is_the_concatenation(attention, extra):
    """Nothing but the nine dense blocks concatenates."""
    reason = why_not("cpu", "mde", "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    model = build(attention=attention).eval()
    with torch.no_grad(), Concatenations() as seen:
        model(image())
    assert seen.count == 9 * 4 + extra


def test_gains_fixed_and_learned():
    fixed, learned = build(), build(learn_gains=True)
    assert not [key for key, _ in fixed.named_parameters() if key.endswith(("gains", "tau"))]
    torch.testing.assert_close(learned(image()), fixed(image()), rtol=1e-5, atol=1e-6)
    learned(image()).square().sum().backward()
    gains = [p for key, p in learned.named_parameters() if key.endswith("gains")]
    assert [tuple(g.shape) for g in gains] == [(8 << level, 4) for level in range(4)]
    assert all(g.grad.abs().min() > 0 for g in gains)


def test_shrink():
    """A threshold of 0 changes nothing; a learned one gets a gradient."""
    plain, still = build(), build(shrink=0.0)
    torch.testing.assert_close(still(image()), plain(image()), rtol=1e-4, atol=1e-5)
    model = build(shrink=0.05, learn_gains=True)
    out = model(image())
    assert (out - plain(image())).abs().max() > 1e-3
    out.square().sum().backward()
    taus = [p for key, p in model.named_parameters() if key.endswith("tau")]
    assert len(taus) == 4 and all(tau.grad.abs().max() > 0 for tau in taus)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "sharp8"},
        {"scales": (3, 5), "gains": (0.5, 1.5, 1)},
        {"bank": "box"},
        {"pad": "reflect"},
    ],
)
def test_filter_options_reach_all_levels(options):
    model, plain = build(**options).eval(), build().eval()
    filters = [decoder.mde for decoder in (model.dec1, model.dec2, model.dec3, model.dec4)]
    for option, value in options.items():
        if option == "gains":
            assert all(f.gains.tolist() == [list(value)] for f in filters)
        elif option != "preset":
            assert all(getattr(f, option) == value for f in filters)
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "gains" not in k}, strict=False
    )
    with torch.no_grad():
        assert (model(image()) - plain(image())).abs().max() > 1e-4


def test_reflecting_needs_a_map_of_four():
    """Four levels down a map is an eighth as high: an image is brought to 32 at least."""
    model = build(pad="reflect").eval()
    assert (model.legal_size(7), model.legal_size(33), build().legal_size(7)) == (32, 48, 16)
    with torch.no_grad():
        assert model(image(1, (7, 40))).shape == (1, 2, 7, 40)


def test_deep_supervision():
    plain, model = build(), build(deep_supervision=True)
    model.load_state_dict(plain.state_dict(), strict=False)
    x = image(size=(20, 30))
    out = model(x)
    torch.testing.assert_close(out.logits, plain(x), rtol=0, atol=0)
    assert [tuple(aux.shape) for aux in out.aux] == [(2, 2, 20, 30)] * 3
    assert [head.in_channels for head in model.side] == [16, 32, 64]
    assert model.eval()(x).shape == (2, 2, 20, 30)


def test_transition_sits_behind_the_skip():
    model = build(transition=True)
    added = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in build().parameters()
    )
    assert added == sum(wide * wide + 2 * wide for wide in (8, 16, 32, 64))
    level, x = model.eval().enc1, torch.rand(2, 4, 8, 8)
    skip, below = level(x)
    torch.testing.assert_close(skip, level.dense(x), rtol=0, atol=0)
    torch.testing.assert_close(below, F.max_pool2d(level.transition(skip), 2), rtol=0, atol=0)


@pytest.mark.parametrize("depth", [1, 3])
def test_depth(depth, tmp_path):
    model = build(depth=depth, deep_supervision=True)
    assert len(model(image()).aux) == depth - 1
    assert model.legal_size(7) == max(8, 1 << depth)
    torch.save(model.state_dict(), tmp_path / "shallow.pth")
    with pytest.raises(UserError, match=f"was made with depth={depth}, the model with depth=4"):
        create_model("e_du", classes=2, width=8, weights=tmp_path / "shallow.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 12}, "width must be a multiple of 8, got 12"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"attention": "mde"}, "attention must be one of 'fused', 'none', got 'mde'"),
        ({"preset": "sharper"}, "preset must be one of identity, mde, .*, got 'sharper'"),
        ({"gains": (1, 1)}, r"gains must be 4 with these scales, got \(1, 1\)"),
        ({"pad": "same"}, "pad must be one of zero, reflect, got 'same'"),
        ({"shrink": -1.0}, "shrink must be a number of at least 0, got -1.0"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(UserError, match=message):
        create_model("e_du", **options)


def test_gains_of_a_file_are_not_put_over_those_asked_for(tmp_path):
    soft = create_model("e_du_s", classes=2, preset="mde_soft", width=8, depth=1)
    save_file(soft.state_dict(), tmp_path / "soft.safetensors")
    size = {"classes": 2, "width": 8, "depth": 1, "weights": tmp_path / "soft.safetensors"}
    with pytest.raises(UserError, match=r"0\.5, 1\.5, 1\.25, 1 there, and 0\.5, 2"):
        create_model("e_du_s", preset="mde", **size)
    with pytest.raises(UserError, match=r"and 1, 1, 1, 1 by gains=\(1, 1, 1, 1\)"):
        create_model("e_du_s", gains=(1, 1, 1, 1), **size)
    for options in ({}, {"preset": "mde_soft"}, {"gains": (0.5, 1.5, 1.25, 1)}, {"gains": None}):
        model = create_model("e_du_s", **options, **size)
        gains, expected = (m.state_dict()["dec1.mde.gains"] for m in (model, soft))
        assert torch.equal(gains, expected)
