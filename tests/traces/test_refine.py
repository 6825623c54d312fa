"""Posteriors refined datum by datum: where they start, where they go, what is differentiated."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import distributions as own
from pyrovae.traces.refine import Refinement, take_apart
from tests import programs
from tests.ppca import PPCA

PATHWISE = [p for p in programs.PROGRAMS if p.pathwise and p.name != "joint_autoguide"]
DEPENDENT = {"top_down", "bottom_up", "time_loop", "auxiliary_site", "autoguide"}


def refined(program, **options):
    model, guide, args, kwargs = program.build()
    return Refinement(model, guide, args, kwargs, **options), (model, guide, args, kwargs)


@pytest.mark.parametrize("program", PATHWISE, ids=lambda p: p.name)
def test_at_offset_zero_q_is_the_guides(program):
    refinement, (model, guide, args, kwargs) = refined(program)
    pyro.set_rng_seed(3)
    expected = pv.terms(model, guide, *args, **kwargs)
    if program.name == "subsampled_inside":  # the rows were drawn once, at the start
        expected = None
    pyro.set_rng_seed(3)
    found = refinement.terms()
    if expected is not None and program.name not in ("subsampled", "global_latent"):
        for name, latent in expected.latents.items():
            assert torch.allclose(found.latents[name].value, latent.value), name
        assert torch.allclose(found.log_weights, expected.log_weights)
    assert refinement._depends == (program.name in DEPENDENT)
    for (site, _), offset in refinement.offsets.items():
        assert offset.shape[refinement._axis(site)] == refinement.plate.size


@pytest.mark.parametrize("program", PATHWISE, ids=lambda p: p.name)
def test_a_climb_raises_the_bound_of_every_program(program):
    refinement, _ = refined(program)
    objective = pv.ELBO()

    def bound():
        pyro.set_rng_seed(5)
        with torch.no_grad():
            return torch.stack([objective.bound(refinement.terms()) for _ in range(40)]).mean()

    before = bound()
    refinement.climb(objective.objective, 25, 0.05, clip_norm=5.0)
    assert bound() > before


def test_the_end_is_the_exact_posterior():
    """One latent: a Normal can be the posterior; then every draw weighs log p(x)."""
    ppca = PPCA.random(latent=1)
    x = ppca.sample(8)
    start = nn.Parameter(torch.zeros(1))

    def guide(x):
        with pyro.plate("data", len(x)):
            q = dist.Normal(pyro.param("loc", start).expand(len(x), 1), 0.5 * (start + 1).abs())
            pyro.sample("z", q.to_event(1))

    refinement = Refinement(ppca.programs()[0], guide, (x,), {}, particles=100)
    for lr in (0.1, 0.03):
        refinement.climb(pv.ELBO().objective, 60, lr)
    exact, found = ppca.posterior(x), refinement.posterior("z")
    scale = exact.variance.sqrt()
    assert ((found.mean - exact.mean) / scale).abs().max() < 0.2  # noise of 100 draws a step
    assert (found.base_dist.scale / scale).log().abs().max() < 0.2
    assert torch.allclose(ppca.elbo(x, found), ppca.log_px(x), atol=0.03)


def test_each_datum_climbs_by_itself():
    """The offsets of one datum do not depend on which others are in the batch."""
    model, guide, (x,), _ = programs.with_pyro_module()
    ends = []
    for rows in (x, x[:2]):
        refinement = Refinement(model, guide, (rows,), {})
        refinement.climb(lambda t: -(t.latents["z"].value[0] - 1).square().sum(-1), 3, 0.1)
        ends.append(refinement.offsets["z", "loc"])
    kl = []
    for rows in (x, x[:2]):  # no noise in it: the same to the last digits
        refinement = Refinement(model, guide, (rows,), {})
        refinement.climb(lambda terms: -terms.latents["z"].kl, 5, 0.1, clip_norm=0.2)
        kl.append(refinement.offsets["z", "scale"])
    assert torch.allclose(kl[0][:2], kl[1])
    assert ends[0].shape == (6, 2)


def test_clipping_is_per_datum():
    model, guide, (x,), _ = programs.with_pyro_module()
    x = x * torch.tensor([1.0, 30.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    refinement = Refinement(model, guide, (x,), {})
    refinement.climb(pv.ELBO().objective, 1, 1.0, clip_norm=0.5)
    squares = sum(o.square().sum(-1) for o in refinement.offsets.values())
    assert (squares.sqrt() <= 0.5 + 1e-9).all()
    assert squares.sqrt()[1] == pytest.approx(0.5)


@pytest.mark.parametrize("which", [0, 1], ids=["decoder", "encoder"])
def test_the_gradient_through_the_steps_is_that_of_finite_differences(which):
    """End to end (Kim et al. 2018): the bound at the end, in the parameters of both programs."""
    model, guide, (x,), _ = programs.with_pyro_module()
    from pyrovae.traces import modules_of

    weight = modules_of(model, guide)[which][0].weight

    def end():
        pyro.set_rng_seed(7)
        refinement = Refinement(model, guide, (x,), {})
        refinement.climb(
            pv.ELBO().objective, 3, 0.2, momentum=0.5, clip_norm=1.0, create_graph=True
        )
        return pv.ELBO().objective(refinement.terms()).sum()

    gradient = torch.autograd.grad(end(), weight)[0]
    for place in [(0, 0), (3, 1), (6, 1)]:
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += step
            values.append(end().item())
            with torch.no_grad():
                weight[place] -= step
        assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def leaf(*values):
    return nn.Parameter(torch.tensor(values))


FAMILIES = {
    "normal": lambda: dist.Normal(leaf(0.3, -1.0), leaf(0.5, 2.0)),
    "event": lambda: dist.Normal(leaf([0.3], [1.0]), leaf([0.5], [2.0])).to_event(1),
    "shared scale": lambda: dist.Normal(leaf(0.3, -1.0), nn.Parameter(torch.tensor(0.5))),
    "student": lambda: own.StudentT(5.0, leaf(0.3, -1.0), leaf(0.5, 2.0)),
    "log-normal": lambda: dist.LogNormal(leaf(0.3, -1.0), leaf(0.5, 2.0)),
    "gamma": lambda: dist.Gamma(leaf(1.5, 3.0), leaf(0.5, 2.0)),
    "own gamma": lambda: own.Gamma(leaf(1.5, 3.0), leaf(0.5, 2.0)),
    "beta": lambda: own.Beta(leaf(1.5, 3.0), leaf(0.5, 2.0)),
    "dirichlet": lambda: dist.Dirichlet(leaf([1.5, 3.0, 1.0], [0.5, 2.0, 1.0])),
    "multivariate": lambda: dist.MultivariateNormal(
        leaf([0.1, 0.2], [0.3, 0.4]), scale_tril=nn.Parameter(torch.eye(2).expand(2, 2, 2))
    ),
    "masked": lambda: dist.Normal(leaf(0.3, -1.0), leaf(0.5, 2.0)).mask(
        torch.tensor([True, False])
    ),
    "expanded": lambda: dist.Normal(nn.Parameter(torch.tensor(0.1)), 1.0).expand([2]),
    "transformed": lambda: dist.TransformedDistribution(
        dist.Normal(leaf(0.3, -1.0), leaf(0.5, 2.0)), [dist.transforms.SigmoidTransform()]
    ),
    "weibull": lambda: own.Weibull(leaf(1.3, 1.0), leaf(1.5, 2.0)),
    "on a circle": lambda: own.VonMises(leaf(0.3, -1.0), leaf(0.5, 2.0)),
    "on a sphere": lambda: own.PowerSpherical(leaf([1.0, 0.0], [0.6, 0.8]), leaf(3.0, 2.0)),
    "uniform": lambda: dist.Uniform(leaf(0.3, -1.0), leaf(0.5, 2.0)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_distribution_taken_apart_and_put_together(name):
    fn = FAMILIES[name]()
    pieces = take_apart(fn, "z")
    zeros = {k: torch.zeros(shape) for k, shape in pieces.shapes.items()}
    again = pieces.build(zeros)
    assert (again.batch_shape, again.event_shape) == (fn.batch_shape, fn.event_shape)
    value = fn.sample()
    assert torch.allclose(again.log_prob(value), fn.log_prob(value))
    offsets = {k: (0.3 * torch.randn_like(z)).requires_grad_() for k, z in zeros.items()}
    moved = pieces.build(offsets)
    checked = type(moved) is not type(fn) or moved.rsample()
    assert checked is not None
    total = moved.log_prob(value.detach().clone()).sum()
    gradients = torch.autograd.grad(total, list(offsets.values()), allow_unused=True)
    assert all(g is not None and g.isfinite().all() for g in gradients)
    for key, z in zeros.items():  # one entry a datum, whatever the guide shares between them
        assert z.shape[0] == 2, key


def test_what_the_guide_does_not_learn_stays_as_it_is():
    assert set(take_apart(FAMILIES["student"](), "z").free) == {"loc", "scale"}
    fixed = dist.Normal(torch.zeros(2), torch.ones(2))  # nothing learned: everything moves
    assert set(take_apart(fixed, "z").free) == {"loc", "scale"}


def test_a_location_moves_in_units_of_its_scale():
    pieces = take_apart(FAMILIES["normal"](), "z")
    moved = pieces.build({"loc": torch.ones(2), "scale": torch.full((2,), 2.0).log()})
    assert torch.allclose(moved.loc, torch.tensor([0.8, 1.0]))
    assert torch.allclose(moved.scale, torch.tensor([1.0, 4.0]))


def test_particles_stand_on_the_left():
    model, guide, args, _ = programs.two_latents()
    refinement = Refinement(model, guide, args, {}, particles=3)
    refinement.climb(pv.IWAE(3).objective, 2, 0.1, clip_norm=1.0)
    assert refinement.terms().log_weights.shape == (3, 6)
    model, guide, args, kwargs = programs.time_loop()
    refinement = Refinement(model, guide, args, kwargs, particles=3)
    refinement.climb(pv.IWAE(3).objective, 2, 0.1, clip_norm=1.0)
    assert refinement.terms().log_weights.shape == (3, 6)


def test_refusals():
    model, guide, args, _ = programs.discrete_latent()
    with pytest.raises(NotImplementedError, match=r"site 'z' \(Categorical\) has no rsample"):
        Refinement(model, guide, args, {})
    model, guide, args, _ = programs.joint_autoguide()
    with pytest.raises(ValueError, match="no latent site in the data plate 'data' has a param"):
        Refinement(model, guide, args, {})
    model, guide, args, _ = programs.images()
    em = pv.VariationalEM(model, guide, pv.ELBO(particles=2), schedule=pv.SemiAmortized(1))
    with (
        pytest.warns(UserWarning, match="cannot run with a particle"),
        pytest.raises(NotImplementedError, match="refinement with 2 particles.*particles=1"),
    ):
        em.step(*args)
