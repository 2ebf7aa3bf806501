"""The results file replaces rows by case, and the page it makes is whole and fetches nothing."""

import json
import re

import pytest

from bench.cases import LARGE, cases, tiny
from bench.contenders import prepare
from bench.measure import interleaved
from bench.report import render
from bench.results import compare, judge, write


@pytest.fixture
def rows():
    """Of two cases, timed small but shown as if they were large."""
    found = []
    for case in cases("eca")[:2]:
        steps = prepare(tiny(case), compiled=False).steps(tiny(case))
        timed = compare(case, interleaved(steps, 0.0, rounds=(1, 1)))
        found += [r | {"goals": judge(case, timed)} for r in timed]
    return found


def model_rows():
    about = {"case": "model-x-training", "kind": "model", "model": "x", "step": "training"}
    about |= {"shape": [2, 3, 64, 64], "p20_ms": 1.0, "p80_ms": 1.0, "peak_MB": 3.0}
    plain = about | {"contender": "reference", "median_ms": 30.0}
    ours = about | {"contender": "fused_bf16", "median_ms": 12.0, "vs_reference": 2.5}
    return [plain, ours | {"vs_compile": 1.5}]


def bench_page(rows, tmp_path, benchmark):
    half = len(rows) // 2
    rows = rows + model_rows()
    write(rows, {}, tmp_path)
    path = write(rows[:half], {"rival": "rival is <not> here"}, tmp_path)
    report = json.loads(path.read_text())
    assert sorted(map(str, (r["case"] for r in report["rows"]))) == sorted(r["case"] for r in rows)
    assert [f.name for f in tmp_path.iterdir()] == [path.name]
    page = benchmark.pedantic(render, (report,), rounds=1)
    assert tuple(rows[0]["shape"]) == LARGE
    for words in (
        "bfloat16, channels_last</td><td>12.00 ms",
        "2.50 x",
        "Roofline",
        "of copy speed",
        rows[0]["case"].split("-")[0],
        "&lt;not&gt;",
    ):
        assert words in page
    assert not re.search(r"https?:|src=|@import|<link|<script", page)
