"""Speed and memory of split attention against eager, torch.compile, its peers and a copy."""

import pytest

from bench.cases import cases
from bench.run import run_case


@pytest.mark.parametrize("case", cases("split", "split_folded", "split_parts"), ids=str)
def bench_split(case, measuring, benchmark, keep_rows):
    run_case(case, measuring, benchmark, keep_rows)
