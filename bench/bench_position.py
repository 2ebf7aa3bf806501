"""Speed and memory of position attention against eager, torch.compile and PyTorch's own."""

import pytest

from bench.cases import cases
from bench.run import run_case


@pytest.mark.parametrize("case", cases("position"), ids=str)
def bench_position(case, measuring, benchmark, keep_rows):
    run_case(case, measuring, benchmark, keep_rows)
