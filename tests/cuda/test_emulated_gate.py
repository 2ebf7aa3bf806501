"""The CUDA kernels of the attention gate's middle, compiled for the CPU; see test_emulated.py."""

import pytest
import torch

from medseg.kernels import attention_gate
from tests.kernels.gate_cases import SPECIAL, check, check_special, triples
from tests.kernels.truth import DTYPES, SHAPES

# Beside the common shapes: more than one block, whole vectors to the end and not.
GATE_SHAPES = (*SHAPES[:-1], (1, 3, 40, 40), (1, 2, 49, 63))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", GATE_SHAPES)
def test_gate(emulator, shape, dtype):
    for maps in triples(shape, dtype):
        check(maps, "cuda")


@SPECIAL
def test_special_values_and_a_missing_gradient(emulator, value, outputs):
    check_special(value, outputs, "cuda")


def test_maps_that_begin_between_vectors(emulator):
    flat = torch.randn(3, 2 * 3 * 4 * 8 + 1)
    check([row[1:].view(2, 3, 4, 8) for row in flat], "cuda")


def test_one_launch_each_way_and_none_for_an_empty_batch(emulator):
    for batch, launches in ((2, 1), (0, 0)):
        maps = [torch.randn(batch, 3, 4, 5, requires_grad=True) for _ in "abc"]
        before = emulator.launches()
        total, product = attention_gate(*maps, backend="cuda")
        assert emulator.launches() - before == launches
        (total + product).sum().backward()
        assert emulator.launches() - before == 2 * launches
        assert all(t.grad is not None and t.grad.shape == t.shape for t in maps)


def test_opcheck(emulator):
    for maps in triples((2, 3, 5, 7), torch.float32):
        arguments = (*(t.clone().requires_grad_() for t in maps), "cuda")
        torch.library.opcheck(torch.ops.medseg.gate.default, arguments)
