"""Every row of tests/programs.py, eager and captured, against Pyro's own handlers."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from tests import programs
from tests.programs import PROGRAMS

rows = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.name)
fallback = pytest.mark.filterwarnings("ignore:the programs cannot run with a particle")


def oracle(model, guide, args, kwargs, guide_trace, plate):
    """Log-weights `[B]` and the global term of one particle by Pyro's traces, unscaled."""
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs)
    local, other = 0.0, 0.0
    for trace, sign in ((model_trace, 1), (guide_trace, -1)):
        for site in prune_subsample_sites(trace).nodes.values():
            if site["type"] != "sample" or site["infer"].get("_deterministic"):
                continue
            if sign < 0 and site["is_observed"]:
                continue
            log_prob = site["fn"].log_prob(site["value"])
            mask = site["mask"]
            if mask is not None:
                log_prob = torch.where(mask, log_prob, 0.0)
            dims = {f.name: f.dim for f in site["cond_indep_stack"]}
            if plate in dims:
                keep = log_prob.dim() + dims[plate]
                rest = [d for d in range(log_prob.dim()) if d != keep]
                local = local + sign * (log_prob.sum(rest) if rest else log_prob)
            else:
                other = other + sign * log_prob.sum()
    return local, other


def global_part(terms):
    sites = [latent.log_prior - latent.log_posterior for latent in terms.global_latents]
    sites += [site.log_prob for site in terms.observed.values() if site.is_global]
    return sum(sites, torch.zeros(terms.particles))


@rows
def test_one_particle_is_what_pyro_computes(program):
    model, guide, args, kwargs = program.build()
    guide(*args, **kwargs)  # lazy parameters exist from here on
    pyro.set_rng_seed(7)
    terms = pv.terms(model, guide, *args, **kwargs)
    pyro.set_rng_seed(7)
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    local, other = oracle(model, guide, args, kwargs, guide_trace, terms.plate.name)
    assert terms.log_weights.shape == (1, terms.plate.size)
    torch.testing.assert_close(terms.log_weights[0], local, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(global_part(terms)[0], other + torch.zeros(()), rtol=1e-10, atol=0)


@rows
@fallback
def test_each_of_several_particles_is_what_pyro_computes_for_it(program):
    model, guide, args, kwargs = program.build()
    terms = pv.terms(model, guide, *args, particles=3, **kwargs)
    assert terms.log_weights.shape == terms.log_likelihood.shape == (3, terms.plate.size)
    if program.name == "subsampled_inside":
        pytest.skip("the oracle would draw other indices; one particle covers it")
    for k in range(3):
        values = {n: _particle(latent, k) for n, latent in terms.latents.items()}
        guide_trace = _replayed(guide, values, args, kwargs)
        local, other = oracle(model, guide, args, kwargs, guide_trace, terms.plate.name)
        torch.testing.assert_close(terms.log_weights[k], local, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            global_part(terms)[k], other + torch.zeros(()), rtol=1e-10, atol=1e-12
        )


def _particle(latent, k):
    batch = latent.posterior.batch_shape
    value = latent.value[k]
    rank = min(len(batch), value.dim() - len(latent.posterior.event_shape))
    extra = value.dim() - len(latent.posterior.event_shape) - rank
    return value.reshape(value.shape[extra:])


def _replayed(guide, values, args, kwargs):
    trace = poutine.trace(guide).get_trace(*args, **kwargs)
    for name, value in values.items():
        trace.nodes[name]["value"] = value
    return poutine.trace(poutine.replay(guide, trace)).get_trace(*args, **kwargs)


@rows
@fallback
def test_analytic_kl_exists_where_it_is_right(program):
    model, guide, args, kwargs = program.build()
    terms = pv.terms(model, guide, *args, particles=2, **kwargs)
    analytic = {name for name, latent in terms.latents.items() if latent.kl is not None}
    assert analytic == program.analytic


@rows
def test_a_captured_program_computes_the_same(program):
    model, guide, args, kwargs = program.build()
    guide(*args, **kwargs)
    objective = pv.ELBO(analytic_kl=False)

    def surrogate(*tensors):
        with torch.no_grad():
            return objective.surrogate_of(pv.terms(model, guide, *tensors, **kwargs))

    with pyro.validation_enabled(False):
        pyro.set_rng_seed(5)
        eager = surrogate(*args)
        pyro.set_rng_seed(5)
        graph = make_fx(surrogate)(*args)
        pyro.set_rng_seed(5)
        captured = graph(*args)
    assert torch.isfinite(eager)
    torch.testing.assert_close(captured, eager, rtol=1e-12, atol=0)


@rows
@fallback
def test_multi_sample_bounds_take_or_refuse_it(program):
    model, guide, args, kwargs = program.build()
    objective = pv.IWAE(particles=4)
    if program.local:
        bound = objective.per_datum(model, guide, *args, **kwargs)
        assert torch.isfinite(bound).all()
    else:
        with pytest.raises(ValueError, match="stands outside the data plate 'data'"):
            objective.per_datum(model, guide, *args, **kwargs)


@rows
def test_pathwise_gradients_exist_or_the_site_is_named(program):
    model, guide, args, kwargs = program.build()
    objective = pv.ELBO()
    if program.pathwise:
        with poutine.trace(param_only=True) as declared:
            objective.differentiable_loss(model, guide, *args, **kwargs).backward()
        leaves = [site["value"].unconstrained() for site in declared.trace.nodes.values()]
        grads = [leaf.grad for leaf in leaves]
        assert all(g is not None and torch.isfinite(g).all() for g in grads)
    else:
        with pytest.raises(NotImplementedError, match="latent site 'z' .*TraceEnum_ELBO"):
            objective.differentiable_loss(model, guide, *args, **kwargs)
        assert torch.isfinite(objective.per_datum(model, guide, *args, **kwargs)).all()


def test_particles_that_a_network_mixes_up_in_silence_are_run_one_by_one():
    """A softmax over dimension 1: features for `[B, D]`, data for `[K, B, D]`."""
    model, guide, (x,), _ = PROGRAMS[0].build()

    def mixing(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = torch.softmax(z, 1).sum(-1, keepdim=True) + z @ torch.ones(2, 5)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="two particles at once do not give"):
        terms = pv.terms(mixing, guide, x, particles=3)
    expected = dist.Normal(1 + terms.latents["z"].value @ torch.ones(2, 5), 1.0).to_event(1)
    torch.testing.assert_close(terms.log_likelihood, expected.log_prob(x))


def test_particles_run_one_by_one_see_the_same_subsample():
    decoder = programs.Picture()
    images = torch.zeros(12, 1, 4, 4)
    images[torch.arange(12), 0, 0, 0] = torch.arange(12.0)

    def model(x):
        with pyro.plate("data", 12, subsample_size=4) as index:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            seen.append(index.tolist())
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(3), obs=x[index])

    def guide(x):
        with pyro.plate("data", 12, subsample_size=4):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    seen = []
    with pytest.warns(UserWarning, match="run by itself"):
        plan = pv.traces.plan_particles(model, guide, (images,), {})
    seen.clear()
    for _ in range(2):
        pv.terms(model, guide, images, particles=5, plan=plan)
    assert len(seen) == 10
    assert len({tuple(s) for s in seen[:5]}) == len({tuple(s) for s in seen[5:]}) == 1
    assert seen[0] != seen[5]
