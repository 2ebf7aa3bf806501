"""A network in training: epochs, schedules, scores, state, and what can befall it."""

from .accidents import Diverged, accidents
from .engine import Engine
from .schedule import learning_rate
from .scoring import Scored, Scorer, labels_at
from .state import load_state, save_state
from .watch import OpWatch

__all__ = [
    "Diverged",
    "Engine",
    "OpWatch",
    "Scored",
    "Scorer",
    "accidents",
    "labels_at",
    "learning_rate",
    "load_state",
    "save_state",
]
