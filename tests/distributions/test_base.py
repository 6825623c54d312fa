import copy
import pickle

import pytest
import torch
from torch.distributions import constraints

from pyrovae.distributions import Logistic, Normal, Reparameterized


class Shifted(Reparameterized):
    """A toy with one vector parameter and one scalar one: z = loc + rate * u, a box."""

    arg_constraints = {"loc": constraints.real_vector, "rate": constraints.positive}
    support = constraints.real_vector

    def __init__(self, loc, rate, *, validate_args=None):
        super().__init__(loc=loc, rate=rate, validate_args=validate_args)

    def _event_shape(self):
        return self.loc.shape[-1:]

    def _rsample(self, shape):
        return self.loc + self.rate[..., None] * self._uniform(shape)

    def _log_prob(self, z):
        return -self.loc.shape[-1] * self.rate.log().expand(z.shape[:-1])


def test_parameters_with_event_dimensions_broadcast_and_expand():
    d = Shifted(torch.randn(4, 1, 3), torch.rand(5) + 1)
    assert d.batch_shape == (4, 5)
    assert d.event_shape == (3,)
    assert d.loc.shape == (4, 5, 3)
    assert d.rsample((7,)).shape == (7, 4, 5, 3)
    e = d.expand([2, 4, 5])
    assert e.batch_shape == (2, 4, 5)
    assert e.loc.shape == (2, 4, 5, 3)
    assert e.log_prob(e.rsample()).shape == (2, 4, 5)
    assert d.batch_shape == (4, 5)  # expand leaves the original as it was


def test_numbers_take_the_dtype_of_the_tensors_beside_them():
    d = Logistic(0, torch.ones(3, dtype=torch.float32))
    assert d.loc.dtype == d.rsample().dtype == torch.float32
    assert Logistic(0, 1).rsample().dtype == torch.get_default_dtype()
    assert Logistic(torch.tensor([1, 2]), 1).loc.is_floating_point()


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="'scale' must be a number or a tensor, got str"):
        Logistic(0.0, "1")
    with pytest.raises(ValueError, match="'loc' needs at least 1 dimensions, got shape"):
        Shifted(torch.tensor(0.0), 1.0)
    with pytest.raises(ValueError, match="scale"):
        Logistic(0.0, -1.0)
    Logistic(0.0, -1.0, validate_args=False)
    with pytest.raises(ValueError, match="within the support"):
        Logistic(0.0, 1.0).log_prob(torch.tensor(float("nan")))


def test_expand_copies_no_memory_and_keeps_validation():
    d = Logistic(torch.zeros(3), torch.ones(3), validate_args=False)
    e = d.expand([1000, 3])
    assert e.loc.data_ptr() == d.loc.data_ptr()
    assert e._validate_args is False
    with pytest.raises(ValueError, match="within the support"):
        Logistic(0.0, 1.0, validate_args=True).expand([2]).log_prob(torch.full((2,), torch.nan))


def test_to_event_mask_pickle_and_deepcopy():
    d = Logistic(torch.zeros(4, 3), torch.ones(3))
    z = d.rsample()
    torch.testing.assert_close(d.to_event(1).log_prob(z), d.log_prob(z).sum(-1))
    assert d.mask(False).log_prob(z).eq(0).all()
    for e in (copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        torch.testing.assert_close(e.log_prob(z), d.log_prob(z))


class Extreme(Logistic):
    """Sees what `_uniform` does with the ends of torch's uniform."""

    def ends(self):
        return self._uniform(torch.Size((2,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("end", [0.0, 1.0])
def test_uniforms_are_open_at_both_ends(monkeypatch, dtype, end):
    monkeypatch.setattr(torch, "rand", lambda n, **k: torch.full(n, end, **k))
    u = Extreme(torch.zeros(2, dtype=dtype), 1.0).ends()
    assert ((u > 0) & (u < 1)).all()
    assert u.logit().isfinite().all()


def test_what_an_author_forgot_is_said():
    class Nothing(Reparameterized):
        arg_constraints = {"loc": constraints.real}
        support = constraints.real

    d = Nothing(loc=0.0)
    with pytest.raises(NotImplementedError, match="Nothing must define _rsample"):
        d.rsample()
    with pytest.raises(NotImplementedError, match="Nothing must define _log_prob"):
        d.log_prob(torch.zeros(()))


def test_an_empty_batch_is_a_distribution_of_nothing():
    """torch's constraints cannot reshape a tensor of 0 elements (194548)."""
    d = Normal(torch.zeros(0, 3), torch.ones(3))
    assert d.log_prob(d.sample()).shape == (0, 3)
