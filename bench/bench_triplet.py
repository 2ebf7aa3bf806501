"""Speed and memory of triplet attention against eager, torch.compile and a copy."""

import pytest

from bench.cases import cases
from bench.run import run_case


@pytest.mark.parametrize("case", cases("triplet", "triplet_parts"), ids=str)
def bench_triplet(case, measuring, benchmark, keep_rows):
    run_case(case, measuring, benchmark, keep_rows)
