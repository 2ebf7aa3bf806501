"""All that a training needs, checked and built before its folder is made."""

from .build import prepare
from .devices import deterministic, open_fabric
from .job import Job

__all__ = ["Job", "deterministic", "open_fabric", "prepare"]
