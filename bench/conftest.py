"""`pytest bench/ --benchmark` measures; without the flag each case runs once, small."""

import os
import sys

# Before PyTorch makes its first tensor: half of a large op's time is page faults otherwise.
if sys.platform == "linux":
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import pytest

from bench.results import table, write

_ROWS: list[dict] = []


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="measure, instead of a small try")


@pytest.fixture(scope="session")
def measuring(request):
    """Whether figures are wanted."""
    return request.config.getoption("--benchmark")


@pytest.fixture
def keep_rows():
    """Collects rows for the table and the file."""
    return _ROWS.extend


def pytest_terminal_summary(terminalreporter):
    if not _ROWS:
        return
    terminalreporter.write_line(table(_ROWS))
    huge = os.environ.get("THP_MEM_ALLOC_ENABLE", "0")
    load = os.getloadavg()[0]
    terminalreporter.write_line(f"\nhuge pages {huge}, load {load:.1f}, rows in {write(_ROWS)}")
