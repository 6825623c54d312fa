import pytest
import scipy.stats
import torch
from pyro.distributions import Gumbel, LogNormal, MixtureSameFamily, MultivariateNormal, Normal
from torch.distributions import Categorical

from pyrovae.distributions import Reshaped, map_tensors


def test_reshaped_has_the_density_of_its_vector():
    a = torch.randn(6, 6)
    cov = a @ a.T + torch.eye(6)
    d = Reshaped(MultivariateNormal(torch.arange(6.0), cov), (2, 3))
    z = d.rsample((4,))
    assert z.shape == (4, 2, 3)
    oracle = scipy.stats.multivariate_normal(torch.arange(6.0).numpy(), cov.numpy())
    torch.testing.assert_close(
        d.log_prob(z), torch.as_tensor(oracle.logpdf(z.reshape(4, 6).numpy()))
    )
    assert d.mean.shape == d.variance.shape == d.mode.shape == (2, 3)
    torch.testing.assert_close(d.entropy(), torch.as_tensor(oracle.entropy()))
    assert d.has_rsample
    e = d.expand([5])
    assert e.batch_shape == (5,)
    assert e.sample((7,)).shape == (7, 5, 2, 3)
    assert e.log_prob(z[0]).shape == (5,)


def test_reshaped_refuses_another_size():
    with pytest.raises(ValueError, match=r"event shape \(6,\) cannot be read as \(2, 4\)"):
        Reshaped(MultivariateNormal(torch.zeros(6), torch.eye(6)), (2, 4))


@pytest.mark.parametrize(
    "d",
    [
        Normal(torch.zeros(2), torch.ones(2)).to_event(1),
        Gumbel(torch.zeros(2), torch.ones(2)),
        LogNormal(torch.zeros(2), torch.ones(2)),
        MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2)),
        MixtureSameFamily(Categorical(logits=torch.zeros(3)), Normal(torch.arange(3.0), 1.0)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_map_tensors_moves_every_part(d):
    before = d.sample().dtype
    e = map_tensors(d, torch.Tensor.double)
    z = e.sample()
    assert z.dtype == torch.float64
    assert e.log_prob(z).dtype == torch.float64
    assert d.sample().dtype == before
    torch.testing.assert_close(e.log_prob(z).to(before), d.log_prob(z.to(before)))
    assert e.expand([3, *e.batch_shape]).sample().shape[0] == 3
