"""Variational EM: which parameters step when."""

from pyrovae.em.variational import (
    Joint,
    NotFinite,
    OptimizerFactory,
    StepRecord,
    VariationalEM,
    adam,
)

__all__ = ["Joint", "NotFinite", "OptimizerFactory", "StepRecord", "VariationalEM", "adam"]
