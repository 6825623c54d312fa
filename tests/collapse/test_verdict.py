"""The verdict in words."""

import math

import pytest

from pyrovae.collapse.verdict import in_words, state_of


@pytest.mark.parametrize(
    ("active", "kl", "information", "state"),
    [
        ({"z": 3}, {"z": 2.0}, {"z": 1.0}, "healthy"),
        ({"z": 2}, {"z": 2.0}, {"z": 1.0}, "healthy"),
        ({"z": 1}, {"z": 2.0}, {"z": 1.0}, "partly collapsed"),
        ({"z": 0}, {"z": 2.0}, {"z": 0.0}, "collapsed"),
        ({"z": 3, "y": 0}, {"z": 2.0, "y": 0.0}, {"z": 1.0, "y": None}, "partly collapsed"),
        ({"z": 0, "y": 0}, {"z": 0.0, "y": 0.0}, {"z": 0.0, "y": 0.0}, "collapsed"),
        ({"z": None}, {"z": 2.0}, {"z": 1.0}, "healthy"),
        ({"z": None}, {"z": 2.0}, {"z": 0.01}, "collapsed"),  # KL 2 to the prior, and no news of x
        ({"z": None}, {"z": 2.0}, {"z": None}, "healthy"),
        ({"z": None}, {"z": 0.0}, {"z": None}, "collapsed"),
        ({"z": None}, {"z": math.inf}, {"z": None}, "healthy"),
        ({"z": None}, {"z": math.nan}, {"z": None}, "unknown"),
        ({"z": 3}, {"z": math.nan}, {"z": None}, "healthy"),
        ({}, {}, {}, "no latents"),
    ],
)
def test_states(active, kl, information, state):
    assert state_of(kl, active, dict.fromkeys(kl, 4), information) == state


def test_saturation_is_said_beside_the_state():
    assert in_words("healthy", []) == "healthy"
    assert in_words("partly collapsed", ["z"]) == "partly collapsed, MI saturated at log N"
