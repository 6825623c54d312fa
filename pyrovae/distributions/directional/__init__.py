"""Directional families: laws of angles and of unit vectors."""

from pyrovae.distributions.directional.circle import VonMises, circle

__all__ = ["VonMises", "circle"]
