import itertools

import pytest
import scipy.stats
import torch
from torch import nn

from pyrovae.nn import CausalWindow


def net_of(shape=(4, 5), context=2, **options):
    net = CausalWindow(shape, context, channels=6, activation=nn.Tanh, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return net


def log_prob(net, x, c):
    return torch.distributions.Bernoulli(logits=net(x, c)).log_prob(x).sum(-1)


@pytest.mark.parametrize("radius", [1, 2, 7])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_pixel_sees_its_neighbours_in_reading_order_and_nothing_else(radius, layers):
    net = net_of(radius=radius, layers=layers)
    x, c = torch.rand(20), torch.randn(2)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c), x)
    for d, e in itertools.product(range(20), repeat=2):
        (i, j), (k, m) = divmod(d, 5), divmod(e, 5)
        seen = e < d and i - k <= radius and abs(j - m) <= radius
        assert (jacobian[d, e] != 0) == seen
    assert torch.autograd.functional.jacobian(lambda c: net(x, c), c).abs().min() > 0


def test_is_a_masked_convolution():
    """The same numbers from torch's own convolution with the mask of a PixelCNN's first layer."""
    net, x, c = net_of(radius=2, layers=2), torch.rand(7, 4, 5), torch.randn(7, 2)
    kernel = torch.zeros(6, 5 * 5)
    kernel[:, :12] = net.window.weight  # two rows of five, and two pixels to the left
    h = nn.functional.conv2d(x[:, None], kernel.reshape(6, 1, 5, 5), net.window.bias, padding=2)
    maps = net.to_maps(c).reshape(7, 4, 5, 4).permute(0, 3, 1, 2)
    h = torch.tanh(h + nn.functional.conv2d(maps, net.from_maps.weight[..., None, None]))
    one = net.deeper[0]
    h = torch.tanh(nn.functional.conv2d(h, one.weight[..., None, None], one.bias))
    logits = nn.functional.conv2d(h, net.last.weight[..., None, None], net.last.bias)
    expected = logits.flatten(1) + net.to_logits(c)
    torch.testing.assert_close(net(x.flatten(1), c), expected)


def test_particles_of_the_context_broadcast_against_the_data():
    net = net_of()
    x, c = torch.bernoulli(torch.full((6, 20), 0.5)), torch.randn(5, 6, 2)
    together = net(x, c)
    assert together.shape == (5, 6, 20)
    for k in range(5):
        torch.testing.assert_close(together[k], net(x, c[k]))


@pytest.mark.parametrize("shape", [(2, 2), (4, 1), (1, 4)])
def test_draws_have_the_exact_probabilities(shape):
    """A chi-squared test over all 16 images: a false alarm in a million, at a fixed seed."""
    net, c, draws = net_of(shape, radius=2), torch.randn(2), 20_000
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
    p = log_prob(net, every, c).exp().detach()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    x = net.sample(c.expand(draws, 2))
    index = (x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    seen, expected = torch.bincount(index, minlength=16), draws * p
    keep = expected > 5
    rare = expected[~keep].sum()
    statistic = ((seen - expected)[keep] ** 2 / expected[keep]).sum()
    statistic = statistic + (seen[~keep].sum() - rare) ** 2 / rare.clamp_min(5.0)
    assert scipy.stats.chi2.sf(float(statistic), int(keep.sum())) > 1e-6


def test_starts_at_the_given_logits():
    net = CausalWindow((2, 3), 2)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    value = torch.arange(6.0)
    net.set_bias(value)
    torch.testing.assert_close(net(torch.rand(3, 6), torch.randn(3, 2)), value.expand(3, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CausalWindow(784, 2), "expected an image"),
        (lambda: CausalWindow((4, 4), 2, radius=0), "every size must be at least 1"),
        (
            lambda: CausalWindow((2, 3), 2)(torch.zeros(5, 7), torch.zeros(5, 2)),
            r"\[..., 6\] and \[..., 2\]",
        ),
    ],
)
def test_wrong_sizes_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
