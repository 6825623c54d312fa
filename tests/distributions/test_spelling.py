"""Families as text: what is built, what is refused, and that text and distribution agree."""

import pyro.distributions as dist
import pytest
import torch

from pyrovae import distributions as D
from pyrovae.distributions.spelling import split_list

NEEDS = {"StudentT": "(df=5)"}  # a prior that has no usual value


@pytest.mark.parametrize("name", D.names())
def test_every_family_is_a_prior_by_name(name):
    prior = D.prior_by_name(name + NEEDS.get(name, ""), (2, 3))
    assert (prior.batch_shape, prior.event_shape) == ((), (2, 3))
    inner = prior.base_dist
    assert type(inner) is D.lookup(name)
    z = prior.sample((4,))
    assert prior.log_prob(z).isfinite().all()
    text = D.spelled(prior)
    if name == "Elliptical":  # its radial law is no number
        assert text is None
        return
    again = D.prior_by_name(text, (2, 3))
    assert repr(again) == repr(prior)
    torch.testing.assert_close(again.log_prob(z), prior.log_prob(z), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gamma(0.3, 0.2)", lambda: D.Gamma(0.3, 0.2)),
        ("gamma( rate = 2 ,concentration=.5)", lambda: D.Gamma(0.5, 2.0)),
        ("laplace(scale=3)", lambda: D.Laplace(0.0, 3.0)),
        ("Student-T(5, -1e-1)", lambda: D.StudentT(5.0, -0.1, 1.0)),
        ("student_t(df=4, scale=2)", lambda: D.StudentT(4.0, 0.0, 2.0)),
        ("erlang(rate=2)", lambda: D.Erlang(3.0, 2.0)),
        ("fisher-snedecor(df2=9)", lambda: D.FisherSnedecor(4.0, 9.0)),
        ("triangular", lambda: D.Triangular(0.0, 0.5, 1.0)),
        ("reciprocal(high=10)", lambda: D.Reciprocal(0.01, 10.0)),
        ("dirichlet(0.3)", lambda: D.Dirichlet(torch.full((3,), 0.3))),
        (
            "multivariate-normal(1, scale_tril=2)",
            lambda: D.MultivariateNormal(torch.ones(3), scale_tril=2 * torch.eye(3)),
        ),
        (
            "multivariate-normal(covariance_matrix=4)",
            lambda: D.MultivariateNormal(torch.zeros(3), scale_tril=2 * torch.eye(3)),
        ),
        (
            "elliptical(scale_diag=2)",
            lambda: D.Elliptical(torch.zeros(3), scale_tril=2 * torch.eye(3)),
        ),
    ],
)
def test_numbers_are_the_parameters(text, expected):
    prior = D.prior_by_name(text, 3)
    z = prior.sample((5,))
    score = expected().log_prob(z)
    torch.testing.assert_close(prior.log_prob(z), score if score.dim() == 1 else score.sum(-1))


def test_what_a_distribution_is_called():
    assert D.spelled(dist.Gamma(0.3, 0.2).expand([4]).to_event(1)) == (
        "Gamma(concentration=0.3, rate=0.2)"
    )
    single = torch.tensor(0.3, dtype=torch.float32)
    assert D.spelled(D.Laplace(single, single)) == "Laplace(loc=0.3, scale=0.3)"
    third = torch.tensor(1 / 3)
    assert D.parse(D.spelled(D.Exponential(third)))[1]["rate"] == 1 / 3
    assert D.spelled(D.Laplace(torch.tensor([0.0, 1.0]), 1.0)) is None  # units that differ
    assert D.spelled(D.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + torch.eye(2))) is None
    assert D.spelled(dist.HalfCauchy(1.0)) is None
    assert D.spelled(D.Normal(0.0, 1.0).mask(False)) is None


def test_commas_inside_parentheses_do_not_separate():
    assert split_list("Normal, gamma(1, 2),laplace") == ["Normal", "gamma(1, 2)", "laplace"]


@pytest.mark.parametrize(
    ("text", "family", "values", "canonical"),
    [
        ("mixture(normal, 3)", D.mixture_of(D.Normal, 3), {}, "Mixture(Normal, 3)"),
        (
            " Mixture( student-t(df=5),2 ) ",
            D.mixture_of(D.StudentT, 2),
            {"df": 5.0},
            "Mixture(StudentT(df=5), 2)",
        ),
        (
            "mixture(gamma(0.3, 0.2), 4, Joint)",
            D.mixture_of(D.Gamma, 4, joint=True),
            {"concentration": 0.3, "rate": 0.2},
            "Mixture(Gamma(concentration=0.3, rate=0.2), 4, joint)",
        ),
    ],
)
def test_mixtures_have_a_text(text, family, values, canonical):
    assert D.parse(text) == (family, values)
    assert D.spelling.spell_values(family, values) == canonical
    assert D.parse(canonical) == (family, values)
    assert split_list(f"normal, {text}") == ["normal", text.strip()]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mixture", "such as mixture.normal, 3"),
        ("mixture()", "such as mixture.normal, 3"),
        ("mixture(normal)", "such as mixture.normal, 3"),
        ("mixture(3, normal)", "such as mixture.normal, 3"),
        ("mixture(normal, 0)", "such as mixture.normal, 3"),
        ("mixture(normal, 2.5)", "such as mixture.normal, 3"),
        ("mixture(normal, 3, together)", "such as mixture.normal, 3"),
        ("mixture(normal, 3, joint, 2)", "such as mixture.normal, 3"),
        ("mixture(norml, 3)", "unknown distribution 'norml'; did you mean 'Normal'"),
        ("mixture(gamma(-1), 3)", "'concentration' of Gamma.*but found -1"),
        ("mixture(uniform, 3)", "'low', 'high'. of Uniform bound each other"),
        ("mixture(mixture(normal, 2), 3)", "are mixtures already"),
        ("mixture(normal, 3, joint)", "components would all be the same"),
    ],
)
def test_mistakes_in_mixtures_name_the_place(text, says):
    with pytest.raises(ValueError, match=says):
        D.prior_by_name(text, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gamm(1, 2)", "unknown distribution 'gamm'; did you mean 'Gamma'"),
        ("gamma(1", "expected a family, such as"),
        ("", "expected a family, such as"),
        ("gamma(1)(2)", "expected a family, such as"),
        ("gamma(one)", "expected a number, found 'one'"),
        ("gamma(rate=)", "expected a number, found ''"),
        ("gamma(__import__)", "expected a number"),
        ("gamma(1, 2, 3)", r"takes at most 2 numbers \(concentration, rate\), got 3"),
        ("gamma(rat=1)", "Gamma has no parameter 'rat'; did you mean 'rate'"),
        ("gamma(1, concentration=2)", "'concentration' is given twice"),
        ("gamma(rate=1, rate=2)", "'rate' is given twice"),
        ("gamma(rate=1, 2)", "'2' comes after named ones"),
        ("gamma(-1, 1)", "'concentration' of Gamma.*GreaterThan.*but found -1"),
        ("gamma(nan, 1)", "'concentration' of Gamma.*but found nan"),
        ("laplace(inf)", "'loc' of Laplace.*be finite, but found inf"),
        ("erlang(2.5)", "'concentration' of Erlang.*Integer.*but found 2.5"),
        ("dirichlet(0)", "'concentration' of Dirichlet.*but found 0"),
        ("multivariate-normal(0, scale_tril=-1)", "'scale_tril' of Mult.*but found -1"),
        ("uniform(1, 0)", "'low' to be less than 'high'"),
        ("student-t", "'df' of StudentT has no usual value; give it, for example StudentT.df=5"),
        ("elliptical(cov_factor=1)", "matrix 'cov_factor' of Elliptical cannot be given as one"),
    ],
)
def test_mistakes_name_the_place(text, says):
    with pytest.raises(ValueError, match=says):
        D.prior_by_name(text, 3)
