"""Position attention never holds the whole matrix, and keeps little for backward."""

# pyright: reportCallIssue=false
import pytest
import torch

from medseg.kernels import position_attention, position_reference
from tests.kernels.position_cases import tokens
from tests.memory import largest_allocation

pytestmark = pytest.mark.usefixtures("no_small_position")


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
