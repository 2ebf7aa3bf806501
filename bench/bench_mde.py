"""Speed and memory of the MDE filter against eager, torch.compile, its peers and a copy."""

import pytest

from bench.cases import cases
from bench.run import run_case


@pytest.mark.parametrize("case", cases("mde", "mde_learned", "mde_concat"), ids=str)
def bench_mde(case, measuring, benchmark, keep_rows):
    run_case(case, measuring, benchmark, keep_rows)
