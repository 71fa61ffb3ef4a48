"""Training state that follows a model: optimizers, averaged models and gradients lose the same slots."""

from fxprune._follow.expanding import Expanded, expand
from fxprune._follow.functions import follow
from fxprune._follow.left_behind import Holder, holders_of, watch
from fxprune._follow.penalties import SlotsThatStay, TrainingPenalty, stay_on, watch_penalties
from fxprune._follow.result import Followed
from fxprune._follow.same_object import at_once, become
from fxprune._follow.targets import check_targets, let_follow, listed, made, prepared_for

__all__ = [
    "Expanded",
    "Followed",
    "Holder",
    "SlotsThatStay",
    "TrainingPenalty",
    "at_once",
    "become",
    "check_targets",
    "expand",
    "follow",
    "holders_of",
    "let_follow",
    "listed",
    "made",
    "prepared_for",
    "stay_on",
    "watch",
    "watch_penalties",
]
