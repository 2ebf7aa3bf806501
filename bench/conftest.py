"""`pytest bench/ --benchmark` measures; without the flag each case runs once, small."""

import logging
import os
import sys

# Before PyTorch makes its first tensor: half of a large op's time is page faults otherwise.
if sys.platform == "linux":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import pytest
import torch

from bench.contenders import ABSENT
from bench.report import draw
from bench.results import FOLDER, device_name, table, write

_ROWS: list[dict] = []


# What it says of every compilation would fill the report of a figure that is missed.
logging.getLogger("torch.__trace").propagate = False


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="measure, instead of a small try")


def pytest_configure(config):
    if not config.getoption("--benchmark"):
        torch.set_num_threads(1)  # nothing is timed, and a busy machine stalls threads that meet


@pytest.fixture(scope="session")
def measuring(request):
    """Whether figures are wanted."""
    return request.config.getoption("--benchmark")


@pytest.fixture
def keep_rows():
    """Collects rows for the table, and writes them to the file at once."""

    def keep(rows):
        write(rows, ABSENT)
        _ROWS.extend(rows)

    return keep


def pytest_terminal_summary(terminalreporter):
    for name, reason in sorted(ABSENT.items()):
        terminalreporter.write_line(f"not measured: {name}, {reason}")
    if _ROWS:
        huge, load = os.environ.get("THP_MEM_ALLOC_ENABLE", "0"), os.getloadavg()[0]
        where = f"rows and page in {draw(FOLDER / f'{device_name()}.json')}"
        terminalreporter.write_line(
            f"{table(_ROWS)}\n\nhuge pages {huge}, load {load:.1f}, {where}"
        )
