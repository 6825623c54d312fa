"""EM: what must hold after each half-step, what stops it, and models of one's own."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.datasets import load_iris
from torch import nn
from torch.distributions import Categorical, Normal, OneHotCategorical

import pyrovae as pv
from pyrovae.checkpoint import load_state, save_state
from pyrovae.em import EM, ExactModel, GradientMStep
from pyrovae.models import FactorAnalysis, GaussianMixture, NeuralMixture, ProbabilisticPCA


def iris():
    return torch.from_numpy(load_iris().data)


def binary(n=60, seed=0):
    """Three noisy patterns of 12 bits, `[n, 12]`."""
    rng = torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 2, (3, 12), generator=rng).double()
    x = patterns[torch.arange(n) % 3]
    return torch.where(torch.rand(x.shape, generator=rng) < 0.1, 1 - x, x)


MODELS = {
    "full": lambda: (GaussianMixture(4, 3, reg_covar=0.0), "kmeans"),
    "tied": lambda: (GaussianMixture(4, 3, "tied", reg_covar=0.0), "data"),
    "diagonal": lambda: (GaussianMixture(4, 3, "diagonal", reg_covar=0.0), "data"),
    "spherical": lambda: (GaussianMixture(4, 3, "spherical", reg_covar=0.0), "data"),
    "full, with a ridge": lambda: (GaussianMixture(4, 3, reg_covar=1e-2), "data"),
    "ppca": lambda: (ProbabilisticPCA(4, 2), "random"),
    "factor analysis": lambda: (FactorAnalysis(4, 1), "random"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_is_tight_after_e_loose_after_m_and_the_identity_holds(name):
    """log p(x) = ELBO + KL(q || p(z|x)), three numbers by three formulas, at each half-step."""
    model, init = MODELS[name]()
    em = EM(model, init=init).fit(iris(), 25, tolerance=0)
    assert [step.half for step in em.history] == ["E", "M"] * 25
    for e, m in zip(em.history[::2], em.history[1::2], strict=True):
        assert e.kl < 1e-12
        assert abs(e.elbo - e.log_px) < 1e-11  # tight
        assert abs(m.gap) < 1e-11
        assert m.elbo + m.penalty >= e.elbo + e.penalty - 1e-12  # M raises the bound
    first, last = em.history[1], em.history[-1]
    assert first.kl > 1e-4  # loose
    assert first.log_px - first.elbo > 1e-4
    assert 0 < last.kl < first.kl  # less and less so: EM converges
    for m, e in zip(em.history[1::2], em.history[2::2], strict=False):
        assert e.log_px == m.log_px  # an E-step moves no parameter
        assert e.elbo > m.elbo  # it raises the bound up to log p(x)


def test_steps_are_what_fit_does():
    one, two = (EM(GaussianMixture(4, 3), seed=2) for _ in range(2))
    one.fit(iris(), 5, tolerance=0)
    steps = [half for _ in range(5) for half in two.step(iris())]
    assert steps == one.history == two.history
    assert one.iteration == two.iteration == 5


def test_it_stops_at_the_tolerance_and_says_whether_it_did():
    em = EM(GaussianMixture(4, 3)).fit(iris(), 3, tolerance=1e-6)
    assert not em.converged
    em.fit(iris(), 500, tolerance=1e-6)
    assert em.converged
    assert 3 < em.iteration < 500
    e, m = em.history[-2:]
    assert m.log_px - e.log_px < 1e-6 <= em.history[-3].log_px - em.history[-4].log_px


def test_restarts_keep_the_best():
    x = iris()
    em = EM(GaussianMixture(4, 4, "diagonal"), init="data", restarts=5, seed=3).fit(x, 60)
    assert len(em.tried) == 5
    assert max(em.tried) > min(em.tried) + 1e-3  # there are local optima
    assert em.log_px == max(em.tried)
    assert abs(em.model.log_px(x).mean().item() - em.log_px) < 1e-12
    alone = EM(GaussianMixture(4, 4, "diagonal"), init="data", seed=3 + int(np.argmax(em.tried)))
    assert alone.fit(x, 60).history == em.history


def test_a_saved_state_goes_on_to_the_last_bit(tmp_path):
    whole = EM(GaussianMixture(4, 3)).fit(iris(), 20, tolerance=0)
    half = EM(GaussianMixture(4, 3)).fit(iris(), 10, tolerance=0)
    save_state(tmp_path, "em", half.state_dict())
    resumed = EM(GaussianMixture(4, 3))
    resumed.load_state_dict(load_state(tmp_path, "em"))
    resumed.fit(iris(), 10, tolerance=0)
    assert resumed.history == whole.history
    for a, b in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_program_trains_on_from_where_em_ended():
    """An M-step writes the very parameters that Pyro's SVI then moves."""
    x, mixture = iris(), GaussianMixture(4, 2)
    em = EM(mixture, init="data").fit(x, 3)
    run = pv.fit(
        mixture.model,
        mixture.guide,
        x,
        objective=TraceEnum_ELBO(max_plate_nesting=1),
        optimizer=pv.adam(1e-3),
        epochs=2,
        batch_size=150,
        progress=False,
    )
    assert abs(run.history[0]["elbo"] - em.log_px) < 1e-10
    assert run.history[1]["elbo"] > em.log_px


def test_em_leaves_no_gradient_and_asks_for_none():
    mixture = GaussianMixture(4, 2)
    EM(mixture).fit(iris(), 2)
    assert all(p.grad is None and p.requires_grad for p in mixture.parameters())


def test_a_probability_that_underflows_is_not_an_infinite_kl():
    """exp(-800) is 0 in float64; log q - log p(z|x) is not infinite for that."""
    x = torch.tensor([[0.0], [0.1], [40.0], [40.1]])
    mixture = GaussianMixture(1, 2, reg_covar=1e-3)
    with torch.no_grad():
        mixture.loc.copy_(torch.tensor([[0.0], [30.0]]))
        mixture.spread.raw.fill_(np.log(3.0))
    em = EM(mixture, init="given").fit(x, 3, tolerance=0)
    assert all(np.isfinite([step.kl, step.gap]).all() for step in em.history)
    assert mixture.e_step(x).probs.min() == 0


# Models of one's own ---------------------------------------------------------------------------


class Coins:
    """Sets of tosses, each of one of two coins: nothing of torch.nn, nothing of pyrovae."""

    def __init__(self):
        self.heads = torch.tensor([0.3, 0.6])

    def log_joint(self, x):
        tosses = torch.distributions.Binomial(10, self.heads)
        return tosses.log_prob(x[:, None]) + np.log(0.5)

    def e_step(self, x):
        return Categorical(logits=self.log_joint(x))

    def m_step(self, x, posterior):
        self.heads = posterior.probs.T @ x / (10 * posterior.probs.sum(0))

    def log_px(self, x):
        return self.log_joint(x).logsumexp(-1)


HEADS = torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0], dtype=torch.float64)


def test_a_model_of_three_methods_is_enough():
    """The example of Do & Batzoglou (2008), Nat. Biotechnol. 26: it ends at 0.80 and 0.52."""
    coins = Coins()
    coins.heads = torch.tensor([0.6, 0.5])
    assert isinstance(coins, ExactModel)
    em = EM(coins).fit(HEADS, 10, tolerance=0)
    assert torch.allclose(coins.heads, torch.tensor([0.80, 0.52]), rtol=0, atol=5e-3)
    assert all(m.kl > 0 for m in em.history[1::2])


def test_an_m_step_that_goes_down_is_found_out():
    class Backwards(Coins):
        def m_step(self, x, posterior):
            self.heads = 0.5 * self.heads

    with pytest.raises(ArithmeticError, match="the M-step has lowered.*Expected.*Try: check m_s"):
        EM(Backwards()).fit(HEADS)
    with pytest.warns(UserWarning, match="the M-step has lowered"):
        EM(Backwards(), falls="warn").step(HEADS)
    EM(Backwards(), falls="ignore").fit(HEADS, 3)


def test_a_wrong_regularized_m_step_is_found_out_and_a_right_one_passes():
    x, mixture = iris(), GaussianMixture(4, 3, reg_covar=0.5)
    EM(mixture, init="data").fit(x, 30, tolerance=0)
    mixture.initialize(x, "data")
    names = "e_step", "m_step", "log_px", "expected_log_joint"  # all but the penalty
    without = SimpleNamespace(**{name: getattr(mixture, name) for name in names})
    with pytest.raises(ArithmeticError, match="lowered E log p.*Try: .*penalty"):
        EM(without).fit(x, 30, tolerance=0)


def test_an_e_step_that_is_not_the_posterior_is_found_out():
    class Prior(Coins):
        def e_step(self, x):
            return Categorical(logits=torch.zeros(len(x), 2))

        def expected_log_joint(self, x, posterior):
            return (posterior.probs * self.log_joint(x)).sum(-1)

    with pytest.raises(ArithmeticError, match="after the E-step the bound is.*Expected: equal"):
        EM(Prior()).step(HEADS)


def test_an_infinite_log_px_names_its_row():
    class Blind(Coins):
        def log_px(self, x):
            return super().log_px(x).masked_fill(x == 8, -torch.inf)

    with pytest.raises(FloatingPointError, match=r"log p\(x\) is -inf at row\(s\) \[2\].*Try"):
        EM(Blind()).step(HEADS)


@pytest.mark.parametrize(
    ("posterior", "error", "message"),
    [
        (lambda n: Normal(torch.zeros(n, 2), 1.0), ValueError, r"KL.* has shape \[5, 2\].*Try"),
        (lambda n: Normal(torch.zeros(()), 1.0), ValueError, r"KL.* has shape \[\].*Try"),
        (
            lambda n: torch.distributions.Multinomial(1, torch.ones(n, 2)),
            TypeError,
            "no KL of Multinomial",
        ),
    ],
)
def test_posteriors_that_do_not_fit_are_named(posterior, error, message):
    class Odd(Coins):
        def e_step(self, x):
            return posterior(len(x))

    with pytest.raises(error, match=message):
        EM(Odd()).step(HEADS)


def test_one_hot_posteriors_work_too():
    class OneHot(Coins):
        def e_step(self, x):
            return OneHotCategorical(logits=self.log_joint(x))

    a, b = EM(OneHot()).fit(HEADS, 5), EM(Coins()).fit(HEADS, 5)
    assert a.history == b.history


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EM(object()), TypeError, "object has no method e_step, log_px, m_step.*Try"),
        (lambda: EM(pv.models.VAE(4, 2, 8)), TypeError, "VAE has no method.*VariationalEM"),
        (lambda: EM(NeuralMixture(4, 2)), TypeError, "no method m_step.*GradientMStep"),
        (lambda: EM(Coins(), m_step=GradientMStep()), TypeError, "no method expected_log_joint"),
        (lambda: EM(Coins), TypeError, r"the class Coins.*Try: Coins\(\.\.\.\)"),
        (lambda: EM(Coins(), m_step="adam"), TypeError, "m_step must be callable.*Try"),
        (lambda: EM(Coins(), init="kmeans"), ValueError, "Coins has no initialize.*Try"),
        (lambda: EM(Coins(), restarts=3), ValueError, "3 times the same.*Try"),
        (lambda: EM(Coins(), restarts=0), ValueError, "restarts must be a whole number.*got 0"),
        (lambda: EM(Coins(), falls="quietly"), ValueError, "falls must be 'raise'.*Try"),
        (lambda: EM(Coins()).fit(HEADS, 0), ValueError, "iterations must be a whole number"),
        (lambda: EM(Coins()).fit(HEADS, tolerance=-1.0), ValueError, "tolerance must be finite"),
        (lambda: EM(Coins()).state_dict(), TypeError, "Coins has no state_dict.*Try"),
        (lambda: GradientMStep(steps=0), ValueError, "steps must be a whole number.*Try"),
    ],
)
def test_bad_settings_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Generalized EM --------------------------------------------------------------------------------


def patterns(**options):
    torch.manual_seed(0)
    return NeuralMixture(12, classes=3, hidden=16, embedding=4, **options)


def test_gradient_m_steps_climb_and_the_identity_holds():
    x, mixture = binary(), patterns()
    em = EM(mixture, m_step=GradientMStep(steps=10)).fit(x, 40, tolerance=0)
    totals = [60 * step.log_px for step in em.history]
    assert min(np.diff(totals)) > -1e-10
    assert totals[-1] > totals[0] + 100
    for e, m in zip(em.history[::2], em.history[1::2], strict=True):
        assert abs(e.elbo - e.log_px) < 1e-11
        assert abs(m.gap) < 1e-11
    assert all(p.grad is None for p in mixture.parameters())


def test_one_gradient_step_of_em_is_one_of_log_px():
    """Fisher's identity: at the exact posterior both have the same gradient."""
    x, one, two = binary(), patterns(), patterns()
    sgd = GradientMStep(lambda params: torch.optim.SGD(params, lr=0.1), steps=1)
    EM(one, m_step=sgd, init="given").step(x)
    (-two.log_px(x).mean()).backward()
    with torch.no_grad():
        for p, q in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.allclose(p, q - 0.1 * q.grad, rtol=0, atol=1e-12)


def test_steps_that_overshoot_are_taken_back_and_halved():
    """With a learning rate of 1000 it halves until the steps go up; log p(x) never falls."""
    x, mixture = binary(), patterns()
    m_step = GradientMStep(lambda params: torch.optim.SGD(params, lr=1e3), steps=2)
    em = EM(mixture, m_step=m_step, init="given").fit(x, 10, tolerance=0)
    assert min(np.diff([step.log_px for step in em.history])) > -1e-12
    assert em.log_px > em.history[0].log_px + 0.5
    assert m_step.optimizer.param_groups[0]["lr"] < 1e3


def test_generalized_em_resumes_with_its_optimizer(tmp_path):
    x = binary()
    whole = EM(patterns(), m_step=GradientMStep(), init="given").fit(x, 6, tolerance=0)
    half = EM(patterns(), m_step=GradientMStep(), init="given").fit(x, 3, tolerance=0)
    save_state(tmp_path, "em", half.state_dict())
    resumed = EM(patterns(), m_step=GradientMStep())
    resumed.load_state_dict(load_state(tmp_path, "em"))
    assert resumed.fit(x, 3, tolerance=0).history == whole.history


def test_restarts_begin_with_a_fresh_optimizer():
    x = binary()
    em = EM(patterns(), m_step=GradientMStep(), restarts=3).fit(x, 4, tolerance=0)
    alone = EM(patterns(), m_step=GradientMStep(), seed=2).fit(x, 4, tolerance=0)
    assert abs(em.tried[2] - alone.log_px) < 1e-12


def test_nothing_to_train_is_refused():
    mixture = patterns()
    for parameter in mixture.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient.*Try"):
        EM(mixture, m_step=GradientMStep(), init="given").step(binary())


def test_a_user_module_with_expected_log_joint_trains_by_gradients():
    class Coins2(nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([-0.5, 0.5]))

        def log_joint(self, x):
            tosses = torch.distributions.Binomial(10, logits=self.logits)
            return tosses.log_prob(x[:, None]) + np.log(0.5)

        @torch.no_grad()
        def e_step(self, x):
            return Categorical(logits=self.log_joint(x))

        def log_px(self, x):
            return self.log_joint(x).logsumexp(-1)

        def expected_log_joint(self, x, posterior):
            return (posterior.probs * self.log_joint(x)).sum(-1)

    module, coins = Coins2(), Coins()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_gradients = EM(module, m_step=GradientMStep(pv.adam(0.1), 20)).fit(HEADS, 100, 1e-10)
    closed = EM(coins).fit(HEADS, 500, 1e-12)
    assert abs(by_gradients.log_px - closed.log_px) < 1e-5
