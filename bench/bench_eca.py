"""Speed and memory of ECA against eager, torch.compile and a copy."""

import pytest

from bench.cases import cases
from bench.run import run_case


@pytest.mark.parametrize("case", cases("eca", "eca_pool"), ids=str)
def bench_eca(case, measuring, benchmark, keep_rows):
    run_case(case, measuring, benchmark, keep_rows)
