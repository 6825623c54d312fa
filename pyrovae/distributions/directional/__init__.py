"""Directional families: laws of angles and of unit vectors."""

from pyrovae.distributions.directional.circle import VonMises, circle
from pyrovae.distributions.directional.sphere import (
    PowerSpherical,
    SphericalUniform,
    VonMisesFisher,
)

__all__ = ["PowerSpherical", "SphericalUniform", "VonMises", "VonMisesFisher", "circle"]
