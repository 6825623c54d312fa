"""EM: exact where the posterior is known, variational elsewhere; which parameters step when."""

from pyrovae.em.exact import EM, ExactModel, HalfStep
from pyrovae.em.gradient import GradientMStep
from pyrovae.em.schedules import Aggressive, Alternating, Converge, Joint, Schedule, SemiAmortized
from pyrovae.em.spelling import parse_schedule, spell_schedule
from pyrovae.em.steps import Batch, NotFinite, StepRecord
from pyrovae.em.variational import OptimizerFactory, VariationalEM, adam, check_schedule

__all__ = [
    "Aggressive",
    "Alternating",
    "Batch",
    "Converge",
    "EM",
    "ExactModel",
    "GradientMStep",
    "HalfStep",
    "Joint",
    "NotFinite",
    "OptimizerFactory",
    "Schedule",
    "SemiAmortized",
    "StepRecord",
    "VariationalEM",
    "adam",
    "check_schedule",
    "parse_schedule",
    "spell_schedule",
]
