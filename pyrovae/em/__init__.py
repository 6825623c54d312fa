"""Variational EM: which parameters step when."""

from pyrovae.em.schedules import Aggressive, Alternating, Converge, Joint, Schedule
from pyrovae.em.spelling import parse_schedule, spell_schedule
from pyrovae.em.steps import Batch, NotFinite, StepRecord
from pyrovae.em.variational import OptimizerFactory, VariationalEM, adam

__all__ = [
    "Aggressive",
    "Alternating",
    "Batch",
    "Converge",
    "Joint",
    "NotFinite",
    "OptimizerFactory",
    "Schedule",
    "StepRecord",
    "VariationalEM",
    "adam",
    "parse_schedule",
    "spell_schedule",
]
