"""Position attention: the rule, bounded memory, dropout, refused inputs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import position_attention, position_reference, use_backend
from medseg.kernels.position import attend
from tests.kernels.truth import DTYPES, FLOOR, FLOOR_FLOAT32, error, gradients

pytestmark = pytest.mark.usefixtures("no_small_position")
WIDTHS = ((8, 8), (10, 10), (8, 64), (64, 8), (1, 3), (256, 256))
HALF = (torch.float16, torch.bfloat16)


def tokens(n, length, keys, d, e, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, length, d), (n, keys, d), (n, keys, e))
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def check(inputs, scale=None):
    """The rule of tests/kernels/truth.py, for tokens in place of a map.

    The fused way rounds the weights before they sum to one: a rounding of the dtype is allowed.
    """

    def fast(q, k, v):
        return position_attention(q, k, v, scale=scale)

    def plain(q, k, v):
        return position_reference(q, k, v, scale=scale)

    shape = (*inputs[0].shape[:2], inputs[2].shape[2])
    cotangent = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = gradients(plain, [t.double() for t in inputs], cotangent)
    plain_found = gradients(plain, inputs, cotangent)
    found = gradients(fast, inputs, cotangent)
    floor = FLOOR.get(inputs[0].dtype, FLOOR_FLOAT32) * 5
    rounding = torch.finfo(inputs[0].dtype).eps / 2
    for i, (t, p, g) in enumerate(zip(truth, plain_found, found, strict=True)):
        allowed = (2 if i == 0 else 3) * error(p, t) + floor + rounding
        assert error(g, t) <= allowed, f"{i}: {error(g, t):.3g} > {allowed:.3g}"
        assert g.dtype is p.dtype and g.shape == p.shape


@pytest.mark.parametrize("dtype", (torch.float64, *DTYPES), ids=str)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_holds_the_rule(widths, dtype):
    for n, length, keys in ((2, 64, 64), (3, 17, 41), (1, 1, 5)):
        check(tokens(n, length, keys, *widths, dtype))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("widths", ((4, 12), (12, 12)), ids=str)
def test_many_blocks_of_rows_and_images(widths, dtype, monkeypatch):
    for block in (1, 4000, 20000):
        monkeypatch.setattr(attend, "BLOCK", block)
        check(tokens(5, 70, 50, *widths, dtype), scale=1.0)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 3),
    length=st.integers(0, 40),
    keys=st.integers(1, 40),
    d=st.integers(1, 9),
    e=st.integers(1, 9),
    scale=st.sampled_from((None, 1.0, 0.0, -0.3)),
)
def test_any_shape(n, length, keys, d, e, scale):
    check(tokens(n, length, keys, d, e, torch.float64), scale)


@pytest.mark.parametrize("widths", ((4, 4), (4, 6)), ids=str)
def test_strides_of_a_map(widths):
    """Tokens as they come from an NCHW map, and a gradient that is a transposed or expanded one."""
    q, k, v = tokens(2, 30, 30, *widths, torch.float64)
    turned = [t.mT.contiguous().mT.requires_grad_() for t in (q, k, v)]
    check([t.detach() for t in turned])
    out = position_attention(*turned)
    want = torch.autograd.grad(position_reference(*turned).sum(), turned)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), turned), want)


@pytest.mark.parametrize("shape", ((0, 4, 5), (2, 0, 5), (2, 4, 0)))
def test_nothing_to_attend(shape):
    n, length, keys = shape
    for widths in ((3, 3), (3, 2)):
        inputs = [t.requires_grad_() for t in tokens(n, length, keys, *widths)]
        out = position_attention(*inputs)
        assert out.shape == (n, length, widths[1]) and not out.any()
        assert not any(g.any() for g in torch.autograd.grad(out.sum(), inputs))


def largest_allocation(call):
    with torch.profiler.profile(profile_memory=True) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    return max(e.nbytes() for e in events if e.name() == "[memory]")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("widths", "dtype", "dropout"),
    (
        ((8, 8), torch.float32, 0.0),
        ((4, 16), torch.float32, 0.0),
        ((4, 16), torch.bfloat16, 0.0),
        ((8, 8), torch.float32, 0.1),
        ((8, 8), torch.bfloat16, 0.1),
    ),
    ids=str,
)
def test_memory_is_bounded(widths, dtype, dropout):
    """At L = 16384 the matrix would take 0.5 or 1 GB; tokens take 1 MB."""
    length = 16384
    inputs = [t.requires_grad_() for t in tokens(1, length, length, *widths, dtype)]

    def both():
        out = position_attention(*inputs, dropout=dropout)
        torch.autograd.grad(out.sum(), inputs)

    assert largest_allocation(both) < 16e6


def test_the_meter_sees_the_matrix_of_the_reference():
    q, k, v = tokens(1, 2048, 2048, 8, 8)
    seen = largest_allocation(lambda: position_reference(q, k, v))
    assert seen >= 2048 * 2048 * 4


@pytest.mark.parametrize("widths", ((4, 4), (4, 9)), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_little_is_kept_for_backward(widths, dtype):
    inputs = [t.requires_grad_() for t in tokens(2, 256, 256, *widths, dtype)]
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t
    ):
        out = position_attention(*inputs)
    own = {t.data_ptr() for t in (*inputs, out)}
    assert sum(t.nbytes for at, t in kept.items() if at not in own) <= 2 * 256 * 4


def dropped(q, k, v, dropout=0.25, seed=3):
    torch.manual_seed(seed)
    return position_attention(q, k, v, dropout=dropout)


def test_dropout_uses_one_mask_in_both_directions(monkeypatch):
    """With v = 1 the output is the weights that stayed, so the mask can be read off it."""
    monkeypatch.setattr(attend, "BLOCK", 1500)  # several blocks
    q, k, _ = tokens(2, 70, 40, 6, 1, torch.float64)
    eye = torch.eye(40, dtype=torch.float64).expand(2, -1, -1)
    weights = dropped(q, k, eye)
    full = position_reference(q, k, eye)
    factor = weights / full
    stays = factor.unique()
    assert stays.numel() >= 2 and stays[0] == 0
    torch.testing.assert_close(factor[factor > 0], torch.full_like(factor[factor > 0], 4 / 3))
    assert abs(float((factor > 0).double().mean()) - 0.75) < 0.03

    def explicit(q, k, v):
        return ((q @ k.mT / 6**0.5).softmax(-1) * factor) @ v

    inputs = [t.requires_grad_() for t in tokens(2, 70, 40, 6, 5, torch.float64)]
    got = torch.autograd.grad(dropped(*inputs).square().sum(), inputs)
    want = torch.autograd.grad(explicit(*inputs).square().sum(), inputs)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", (torch.float32, *HALF), ids=str)
def test_dropout_keeps_the_mean(dtype):
    q, k, v = tokens(1, 64, 4096, 4, 4, dtype)
    ones = torch.ones_like(v)
    assert abs(float(dropped(q, k, ones).float().mean()) - 1) < 0.02
    assert not torch.equal(dropped(q, k, v), dropped(q, k, v, seed=4))
    assert torch.equal(dropped(q, k, v), dropped(q, k, v))


def test_dropout_gradcheck():
    inputs = [t.requires_grad_() for t in tokens(2, 6, 5, 3, 4, torch.float64)]
    assert torch.autograd.gradcheck(dropped, inputs)
    assert torch.autograd.gradgradcheck(dropped, inputs)


def test_the_reference_drops_too():
    q, k, v = tokens(1, 64, 512, 4, 4)
    torch.manual_seed(0)
    out = position_attention(q, k, torch.ones_like(v), dropout=0.5, backend="reference")
    assert out.std() > 0.01 and abs(float(out.mean()) - 1) < 0.05


@pytest.mark.parametrize("widths", ((4, 4), (4, 6)), ids=str)
def test_large_energies_of_half_tokens(widths):
    """DANet does not scale: scores of hundreds must not be rounded to bfloat16 before softmax."""
    q, k, v = tokens(1, 40, 40, *widths, torch.bfloat16)
    q, k = 12 * q, 12 * k
    truth = position_reference(q.double(), k.double(), v.double(), scale=1.0)
    assert error(position_attention(q, k, v, scale=1.0), truth) < 0.01
    assert error(position_attention(q, k, v, scale=1.0, dropout=1e-6), truth) < 0.01


@pytest.mark.parametrize("keys", (1, 7, 15, 16, 20, 519))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("widths", ((4, 4), (4, 6)), ids=str)
def test_nan_stays_in_its_row(widths, dtype, keys):
    """PyTorch's fused attention makes 0 of it where the keys do not fill a vector."""
    q, k, v = tokens(2, 20, keys, *widths, dtype)
    q[1, 3] = float("nan")
    v[0, keys // 4, 2] = float("inf")
    got, want = position_attention(q, k, v), position_reference(q, k, v)
    assert want[1, 3].isnan().all()
    torch.testing.assert_close(got, want, equal_nan=True)


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize("dropout", (0.0, 0.1))
@pytest.mark.parametrize("widths", ((4, 4), (4, 6)), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_autocast_changes_nothing(dtype, widths, dropout, compiled):
    """Tokens keep their dtype, scores float32; backward may run inside the block."""
    inputs = [t.requires_grad_() for t in tokens(2, 40, 30, *widths, dtype)]

    def run(q, k, v):
        return position_attention(q, k, v, dropout=dropout, scale=2.0)

    want, *grads = seeded(run, inputs)
    fn = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
    with torch.autocast("cpu", torch.bfloat16):
        got, *found = seeded(fn, inputs)
    assert got.dtype is dtype
    if compiled and dropout:  # the draw of the seed may have moved
        assert all(g.isfinite().all() for g in found)
        return
    torch.testing.assert_close((got, *found), (want, *grads))


def seeded(fn, inputs):
    torch.manual_seed(3)
    out = fn(*inputs)
    return out, *torch.autograd.grad(out.float().sum(), inputs)


def test_autocast_leaves_the_reference_and_second_derivatives_in_float32():
    inputs = [t.requires_grad_() for t in tokens(2, 20, 20, 4, 6)]

    def twice(dropout):
        torch.manual_seed(3)
        out = position_attention(*inputs, dropout=dropout)
        return torch.autograd.grad(out.sum(), inputs, create_graph=True)

    for dropout in (0.0, 0.1):
        plain = position_reference(*inputs)
        want = twice(dropout)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(position_reference(*inputs), plain)
            torch.testing.assert_close(twice(dropout), want)


@pytest.mark.parametrize("dropout", (1 - 2**-17, 1 - 2**-20, 0.9999999))
def test_dropout_near_one_drops(dropout):
    q, k, _ = tokens(1, 100, 40, 4, 4)
    out = dropped(q, k, torch.ones(1, 40, 4), dropout)
    assert int((out[..., 0] != 0).sum()) < 10


def test_second_run_gives_the_same_bits():
    for widths in ((16, 16), (4, 16)):
        inputs = [t.requires_grad_() for t in tokens(2, 300, 300, *widths)]
        runs = []
        for _ in range(2):
            out = dropped(*inputs) + position_attention(*inputs)
            runs.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("widths", "dropout"), (((4, 4), 0.0), ((4, 6), 0.0), ((4, 6), 0.2)))
def test_opcheck(widths, dropout):
    for turned in (False, True):
        inputs = [t.mT.contiguous().mT if turned else t for t in tokens(2, 9, 7, *widths)]
        seed = torch.tensor(5) if dropout else None
        arguments = (*(t.requires_grad_() for t in inputs), seed, 0.5, dropout, "cpu")
        torch.library.opcheck(torch.ops.medseg.position.default, arguments)


def test_every_backend_of_the_device_is_the_fast_path():
    q, k, v = tokens(1, 8, 8, 4, 4)
    want = position_attention(q, k, v)
    assert torch.equal(position_attention(q, k, v, backend="cpu"), want)
    for name in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match=f"{name} needs a CUDA tensor, got cpu"):
            position_attention(q, k, v, backend=name)
    with use_backend("reference"), torch.profiler.profile() as profile:
        position_attention(q, k, v)
    assert "medseg::position" not in {e.key for e in profile.key_averages()}


A = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("arguments", "dropout", "words"),
    [
        ((A[0], A, A), 0, r"query must be \(N, L, D\), got \(3, 4\)"),
        ((A, A, A.int()), 0, "value must be float16.* got torch.int32"),
        ((A, A.double(), A), 0, "key must be torch.float32 like query, got torch.float64"),
        ((A, A.to("meta"), A), 0, "key must be on cpu like query, got meta"),
        ((A, A[:1], A), 0, r"key must be \(2, M, 4\) like query, got \(1, 3, 4\)"),
        ((A, A[..., :2], A), 0, r"key must be \(2, M, 4\) like query, got \(2, 3, 2\)"),
        ((A[..., :0], A[..., :0], A), 0, r"key must be \(2, M, 0\) like query"),
        ((A, A, A[:, :2]), 0, r"value must be \(2, 3, E\), got \(2, 2, 4\)"),
        ((A, A, A), 1.0, "dropout must be at least 0 and below 1, got 1.0"),
        ((A, A, A), -0.1, "dropout must be at least 0 and below 1, got -0.1"),
    ],
)
def test_refused(arguments, dropout, words):
    with pytest.raises(ValueError, match=words):
        position_attention(*arguments, dropout=dropout)
