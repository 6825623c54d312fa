import itertools

import pytest
import scipy.stats
import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import nn

from pyrovae.nn import MADE

NETS = {
    "one layer": {"hidden": 7},
    "two layers": {"hidden": (9, 5)},
    "skip": {"hidden": 7, "skip": True},
    "two layers, skip": {"hidden": (5, 11), "skip": True},
    "wide": {"hidden": 40},
}


def net_of(name, n=6, context=3):
    net = MADE(n, context, activation=nn.Tanh, **NETS[name])
    with torch.no_grad():  # biases that are not zero, conditionals that are far from one half
        for p in net.parameters():
            p.add_(0.7 * torch.randn_like(p))
    return net


def all_of(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)))


def log_prob(net, x, c):
    return torch.distributions.Bernoulli(logits=net(x, c)).log_prob(x).sum(-1)


@pytest.mark.parametrize("name", NETS)
def test_each_logit_depends_on_earlier_numbers_and_on_the_context_alone(name):
    net = net_of(name, n=9)
    x, c = torch.rand(9), torch.randn(3)
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, c), x)
    assert jacobian.triu().abs().max() == 0
    if NETS[name] == {"hidden": 40}:  # wide enough that every earlier number is seen
        assert jacobian[torch.tril(torch.ones(9, 9), -1) == 1].abs().min() > 0
    context = torch.autograd.functional.jacobian(lambda c: net(x, c), c)
    assert context.abs().min() > 0


@pytest.mark.parametrize("name", NETS)
def test_probabilities_of_all_arrays_sum_to_one(name):
    net = net_of(name)
    total = log_prob(net, all_of(6)[:, None], torch.randn(4, 3)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros(4), rtol=0, atol=1e-12)


def test_is_the_formula_with_masks():
    net = net_of("two layers, skip", n=4, context=2)
    x, c = torch.bernoulli(torch.full((5, 4), 0.5)), torch.randn(5, 2)
    first, second, last = (layer.weight * layer.mask for layer in net.layers)
    biases = [layer.bias for layer in net.layers]
    given = [layer(c) for layer in net.contexts]
    h = torch.tanh(x @ first.T + biases[0] + given[0])
    h = torch.tanh(h @ second.T + biases[1] + given[1])
    direct = x @ net.skip.weight.tril(-1).T + net.skip.bias
    torch.testing.assert_close(net(x, c), h @ last.T + biases[2] + given[2] + direct)


def test_can_represent_what_pyros_network_represents():
    """Pyro's own conditional network, its weights copied into ours: the same logits."""
    n, c, h = 5, 2, 12
    theirs = ConditionalAutoRegressiveNN(
        n, c, [h], param_dims=[1], permutation=torch.arange(n), nonlinearity=nn.Tanh()
    )
    ours = MADE(n, c, h, activation=nn.Tanh)
    with torch.no_grad():
        weight = theirs.layers[0].weight * theirs.layers[0].mask
        ours.layers[0].mask.copy_(theirs.layers[0].mask[:, c:])
        ours.layers[0].weight.copy_(weight[:, c:])
        ours.contexts[0].weight.copy_(weight[:, :c])
        ours.contexts[0].bias.zero_()
        ours.layers[0].bias.copy_(theirs.layers[0].bias)
        ours.layers[1].mask.copy_(theirs.layers[1].mask)
        ours.layers[1].weight.copy_(theirs.layers[1].weight)
        ours.layers[1].bias.copy_(theirs.layers[1].bias)
        for p in ours.contexts[1].parameters():
            p.zero_()
    x, given = torch.rand(7, n), torch.randn(7, c)
    torch.testing.assert_close(ours(x, given), theirs(x, given))


def test_particles_of_the_context_broadcast_against_the_data():
    net = net_of("two layers, skip")
    x, c = all_of(6)[:10], torch.randn(5, 10, 3)
    together = net(x, c)
    assert together.shape == (5, 10, 6)
    for k in range(5):
        torch.testing.assert_close(together[k], net(x, c[k]))


@pytest.mark.parametrize("name", NETS)
def test_draws_have_the_exact_probabilities(name):
    """A chi-squared test over all 16 arrays: a false alarm in a million, at a fixed seed."""
    net = net_of(name, n=4)
    c = torch.randn(3)
    draws = 20_000
    x = net.sample(c.expand(draws, 3))
    index = (x @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    seen = torch.bincount(index, minlength=16)
    expected = draws * log_prob(net, all_of(4), c).exp().detach()
    keep = expected > 5
    few = torch.tensor([seen[~keep].sum(), expected[~keep].sum()])
    statistic = ((seen - expected) ** 2 / expected)[keep].sum()
    if few[1] > 5:
        statistic = statistic + (few[0] - few[1]) ** 2 / few[1]
    degrees = int(keep.sum()) - 1 + int(few[1] > 5)
    assert scipy.stats.chi2.sf(float(statistic), degrees) > 1e-6


def test_starts_at_the_given_logits():
    net = MADE(4, 2)
    with torch.no_grad():
        for layer in (*net.layers, *net.contexts):
            layer.weight.zero_()
    value = torch.tensor([-1.0, 0.5, 2.0, 0.0])
    net.set_bias(value)
    torch.testing.assert_close(net(torch.rand(3, 4), torch.randn(3, 2)), value.expand(3, 4))


def test_of_one_number_only_the_context_decides():
    net = net_of("skip", n=1)
    c = torch.randn(5, 3)
    torch.testing.assert_close(net(torch.zeros(5, 1), c), net(torch.ones(5, 1), c))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MADE(0, 2), "every width must be at least 1"),
        (lambda: MADE(3, 2, hidden=(4, 0)), "every width must be at least 1"),
        (lambda: MADE(3, 2, hidden=()), "there must be a hidden layer"),
        (lambda: MADE(3, 2)(torch.zeros(5, 4), torch.zeros(5, 2)), r"\[..., 3\] and \[..., 2\]"),
        (lambda: MADE(3, 2)(torch.zeros(5, 3), torch.zeros(5, 1)), r"\[..., 3\] and \[..., 2\]"),
    ],
)
def test_wrong_sizes_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
