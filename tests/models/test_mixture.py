"""The Gaussian mixture against scikit-learn, and as a Pyro program against its closed forms."""

import warnings

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch.distributions import Categorical, MultivariateNormal

import pyrovae as pv
from pyrovae.models.mixture import COVARIANCES, GaussianMixture

SKLEARN_NAMES = {"diagonal": "diag"}
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def iris():
    return torch.from_numpy(load_iris().data)  # has a duplicate row


def started(covariance, classes=3, seed=0, **options):
    """A mixture started from iris at random, away from any optimum."""
    mixture = GaussianMixture(4, classes, covariance, **options)
    mixture.initialize(iris(), "data", seed)
    return mixture


def as_sklearn_has_them(mixture):
    """Weights, means and covariances in scikit-learn's shapes."""
    full = mixture.covariances.detach()
    shapes = {
        "full": lambda: full,
        "tied": lambda: full[0],
        "diagonal": lambda: full.diagonal(dim1=-2, dim2=-1),
        "spherical": lambda: full[:, 0, 0],
    }
    values = mixture.weights, mixture.loc, shapes[mixture.covariance]()
    return [value.detach().clone().numpy() for value in values]


def sklearn_twin(mixture, max_iter=1):
    """scikit-learn's mixture, started from the same parameters."""
    weights, means, covariances = as_sklearn_has_them(mixture)
    matrices = mixture.covariance in ("full", "tied")
    return SklearnMixture(
        mixture.classes,
        covariance_type=SKLEARN_NAMES.get(mixture.covariance, mixture.covariance),
        reg_covar=mixture.reg_covar,
        weights_init=weights / weights.sum(),
        means_init=means,
        precisions_init=np.linalg.inv(covariances) if matrices else 1 / covariances,
        max_iter=max_iter,
        tol=0.0,
        warm_start=True,
    )


def fit_quietly(twin, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # one iteration does not converge
        return twin.fit(x.numpy())


@every_covariance
@pytest.mark.parametrize("reg_covar", [1e-6, 0.0])
def test_each_iteration_is_that_of_scikit_learn(covariance, reg_covar):
    x, mixture = iris(), started(covariance, seed=4, reg_covar=reg_covar)
    twin = sklearn_twin(mixture)
    em = pv.EM(mixture, init="given")
    for _ in range(60):
        e, m = em.step(x)
        fit_quietly(twin, x)
        # its lower_bound_ is the mean log p(x) before the M-step, its score that after it
        assert abs(twin.lower_bound_ - e.log_px) < 1e-8
        assert abs(twin.score(x.numpy()) - m.log_px) < 1e-8
        theirs = twin.weights_, twin.means_, twin.covariances_
        for own, other in zip(as_sklearn_has_them(mixture), theirs, strict=True):
            assert np.abs(own - other).max() < 1e-8
        responsibilities = mixture.e_step(x).probs.numpy()
        assert np.abs(responsibilities - twin.predict_proba(x.numpy())).max() < 1e-8
    assert em.history[-1].log_px > em.history[0].log_px + 0.5  # it went somewhere


@every_covariance
def test_log_px_never_falls_over_200_iterations(covariance):
    x = iris()
    em = pv.EM(started(covariance, seed=4, reg_covar=0.0), init="given")
    em.fit(x, 200, tolerance=0.0)
    totals = [len(x) * step.log_px for step in em.history]
    assert em.iteration == 200
    assert min(np.diff(totals)) > -1e-10  # all data together
    assert totals[-1] > totals[0] + 50


@every_covariance
def test_the_ridge_is_a_penalty_that_the_m_step_maximizes(covariance):
    """Any move of the parameters off the M-step lowers E log p(x, z) + penalty."""
    x, mixture = iris(), started(covariance, reg_covar=0.3)
    posterior = mixture.e_step(x)

    def objective():
        return mixture.expected_log_joint(x, posterior).sum() + mixture.penalty(x, posterior)

    mixture.m_step(x, posterior)
    with torch.no_grad():
        best = objective()
        for parameter in mixture.parameters():
            for _ in range(20):
                at = parameter.clone()
                parameter += 1e-3 * torch.randn_like(at)
                assert objective() <= best
                parameter.copy_(at)


@every_covariance
def test_closed_forms_are_those_of_the_density(covariance):
    x, mixture = iris(), started(covariance)
    pv.EM(mixture, init="given").step(x)
    parts = MultivariateNormal(mixture.loc[:, None], mixture.covariances[:, None])
    joint = parts.log_prob(x).T + mixture.weights.log()
    assert torch.allclose(mixture.log_joint(x), joint, rtol=0, atol=1e-10)
    assert torch.allclose(mixture.log_px(x), joint.logsumexp(-1), rtol=0, atol=1e-10)
    assert torch.allclose(mixture.e_step(x).probs, joint.softmax(-1), rtol=0, atol=1e-12)


def test_it_is_right_far_from_zero_and_in_the_far_tail():
    """Log-sum-exp and centred covariances: an offset of 1e6 and a distance of 1e3 sd."""
    x, offset = iris(), 1e6
    near, far = started("full"), started("full")
    with torch.no_grad():
        far.loc += offset
    for mixture, data in [(near, x), (far, x + offset)]:
        pv.EM(mixture, init="given").fit(data, 20, tolerance=0)
    assert torch.allclose(far.covariances, near.covariances, rtol=0, atol=1e-6)
    tail = near.log_px(torch.full((1, 4), 1e3))
    assert tail.isfinite()
    assert tail < -1e4


# The program -----------------------------------------------------------------------------------


def no_guide(x):
    """Nothing is drawn: z is summed out in the model."""


@every_covariance
@pytest.mark.parametrize("guided", [True, False], ids=["exact guide", "summed out in the model"])
def test_trace_enum_is_minus_log_px_and_so_is_its_gradient(covariance, guided):
    x, mixture = iris(), started(covariance)
    guide = mixture.guide if guided else no_guide
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(mixture.model, guide, x)
    exact = -mixture.log_px(x).sum()
    assert torch.allclose(loss, exact, rtol=0, atol=1e-8)
    params = list(mixture.parameters())
    grads = zip(torch.autograd.grad(loss, params), torch.autograd.grad(exact, params), strict=True)
    assert all(torch.allclose(ours, theirs, rtol=0, atol=1e-8) for ours, theirs in grads)


def from_kmeans(covariance):
    mixture = GaussianMixture(4, 2, covariance)
    mixture.initialize(iris())
    return mixture


@pytest.mark.parametrize("covariance", ["full", "spherical"])
def test_svi_climbs_to_where_em_does(covariance):
    best = pv.EM(from_kmeans(covariance), init="given").fit(iris(), 100, tolerance=1e-9).log_px
    mixture, loss = from_kmeans(covariance), TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(mixture.model, mixture.guide, pyro.optim.Adam({"lr": 0.05}), loss)
    assert mixture.log_px(iris()).mean() < best - 0.05
    for _ in range(80):
        svi.step(iris())
    assert best - 1e-3 < mixture.log_px(iris()).mean() < best + 1e-6


def test_fit_climbs_to_where_em_does():
    best = pv.EM(from_kmeans("full"), init="given").fit(iris(), 100, tolerance=1e-9).log_px
    mixture = from_kmeans("full")
    run = pv.fit(
        mixture.model,
        mixture.guide,
        iris(),
        objective=TraceEnum_ELBO(max_plate_nesting=1),
        optimizer=pv.adam(0.05),
        epochs=80,
        batch_size=150,
        progress=False,
    )
    reached = mixture.log_px(iris()).mean().item()
    assert best - 1e-3 < reached < best + 1e-6
    assert abs(run.history[-1]["elbo"] - reached) < 1e-3  # the loss is log p(x), a step before


def test_log_evidence_with_the_exact_guide_has_no_noise():
    """Every weight p(x, z) / p(z|x) is p(x), whatever z was drawn."""
    x, mixture = iris()[:20], started("full")
    evidence = pv.log_evidence(mixture.model, mixture.guide, x, particles=3, seed=0)
    assert torch.allclose(evidence.log_px, mixture.log_px(x), rtol=0, atol=1e-9)
    assert evidence.std_error.max() < 1e-7  # rounding, under a root


# Trouble ---------------------------------------------------------------------------------------


def test_an_empty_class_keeps_its_place_and_is_named():
    x, mixture = iris(), started("full")
    with torch.no_grad():
        mixture.loc[1] = 1e4
    before = mixture.covariances[1].clone()
    with pytest.warns(UserWarning, match=r"no datum belongs to class\(es\) \[1\].*Try"):
        pv.EM(mixture, init="given").step(x)
    assert torch.equal(mixture.loc[1], torch.full((4,), 1e4))
    assert torch.equal(mixture.covariances[1], before)
    assert mixture.weights[1] < 1e-14
    assert mixture.log_px(x).isfinite().all()


def test_a_class_on_one_datum_is_held_by_the_ridge():
    x, posterior = iris(), torch.zeros(150, 2)
    posterior[0, 0], posterior[1:, 1] = 1, 1
    mixture = GaussianMixture(4, 2)
    mixture.m_step(x, Categorical(probs=posterior))
    assert torch.allclose(mixture.covariances[0], 1e-6 * torch.eye(4), rtol=1e-9)
    pv.EM(mixture, init="given").fit(x, 20, tolerance=0)


@every_covariance
def test_a_singular_covariance_is_refused_before_anything_moves(covariance):
    x = torch.cat([torch.zeros(10, 3), torch.ones(10, 3)])
    labels = torch.arange(2).repeat_interleave(10)
    posterior = Categorical(probs=torch.eye(2)[labels])
    mixture = GaussianMixture(3, 2, covariance, reg_covar=0.0)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    with pytest.raises(ValueError, match="singular after the M-step.*Expected.*Try: reg_covar"):
        mixture.m_step(x, posterior)
    assert all(torch.equal(before[n], value) for n, value in mixture.state_dict().items())
    GaussianMixture(3, 2, covariance).m_step(x, posterior)  # the default ridge holds


def test_duplicates_of_one_datum_are_too_few_to_start_from():
    x = torch.tensor([[0.0, 1.0]]).repeat(20, 1)
    for how in ("kmeans", "data"):
        with pytest.raises(ValueError, match="only 1 different data for 2 classes"):
            GaussianMixture(2, 2).initialize(x, how)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 0}, "classes must be a whole number"),
        ({"features": 2.5}, "features must be a whole number"),
        ({"covariance": "diag"}, "unknown covariance 'diag'.*Expected.*'diagonal'"),
        ({"reg_covar": -1.0}, "reg_covar must be finite and at least 0"),
    ],
)
def test_impossible_mixtures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{"features": 2, "classes": 2} | change)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (lambda: torch.zeros(3, 4), ValueError, "3 data for 5 classes.*Expected.*Try"),
        (
            lambda: torch.zeros(9, 3),
            ValueError,
            r"expected a batch of shape \[B, 4\], got \[9, 3\].*Try",
        ),
        (lambda: torch.zeros(0, 4), ValueError, "the batch is empty.*Expected.*Try"),
        (lambda: torch.zeros(9, 4).float(), ValueError, "the data are torch.float32.*Try"),
        (lambda: np.zeros((9, 4)), TypeError, "expected a tensor, got ndarray.*Try"),
        (
            lambda: torch.full((9, 4), torch.nan),
            ValueError,
            "nan at row 0, feature 0.*Expected.*Try",
        ),
    ],
)
def test_data_it_cannot_take_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        pv.EM(GaussianMixture(4, 5)).fit(x())


def test_an_unknown_start_is_refused():
    with pytest.raises(ValueError, match="cannot start by 'k-means'.*Expected.*Try: 'kmeans'"):
        GaussianMixture(4, 2).initialize(iris(), "k-means")


@pytest.mark.parametrize("how", ["kmeans", "data", "random"])
def test_starts_are_reproducible_and_leave_the_random_state(how):
    state = torch.get_rng_state()
    one, two = started("full"), started("full")
    torch.set_rng_state(state)
    one.initialize(iris(), how, seed=3)
    two.initialize(iris(), how, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_kmeans_start_is_scikit_learns():
    x, mixture = iris(), GaussianMixture(4, 3)
    mixture.initialize(x, "kmeans", seed=5)
    em = pv.EM(mixture, init="given")
    e, _ = em.step(x)
    twin = fit_quietly(SklearnMixture(3, max_iter=1, random_state=5), x)
    assert abs(twin.lower_bound_ - e.log_px) < 1e-8
