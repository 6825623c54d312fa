import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyrovae import distributions as D
from pyrovae.nn import Head, bounded_positive

FAMILIES = [D.lookup(name) for name in D.names()]
OTHERS = [
    (dist.HalfNormal, {}),
    (dist.Kumaraswamy, {}),
    (dist.Pareto, {}),
    (dist.Bernoulli, {}),
    (dist.VonMises, {}),
    (dist.MultivariateStudentT, {}),
    (D.Binomial, {"total_count": 16}),
    (dist.NegativeBinomial, {"total_count": 3}),
    (dist.RelaxedBernoulliStraightThrough, {"temperature": torch.tensor(0.5)}),
]


def head_for(family, shape=(3,), **options):
    options = {"fixed": D.posterior_fixed(family), **options}
    return Head(8, family, shape, constraints=D.posterior_domains(family), **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(4,), (2, 4)])
@pytest.mark.parametrize("lead", [(), (6,), (5, 6)], ids=str)
def test_event_shape_and_leading_dimensions(family, shape, lead):
    d = head_for(family, shape)(torch.randn(*lead, 8))
    assert d.event_shape == shape
    assert d.batch_shape == lead
    z = d.rsample()
    assert d.log_prob(z).shape == lead


@pytest.mark.parametrize(("family", "fixed"), OTHERS, ids=lambda v: getattr(v, "__name__", ""))
def test_other_families_of_pyro(family, fixed):
    d = Head(8, family, 4, fixed=fixed)(torch.randn(6, 8))
    assert d.event_shape == (4,)
    assert d.log_prob(d.sample()).shape == (6,)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("a", [-50.0, 0.0, 90.0])
def test_extreme_pre_activations_give_finite_gradients_in_float32(family, a):
    head = head_for(family).float()
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.fill_(a)
    d = head(torch.zeros(1000, 8, dtype=torch.float32))
    z = d.rsample()
    value = d.log_prob(z.detach()).sum() + (1e-6 * z.clamp(-1e6, 1e6)).sum()
    (g,) = torch.autograd.grad(value, head.linear.bias)
    assert value.isfinite()
    assert g.isfinite().all()


def test_one_product_serves_all_parameters():
    head = Head(8, D.Normal, 5)
    layers = [m for m in head.modules() if isinstance(m, nn.Linear)]
    assert len(layers) == 1
    h = torch.randn(6, 8)
    raw = layers[0](h)
    d = head(h).base_dist
    torch.testing.assert_close(d.loc, raw[:, :5])
    torch.testing.assert_close(d.scale, bounded_positive(raw[:, 5:]))


def test_one_spelling_of_each_parameter():
    assert [s.name for s in Head(8, D.Bernoulli, 5).slots] == ["logits"]
    assert [s.name for s in Head(8, D.MultivariateNormal, 5).slots] == ["loc", "scale_tril"]
    cov = Head(8, D.MultivariateNormal, 5, fixed={"covariance_matrix": torch.eye(5)})
    assert [s.name for s in cov.slots] == ["loc"]
    assert cov(torch.zeros(6, 8)).batch_shape == (6,)


def test_bernoulli_logits_are_not_bounded():
    head = Head(1, D.Bernoulli, 1)
    nn.init.constant_(head.linear.weight, 1.0)
    assert head(torch.full((1, 1), 50.0)).base_dist.logits == 50.0


def test_fixed_parameters_may_be_learned_or_move_with_the_module():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw = nn.Parameter(torch.zeros(()))

        def forward(self):
            return self.raw.exp()

    head = Head(8, D.Normal, 5, fixed={"scale": One()})
    assert "fixed_scale.raw" in dict(head.named_parameters())
    head(torch.randn(6, 8)).log_prob(torch.zeros(5)).sum().backward()
    assert head.fixed_scale.raw.grad.isfinite()
    buffer = Head(8, D.Normal, 5, fixed={"scale": torch.full((5,), 2.0)}).float()
    assert buffer(torch.zeros(6, 8, dtype=torch.float32)).base_dist.scale.dtype == torch.float32
    number = Head(8, D.StudentT, 5, fixed={"df": 5.0})
    assert (number(torch.zeros(6, 8)).base_dist.df == 5.0).all()


def test_narrower_domains():
    d = Head(8, D.StudentT, 5, constraints={"df": constraints.greater_than(2.0)})
    assert (d(torch.randn(100, 8) * 100).base_dist.df > 2).all()
    u = Head(8, D.Uniform, 5, constraints=D.posterior_domains(D.Uniform))
    z = u(torch.randn(1000, 8) * 100).sample()
    assert (z > 0).all()
    assert (z < 1).all()


def test_set_bias_starts_a_parameter():
    head = Head(8, D.Normal, (2, 3))
    start = torch.arange(6.0).reshape(2, 3)
    head.set_bias("loc", start)
    torch.testing.assert_close(head(torch.zeros(8)).mean, start)
    assert head(torch.zeros(8)).base_dist.scale.eq(1).all()
    with pytest.raises(ValueError, match="no predicted parameter 'mu'; there are"):
        head.set_bias("mu", start)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Head(8, dist.Wishart, (3, 3)), "is not a Pyro distribution class"),
        (
            lambda: Head(8, D.Normal, 3, constraints={"scale": constraints.boolean}),
            r"no safe map onto Boolean\(\) is known for the parameter 'scale' of Normal; pass",
        ),
        (lambda: Head(8, D.Dirichlet, ()), "one draw of Dirichlet has 1 dimensions"),
        (lambda: Head(8, torch.distributions.Normal, 3), "torch's own lack to_event"),
        (
            lambda: Head(8, D.Normal, 3, constraints={"df": constraints.positive}),
            "no parameter 'df'",
        ),
        (
            lambda: Head(8, D.Normal, 3, fixed={"loc": 0.0, "scale": 1.0}),
            "nothing is left to predict",
        ),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
