"""A network in training: epochs, schedules, scores, state, and what can befall it."""

from .accidents import memory_guard
from .engine import Engine
from .schedule import learning_rate
from .scoring import Scored, Scorer, labels_at
from .watch import OpWatch

__all__ = [
    "Engine",
    "OpWatch",
    "Scored",
    "Scorer",
    "labels_at",
    "learning_rate",
    "memory_guard",
]
