import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch.distributions import kl_divergence
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae.distributions import Bernoulli, Binomial
from pyrovae.distributions.counts import log_choose, sum_log_prob

SHAPES = [(3,), (7, 64), (60, 784), (5, 20, 28, 28), (30, 1009), (2, 120, 121)]


def logits_and_counts(shape, n):
    logits = torch.randn(shape) * 8
    logits.view(-1)[:3] = torch.tensor([-100.0, 100.0, 0.0])
    x = torch.randint(0, n + 1, shape).to(logits.dtype)
    x.view(-1)[:3] = torch.tensor([0.0, n, n])
    return logits, x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 16])
def test_equals_torch_in_value_and_gradient(shape, n):
    logits, x = logits_and_counts(shape, n)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    event = 2 if len(shape) == 4 else 1
    a = (Binomial(n, logits=ours) if n > 1 else Bernoulli(logits=ours)).to_event(event).log_prob(x)
    t = torch.distributions.Binomial(n, logits=theirs)
    b = t.log_prob(x).flatten(-event).sum(-1)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(a)
    (ga,) = torch.autograd.grad((a * weights).sum(), ours)
    (gb,) = torch.autograd.grad((b * weights).sum(), theirs)
    torch.testing.assert_close(ga, gb, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 16, 255])
def test_equals_scipy(n):
    logits, x = logits_and_counts((500, 64), n)
    logits = logits.clamp(-30, 8)  # scipy takes probabilities, which round at the upper end
    ours = Binomial(n, logits=logits).to_event(1).log_prob(x)
    theirs = scipy.stats.binom.logpmf(x.numpy(), n, torch.sigmoid(logits).numpy()).sum(-1)
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("size", [784, 4096])
def test_float32_is_as_accurate_as_torch(size):
    logits = (torch.randn(40, size) * 10).clamp(-100, 100).float()
    x = torch.bernoulli(torch.sigmoid(logits))
    exact = dist.Bernoulli(logits=logits.double()).to_event(1).log_prob(x.double())
    theirs = (dist.Bernoulli(logits=logits).to_event(1).log_prob(x) - exact).abs().max()
    ours = (Bernoulli(logits=logits).to_event(1).log_prob(x) - exact).abs().max()
    assert ours < max(4 * theirs, 1e-4)
    assert ours < 1e-3


def test_products_do_not_underflow_in_float32():
    logits = torch.zeros(40, 1200, dtype=torch.float32)  # every factor is its smallest, 1/2
    value = Bernoulli(logits=logits).to_event(1).log_prob(torch.ones_like(logits))
    torch.testing.assert_close(value, torch.full((40,), -1200 * 0.6931472, dtype=torch.float32))


@pytest.mark.parametrize("n", [1, 16])
def test_data_are_shared_by_particles(n):
    logits, _ = logits_and_counts((4, 30, 200), n)
    x = torch.randint(0, n + 1, (30, 200)).to(logits.dtype)
    d = Binomial(n, logits=logits)
    assert type(d.to_event(1)).__name__ == "_Summed"
    torch.testing.assert_close(d.to_event(1).log_prob(x), d.log_prob(x).sum(-1))
    assert d.to_event(1).log_prob(x).shape == (4, 30)


def test_more_data_than_logits():
    logits, _ = logits_and_counts((200,), 1)
    x = torch.randint(0, 2, (150, 200)).to(logits.dtype)
    leaf = logits.clone().requires_grad_()
    value = Bernoulli(logits=leaf).to_event(1).log_prob(x)
    torch.testing.assert_close(value, Bernoulli(logits=logits).log_prob(x).sum(-1))
    (g,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(g, (x - torch.sigmoid(logits)).sum(0))


@pytest.mark.parametrize("shape", [(3, 7), (40, 600)])
def test_gradients_of_data_and_to_second_order(shape):
    logits = torch.randn(shape, requires_grad=True)
    x = torch.rand(shape, requires_grad=True)
    value = sum_log_prob(x, logits, 2)
    g, gx = torch.autograd.grad(value.sum(), (logits, x), create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), logits)
    p = torch.sigmoid(logits)
    torch.testing.assert_close(h, -2 * p * (1 - p))
    torch.testing.assert_close(gx, logits)


def test_expand_keeps_the_fast_path_and_the_value():
    logits, x = logits_and_counts((64,), 16)
    d = Binomial(16, logits=logits).to_event(1).expand([5])
    assert d.batch_shape == (5,)
    assert d.base_dist.fixed_count == 16
    torch.testing.assert_close(
        d.log_prob(x), Binomial(16, logits=logits).log_prob(x).sum().expand(5)
    )


def test_other_spellings_fall_back_to_pyro():
    p = torch.rand(3, 64)
    x = torch.bernoulli(p)
    assert type(Bernoulli(probs=p).to_event(1)) is dist.Independent
    d = Binomial(torch.tensor([[2.0], [3.0], [4.0]]), logits=p)
    assert type(d.to_event(1)) is dist.Independent
    torch.testing.assert_close(
        Bernoulli(probs=p).to_event(1).log_prob(x), dist.Bernoulli(p).to_event(1).log_prob(x)
    )


def test_kl_still_dispatches():
    a, b = torch.randn(2, 3, 64)
    p, q = Bernoulli(logits=a).to_event(1), Bernoulli(logits=b).to_event(1)
    t = kl_divergence(dist.Bernoulli(logits=a).to_event(1), dist.Bernoulli(logits=b).to_event(1))
    torch.testing.assert_close(kl_divergence(p, q), t)


@pytest.mark.parametrize(
    ("n", "bad"), [(1, 0.5), (1, 255.0), (1, float("nan")), (16, 17.0), (16, -1.0), (16, 3.5)]
)
def test_validation_refuses_values_outside_the_support(n, bad):
    x = torch.zeros(2, 64)
    x[1, 5] = bad
    zero = torch.zeros(2, 64)
    d = Bernoulli(logits=zero) if n == 1 else Binomial(n, logits=zero)
    with pytest.raises(ValueError, match="within the support"):
        d.to_event(1).log_prob(x)


def test_choose_outside_the_support_has_no_mass():
    value = log_choose(torch.tensor([-1.0, 0.0, 2.0, 4.0, 5.0, 2.5]), 4)
    assert value[[0, 4, 5]].isneginf().all()
    torch.testing.assert_close(value[[1, 2, 3]].exp(), torch.tensor([1.0, 6.0, 1.0]))


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("shape", [(10, 64), (60, 784)])
def test_can_be_traced_into_a_graph(n, shape):
    logits, x = logits_and_counts(shape, n)

    def f(x, logits):
        d = Binomial(n, logits=logits, validate_args=False).to_event(1)
        leaf = d.log_prob(x).sum()
        return leaf, torch.autograd.grad(leaf, logits)[0]

    logits.requires_grad_()
    graph = make_fx(f)(x, logits)
    other, y = logits_and_counts(shape, n)
    other.requires_grad_()
    for a, b in zip(graph(y, other), f(y, other), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("n", [1, 16])
@pytest.mark.parametrize("size", [7, 784])
def test_transforms_of_torch_func(n, size):
    logits, x = logits_and_counts((60, size), n)
    logits = logits.clamp(-20, 20)

    def plain(logits, x):
        return (x * logits + n * torch.nn.functional.logsigmoid(-logits)).sum(-1)

    def ours(logits, x):
        return sum_log_prob(x, logits, n)

    many = (logits.expand(400, 60, size), x)  # above the size where the function is used
    for f in (ours, plain):
        assert torch.func.vmap(f, (0, None))(*many).shape == (400, 60)
    torch.testing.assert_close(*(torch.func.vmap(f, (0, None))(*many) for f in (ours, plain)))
    with torch.no_grad():
        torch.testing.assert_close(*(torch.func.vmap(f, (0, None))(*many) for f in (ours, plain)))

    def slope(f, at):
        return torch.func.grad(lambda v: f(v, x).square().sum())(at)

    torch.testing.assert_close(slope(ours, many[0]), slope(plain, many[0]))


def test_inputs_are_never_written_to():
    logits, x = logits_and_counts((60, 784), 16)
    before = logits.clone(), x.clone()
    leaf = logits.requires_grad_()
    sum_log_prob(x, leaf, 16).sum().backward()
    with torch.no_grad():
        sum_log_prob(x, logits)
    torch.testing.assert_close((logits.detach(), x), before, rtol=0, atol=0)
