"""Objectives against Pyro's losses, probabilistic PCA, and each other."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO

import pyrovae as pv
from tests import programs
from tests.ppca import PPCA

LIKE_PYRO = [
    programs.with_pyro_module,
    programs.with_bare_params,
    programs.with_pyro_modules,
    programs.with_nets_in_closures,
    programs.two_latents,
    programs.top_down,
    programs.subsampled,
    programs.masked,
    programs.scaled,
    programs.nested_plates,
    programs.time_loop,
    programs.global_latent,
    programs.conditional,
    programs.autoguide,
]


def value_and_gradients(loss, build, seed=11):
    """The loss and every leaf's gradient, networks in closures included."""
    pyro.clear_param_store()
    model, guide, args, kwargs = build()
    guide(*args, **kwargs)
    with poutine.trace(param_only=True) as declared:
        model(*args, **kwargs), guide(*args, **kwargs)
    sites = [s for s in declared.trace.nodes.values() if s["type"] == "param"]
    leaves = [site["value"].unconstrained() for site in sites]
    leaves += [p for module in pv.traces.modules_of(model, guide) for p in module.parameters()]
    pyro.set_rng_seed(seed)
    value = loss.differentiable_loss(model, guide, *args, **kwargs)
    value.backward()
    return value.item(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("build", LIKE_PYRO, ids=lambda b: b.__name__)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(pv.ELBO(analytic_kl=False), Trace_ELBO()), (pv.ELBO(), TraceMeanField_ELBO())],
    ids=["A", "B"],
)
@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
def test_value_and_every_gradient_equal_pyros(ours, theirs, build):
    value, grads = value_and_gradients(ours, build)
    expected, expected_grads = value_and_gradients(theirs, build)
    assert value == pytest.approx(expected, rel=1e-9)
    assert len(grads) == len(expected_grads) > 0
    for got, want in zip(grads, expected_grads, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_bottom_up_guide_is_right_where_mean_field_is_not():
    """A linear-Gaussian z2 -> z1 -> x, the exact posterior factored bottom-up.

    The ELBO is log p(x) for any draw.
    """
    x = torch.tensor([0.3, -1.2, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):  # p(z1|x) = N(2x/3, 2/3), p(z2|z1) = N(z1/2, 1/2)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, math.sqrt(2 / 3)))
            pyro.sample("z2", dist.Normal(z1 / 2, math.sqrt(0.5)))

    exact = dist.Normal(0.0, math.sqrt(3)).log_prob(x).sum().item()
    draws = [-pv.ELBO(analytic_kl=False).loss(model, guide, x) for _ in range(5)]
    assert draws == pytest.approx([exact] * 5, abs=1e-10)
    # analytic for z2 only: unbiased, so a mean over particles is exact within its standard error
    particles = 40_000
    terms = pv.ELBO(particles=particles).terms(model, guide, x)
    assert terms.latents["z1"].kl is None
    assert terms.latents["z2"].kl is not None
    per_particle = (
        terms.log_likelihood - terms.latents["z1"].sampled_kl - terms.latents["z2"].kl
    ).sum(1)
    error = per_particle.std() / math.sqrt(particles)
    assert abs(per_particle.mean() - exact) < 4.5 * error  # false alarm 7e-6
    with pytest.warns(UserWarning, match="mean field"):
        wrong = -TraceMeanField_ELBO(
            num_particles=200, vectorize_particles=True, max_plate_nesting=1
        ).loss(model, guide, x)
    assert abs(wrong - exact) > 0.3


class TestLinearGaussian:
    """Everything about bounds against the closed form of probabilistic PCA."""

    @pytest.fixture(autouse=True)
    def _model(self):
        self.ppca = PPCA.random()
        self.x = self.ppca.sample(20)

    def test_the_exact_posterior_makes_every_weight_the_evidence(self):
        model, guide = self.ppca.programs("exact")
        log_px = self.ppca.log_px(self.x)
        terms = pv.terms(model, guide, self.x, particles=7)
        torch.testing.assert_close(terms.log_weights, log_px.expand(7, 20), rtol=0, atol=1e-10)
        for objective in (pv.ELBO(analytic_kl=False), pv.IWAE(4), pv.Renyi(0.5, 3)):
            bound = objective.per_datum(model, guide, self.x)
            torch.testing.assert_close(bound, log_px, rtol=0, atol=1e-10)

    def test_bounds_are_ordered_with_a_wrong_guide(self):
        """ELBO <= IWAE_5 <= IWAE_50 <= log p(x) for each datum, by means of 4,000 repetitions."""
        model, guide = self.ppca.programs("wrong")
        log_weights = pv.terms(model, guide, self.x, particles=200_000).log_weights
        log_px = self.ppca.log_px(self.x)
        elbo = pv.bounds.elbo(log_weights)
        iwae = {k: pv.bounds.iwae(log_weights.reshape(k, -1, 20)).mean(0) for k in (5, 50)}
        assert (elbo < iwae[5]).all()
        assert (iwae[5] < iwae[50]).all()
        assert (iwae[50] < log_px).all()
        expected = self.ppca.elbo(self.x, self.ppca.wrong(self.x))
        error = log_weights.std(0) / math.sqrt(200_000)
        assert ((elbo - expected).abs() < 5 * error).all()  # false alarm 20 * 6e-7

    def test_analytic_elbo_is_the_closed_form_in_expectation(self):
        model, guide = self.ppca.programs("wrong")
        terms = pv.ELBO(particles=50_000).terms(model, guide, self.x)
        bound = pv.ELBO(particles=50_000).bound(terms)
        expected = self.ppca.elbo(self.x, self.ppca.wrong(self.x))
        error = terms.log_likelihood.std(0) / math.sqrt(50_000)
        assert ((bound - expected).abs() < 5 * error).all()

    @pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
    def test_estimators_share_the_value(self, estimator):
        model, guide = self.ppca.programs("wrong")
        pyro.set_rng_seed(3)
        loss = pv.IWAE(6, estimator=estimator).differentiable_loss(model, guide, self.x)
        pyro.set_rng_seed(3)
        assert loss.item() == pytest.approx(pv.IWAE(6).loss(model, guide, self.x), rel=1e-12)

    def test_stl_and_dreg_gradients_vanish_at_the_exact_posterior(self):
        """No variance and no bias where q is the posterior; the plain gradient is noise."""
        exact = self.ppca.posterior(self.x)
        loc = exact.mean.clone().requires_grad_()
        tril = exact.scale_tril.clone().requires_grad_()
        model, _ = self.ppca.programs("exact")

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

        size = {}
        for estimator in ("iwae", "stl", "dreg"):
            loc.grad = None
            pv.IWAE(4, estimator=estimator).differentiable_loss(model, guide, self.x).backward()
            size[estimator] = loc.grad.abs().max().item()
        assert size["stl"] < 1e-10
        assert size["dreg"] < 1e-10
        assert size["iwae"] > 0.1

    def test_dreg_is_unbiased_for_the_guide_and_plain_for_the_model(self):
        """Mean gradients of 40,000 draws agree within standard errors (z < 5, 6 numbers: 3e-6)."""
        ppca, x = PPCA.random(features=3, latent=2), PPCA.random(features=3, latent=2).sample(1)
        base = ppca.wrong(x).base_dist
        repeats, k = 40_000, 3
        grads = {}
        for estimator in ("iwae", "dreg"):
            loc = base.loc.expand(repeats, 2).clone().requires_grad_()
            mean = ppca.mean.expand(repeats, 3).clone().requires_grad_()

            def model(x, mean=mean):
                with pyro.plate("data", repeats):
                    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                    pyro.sample(
                        "x", dist.Normal(z @ ppca.W.T + mean, ppca.sigma).to_event(1), obs=x
                    )

            def guide(x, loc=loc):
                with pyro.plate("data", repeats):
                    pyro.sample("z", dist.Normal(loc, base.scale).to_event(1))

            pyro.set_rng_seed(0)
            objective = pv.IWAE(k, estimator=estimator)
            objective.differentiable_loss(model, guide, x.expand(repeats, 3)).backward()
            grads[estimator] = loc.grad, mean.grad
        for plain, dreg in zip(grads["iwae"][:1], grads["dreg"][:1], strict=True):
            error = ((plain.var(0) + dreg.var(0)) / repeats).sqrt()
            assert ((plain.mean(0) - dreg.mean(0)).abs() < 5 * error).all()
            assert (dreg.var(0) < plain.var(0)).all()
        torch.testing.assert_close(grads["iwae"][1], grads["dreg"][1], rtol=1e-9, atol=1e-12)

    def test_d1_iwae_stays_a_bound_on_a_subsampled_plate(self):
        """Trap D1: with N/B inside the logarithm Pyro's RenyiELBO goes above log p(x).

        Ours is N/B times the bound.
        """
        x, total = self.x[:5], 50

        def sized(program):
            # the same programs with plate(size=50) around 5 rows
            def run(x):
                frame = pyro.plate

                def plate(name, size, **options):
                    return frame(name, total, subsample=torch.arange(size), **options)

                pyro.plate = plate
                try:
                    return program(x)
                finally:
                    pyro.plate = frame

            return run

        model, guide = self.ppca.programs("wrong", shift=2.0, widen=2.0)
        sub_model, sub_guide = sized(model), sized(guide)
        limit = 10 * self.ppca.log_px(x).sum().item()
        pyro.set_rng_seed(1)
        plain = -pv.IWAE(64).loss(model, guide, x)
        pyro.set_rng_seed(1)
        ours = -pv.IWAE(64).loss(sub_model, sub_guide, x)
        assert ours == pytest.approx(10 * plain, rel=1e-12)
        repeats = torch.tensor([-pv.IWAE(64).loss(sub_model, sub_guide, x) for _ in range(50)])
        assert repeats.mean() < limit
        renyi = RenyiELBO(alpha=0, num_particles=64, vectorize_particles=True, max_plate_nesting=1)
        assert -renyi.loss(sub_model, sub_guide, x) > limit  # the trap is still there

    def test_a_scale_around_both_programs_stays_outside_the_logarithm(self):
        model, guide = self.ppca.programs("wrong")
        scaled = poutine.scale(model, 0.1), poutine.scale(guide, 0.1)
        pyro.set_rng_seed(0)
        plain = pv.IWAE(8).loss(model, guide, self.x)
        pyro.set_rng_seed(0)
        assert pv.IWAE(8).loss(*scaled, self.x) == pytest.approx(0.1 * plain, rel=1e-12)
        pyro.set_rng_seed(0)
        bound = pv.IWAE(8).per_datum(*scaled, self.x)
        assert -bound.sum().item() == pytest.approx(plain, rel=1e-12)

    def test_a_scale_on_some_sites_is_refused_by_name(self):
        model, guide = self.ppca.programs("wrong")
        with pytest.raises(ValueError, match="poutine.scale differs between sites 'x'.*'z'"):
            pv.IWAE(8).loss(model, poutine.scale(guide, 0.5), self.x)

    def test_without_a_subsample_iwae_equals_pyros(self):
        model, guide = self.ppca.programs("wrong")
        renyi = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
        pyro.set_rng_seed(0)
        theirs = renyi.loss(model, guide, self.x)
        pyro.set_rng_seed(0)  # our probe of the plates' nesting uses no random number
        assert pv.IWAE(5).loss(model, guide, self.x) == pytest.approx(theirs, rel=1e-12)


class TestAnnealing:
    @pytest.fixture(autouse=True)
    def _model(self):
        self.ppca = PPCA.random()
        self.x = self.ppca.sample(10)

    def test_d6_a_warm_up_starts_at_zero(self):
        model, guide = self.ppca.programs("wrong")
        with pytest.raises(ValueError, match="Expected scale > 0"):
            poutine.scale(model, 0.0)(self.x)
        pyro.set_rng_seed(0)
        loss = pv.ELBO(kl_weight=0.0).loss(model, guide, self.x)
        pyro.set_rng_seed(0)
        assert loss == pytest.approx(
            -pv.terms(model, guide, self.x).log_likelihood.sum().item(), rel=1e-12
        )

    def test_the_weight_may_be_a_tensor_and_change(self):
        model, guide = self.ppca.programs("wrong")
        objective = pv.ELBO(kl_weight=torch.tensor(0.0))
        losses = []
        for weight in (0.0, 1.0, 0.5):
            objective.kl_weight.fill_(weight)
            pyro.set_rng_seed(0)
            losses.append(objective.loss(model, guide, self.x))
        assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2, rel=1e-12)
        assert losses[1] > losses[0]

    def test_per_datum_is_the_true_bound_under_annealing(self):
        model, guide = self.ppca.programs("wrong")
        pyro.set_rng_seed(0)
        annealed = pv.ELBO(kl_weight=0.1, free_bits=3.0).per_datum(model, guide, self.x)
        pyro.set_rng_seed(0)
        torch.testing.assert_close(
            annealed, pv.ELBO().per_datum(model, guide, self.x), rtol=1e-12, atol=0
        )

    def test_d7_scaling_the_model_alone_has_its_effect(self):
        """Under TraceMeanField_ELBO it has none where the KL is analytic.

        Ours equals the sampled estimator.
        """
        model, guide = self.ppca.programs("wrong")

        def annealed(x):
            with poutine.scale(scale=0.1):
                model(x)

        seeds = []
        for objective in (pv.ELBO(), pv.ELBO(analytic_kl=False)):
            pyro.set_rng_seed(0)
            seeds.append(objective.loss(annealed, guide, self.x))
        assert seeds[0] == pytest.approx(seeds[1], rel=1e-12)
        pyro.set_rng_seed(0)
        assert abs(seeds[0] - pv.ELBO().loss(model, guide, self.x)) > 1

    def test_free_bits_hold_a_small_kl_up_without_gradient(self):
        loc = torch.full((10, 2), 0.1, requires_grad=True)
        model, _ = self.ppca.programs()

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        kl = 0.01  # 2 units of 0.1^2 / 2 nats
        for free, expected in ((0.0, kl), (0.5, 0.5)):
            pyro.set_rng_seed(0)
            with_kl = pv.ELBO(free_bits=free).surrogate(model, guide, self.x)
            pyro.set_rng_seed(0)
            without = pv.ELBO(kl_weight=0.0).surrogate(model, guide, self.x)
            assert (without - with_kl).item() == pytest.approx(10 * expected, rel=1e-9)
        gradient = torch.autograd.grad(with_kl - without, loc)[0]
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "objective", [pv.ELBO(), pv.ELBO(analytic_kl=False), pv.IWAE(5), pv.Renyi(0.5, 5)]
)
def test_objectives_train_under_plain_svi(objective):
    model, guide, args, _ = programs.with_pyro_module()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), objective)
    pyro.set_rng_seed(0)
    before = svi.evaluate_loss(*args)
    for _ in range(150):
        svi.step(*args)
    assert svi.evaluate_loss(*args) < before - 5


def test_the_elbo_module_of_pyro_works():
    model, guide, args, _ = programs.with_pyro_modules()
    module = pv.ELBO()(model, guide)
    pyro.set_rng_seed(0)
    loss = module(*args)
    pyro.set_rng_seed(0)
    assert loss.item() == pytest.approx(pv.ELBO().loss(model, guide, *args))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.ELBO(kl_weight=-1.0), "kl_weight must be finite and at least 0, got -1.0"),
        (lambda: pv.ELBO(free_bits=-0.1), "free_bits"),
        (lambda: pv.ELBO(particles=0), "particles must be at least 1"),
        (lambda: pv.IWAE(5, estimator="vimco"), 'estimator must be "iwae", "stl" or "dreg"'),
        (lambda: pv.Renyi(-1.0, 5), "alpha must be finite and at least 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inner_subsampled_plates_are_refused_by_multi_sample_bounds():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", 4, subsample_size=2, dim=-1) as index:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, index])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 1.0))

    x = torch.randn(3, 4)
    assert math.isfinite(pv.ELBO().loss(model, guide, x))
    with pytest.raises(
        ValueError, match="plate 'pixels' inside the data plate 'data' is subsampled"
    ):
        pv.IWAE(3).loss(model, guide, x)


def test_a_subsampled_loop_over_time_is_weighted_in_the_elbo_and_refused_by_iwae():
    """A sequential plate picks 3 of 10 steps: the ELBO counts them 10/3 times, IWAE cannot."""
    x = torch.randn(4, 10)

    def model(x):
        data = pyro.plate("data", len(x))
        with data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for t in pyro.plate("time", 10, subsample_size=3):
            with data:
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 0.3))

    pyro.set_rng_seed(0)
    bound = pv.ELBO(analytic_kl=False).per_datum(model, guide, x)
    pyro.set_rng_seed(0)
    assert -Trace_ELBO().loss(model, guide, x) == pytest.approx(bound.sum().item(), rel=1e-9)
    with pytest.raises(
        ValueError, match="plate 'time' inside the data plate 'data' is subsampled"
    ):
        pv.IWAE(3).per_datum(model, guide, x)


def test_a_global_plate_may_share_the_data_plates_dim():
    """The usual mixture: components and data both at dim -1, in turn."""
    x = torch.randn(6)

    def model(x):
        with pyro.plate("components", 3):
            centers = pyro.sample("centers", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + centers.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("components", 3):
            pyro.sample("centers", dist.Normal(0.1, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    pyro.set_rng_seed(0)
    ours = pv.ELBO(analytic_kl=False).loss(model, guide, x)
    pyro.set_rng_seed(0)
    assert ours == pytest.approx(Trace_ELBO().loss(model, guide, x), rel=1e-12)


def test_one_scale_as_a_tensor_is_one_scale():
    ppca = PPCA.random()
    x = ppca.sample(5)
    model, guide = ppca.programs("wrong")
    half = torch.tensor(0.5)
    scaled = poutine.scale(model, half), poutine.scale(guide, half)
    pyro.set_rng_seed(0)
    plain = pv.IWAE(4).loss(model, guide, x)
    pyro.set_rng_seed(0)
    assert pv.IWAE(4).loss(*scaled, x) == pytest.approx(0.5 * plain, rel=1e-12)


def test_scales_and_masks_of_elements_are_right_or_refused():
    model, guide, (x,), _ = programs.latents_in_an_inner_plate()
    per_element = torch.rand(programs.D, len(x)) + 0.5
    with pytest.raises(ValueError, match="site 'z': poutine.scale of shape"):
        pv.ELBO().loss(poutine.scale(model, per_element), poutine.scale(guide, per_element), x)
    # one side masked otherwise than the other: sampled, as Trace_ELBO does
    model, guide, (x,), _ = programs.with_pyro_module()
    masks = torch.arange(len(x)) < 4, torch.arange(len(x)) < 2
    masked = poutine.mask(model, mask=masks[0]), poutine.mask(guide, mask=masks[1])
    pyro.set_rng_seed(0)
    ours = pv.ELBO().loss(*masked, x)
    pyro.set_rng_seed(0)
    assert ours == pytest.approx(Trace_ELBO().loss(*masked, x), rel=1e-12)


def test_a_factor_in_the_guide_is_refused():
    model, guide, (x,), _ = programs.with_pyro_module()

    def with_factor(x):
        guide(x)
        pyro.factor("extra", torch.tensor(2.0), has_rsample=True)

    with pytest.raises(ValueError, match="guide: site 'extra' is observed"):
        pv.ELBO().loss(model, with_factor, x)


def test_a_batch_norm_over_as_many_features_as_data_is_not_trusted_with_particles():
    model, guide, (x,), _ = programs.with_pyro_module()
    net = torch.nn.Sequential(
        torch.nn.Linear(2, len(x)), torch.nn.BatchNorm1d(len(x)), torch.nn.Linear(len(x), 5)
    )

    def normed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", programs.prior())
            pyro.sample("x", programs.likelihood(net(z)), obs=x)

    with pytest.warns(UserWarning, match="BatchNorm"):
        terms = pv.terms(normed, guide, x, particles=3)
    alone = [programs.likelihood(net(z)).log_prob(x) for z in terms.latents["z"].value]
    torch.testing.assert_close(terms.log_likelihood, torch.stack(alone))
