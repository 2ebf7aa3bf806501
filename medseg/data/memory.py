"""How much memory there is."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes that a process may still take, of the machine's and of its control group's."""
    bounds = [1 << 62]
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        bounds.append(int(fields["MemAvailable"].split()[0]) << 10)
    except (OSError, KeyError, ValueError):  # no Linux: the budget alone counts
        pass
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        bounds.append(limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # "max": no limit
        pass
    return max(0, min(bounds))
