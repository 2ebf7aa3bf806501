"""Speed and memory of the attention gate's middle against eager, torch.compile and a copy."""

import pytest

from bench.cases import cases
from bench.run import run_case


@pytest.mark.parametrize("case", cases("gate"), ids=str)
def bench_gate(case, measuring, benchmark, keep_rows):
    run_case(case, measuring, benchmark, keep_rows)
