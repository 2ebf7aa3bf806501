"""Position attention: the rule, strides, NaN, autocast, refused inputs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false
# pyright: reportAttributeAccessIssue=false
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.kernels import position_attention, position_reference, use_backend
from medseg.kernels.position import attend
from tests.kernels.position_cases import check, tokens
from tests.kernels.truth import DTYPES, error

pytestmark = pytest.mark.usefixtures("no_small_position")
WIDTHS = ((8, 8), (10, 10), (8, 64), (64, 8), (1, 3), (256, 256))


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
