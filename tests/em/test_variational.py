"""Variational EM: what a step moves, what it leaves behind, the traps of Pyro's param store."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import nn

import pyrovae as pv
from pyrovae.em import NotFinite
from pyrovae.traces import evaluating, modules_of
from tests import programs


def clones(model, guide):
    return [p.detach().clone() for m in modules_of(model, guide) for p in m.parameters()]


def moved(before, model, guide):
    after = [p for m in modules_of(model, guide) for p in m.parameters()]
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize("objective", [pv.ELBO(), Trace_ELBO()], ids=["ours", "pyros"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_role_whose_parameters_are_used_nowhere_is_refused(objective, clip_norm):
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc, 1.0)), 1.0), obs=x)

    def guide(x):
        pyro.param("idle", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    options = {"schedule": pv.Alternating(), "clip_norm": clip_norm}
    em = pv.VariationalEM(model, guide, objective, **options)
    with pytest.raises(ValueError, match=r"step of the guide has nothing.*\['idle'\].*Try"):
        em.step(torch.zeros(3))


def test_a_state_with_optimizers_for_other_roles_is_refused():
    model, guide, args, kwargs = programs.PROGRAMS[0].build()
    one = pv.VariationalEM(model, guide)
    two = pv.VariationalEM(model, guide, e_optimizer=pv.adam(), m_optimizer=pv.adam())
    for em in (one, two):
        em.prepare(*args, **kwargs)
    with pytest.raises(ValueError, match=r"for \['joint'\], this run for \['guide', 'model'\]"):
        two.load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    "program", [p for p in programs.PROGRAMS if p.pathwise], ids=lambda p: p.name
)
@pytest.mark.filterwarnings("ignore:the programs cannot run with a particle")
def test_every_supported_program_trains(program):
    model, guide, args, kwargs = program.build()
    em = pv.VariationalEM(model, guide, e_optimizer=pv.adam(0.02))
    first = torch.stack([em.step(*args, **kwargs).elbo for _ in range(5)]).mean()
    for _ in range(60):
        record = em.step(*args, **kwargs)
    last = torch.stack([em.step(*args, **kwargs).elbo for _ in range(5)]).mean()
    assert last > first
    assert record.grad_norm > 0


def test_roles_are_found_by_running():
    model, guide, args, kwargs = programs.with_pyro_module()
    em = pv.VariationalEM(model, guide)
    em.prepare(*args)
    assert sorted(em.params["model"]) == [
        "decoder$$$0.bias",
        "decoder$$$0.weight",
        "decoder$$$2.bias",
        "decoder$$$2.weight",
    ]
    assert all(name.startswith("encoder$$$") for name in em.params["guide"])


def test_networks_held_but_never_declared_are_trained_if_used():
    model, guide, args, kwargs = programs.with_nets_in_closures()
    unused = nn.Linear(3, 3)

    def with_unused(x, extra=unused):
        return guide(x)

    em = pv.VariationalEM(model, with_unused)
    before = clones(model, with_unused)
    em.step(*args)
    names = list(em.params["guide"])
    assert len(em.params["model"]) == 4
    assert len(names) == 4
    assert sum(moved(before, model, with_unused)) == 8


def test_a_step_uses_fresh_gradients_and_leaves_none():
    """Trap D8: gradients that somebody else left behind do not enter, and none is left behind."""
    results = []
    for stale in (False, True):
        model, guide, args, _ = programs.with_pyro_module()
        em = pv.VariationalEM(model, guide)
        em.prepare(*args)
        if stale:
            for leaves in em.params.values():
                for leaf in leaves.values():
                    leaf.grad = torch.full_like(leaf, 1e3)
        pyro.set_rng_seed(1)
        em.step(*args)
        assert all(p.grad is None for leaves in em.params.values() for p in leaves.values())
        results.append(clones(model, guide))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("objective", [pv.ELBO(), Trace_ELBO()], ids=["ours", "pyros"])
def test_d9_frozen_parameters_stay_and_nothing_warns(objective):
    model, guide, args, _ = programs.with_pyro_module()
    decoder = modules_of(model)[0]
    decoder.requires_grad_(False)
    em = pv.VariationalEM(model, guide, objective)
    before = clones(model, guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            em.step(*args)
    changed = moved(before, model, guide)
    assert not any(changed[:4])
    assert all(changed[4:])
    assert em.params["model"] == {}


def test_d10_evaluation_never_moves_a_weight():
    """SVI.step under no_grad moves weights by momentum; our evaluation has no way to."""
    model, guide, args, _ = programs.with_pyro_module()
    em = pv.VariationalEM(model, guide)
    em.step(*args)
    before = clones(model, guide)
    em.evaluate(args, {})
    pv.ELBO().per_datum(model, guide, *args)
    pv.IWAE(5).per_datum(model, guide, *args)
    assert not any(moved(before, model, guide))
    with torch.no_grad():
        em.step(*args)  # a step is a step, whoever calls it: with its gradient
    assert all(moved(before, model, guide))


@pytest.mark.parametrize(
    "build", [programs.with_pyro_module, programs.with_pyro_modules], ids=lambda b: b.__name__
)
def test_d11_a_second_model_of_the_same_names_trains(build):
    for _ in range(2):
        model, guide, args, kwargs = build()
        before = clones(model, guide)
        em = pv.VariationalEM(model, guide)
        for _ in range(3):
            em.step(*args)
        assert all(moved(before, model, guide))
        assert len(pyro.get_param_store()) == 0


def test_d11_the_trap_is_still_there():
    for turn in range(2):
        model, guide, args, _ = programs.with_pyro_module()
        before = clones(model, guide)
        SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(*args)
        assert any(moved(before, model, guide)) == (turn == 0)


def test_d12_local_parameters_train():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(2, 5)
            self.encoder = nn.Linear(5, 4)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", programs.prior())
                pyro.sample("x", programs.likelihood(self.decoder(z)), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", programs.normal(self.encoder(x)))

    with pyro.settings.context(module_local_params=True):
        net = Net()
        model, guide = pyro.nn.pyro_method(net.model), pyro.nn.pyro_method(net.guide)
        em = pv.VariationalEM(net.model, net.guide)
        before = clones(net.model, net.guide)
        for _ in range(3):
            em.step(programs.data())
        assert all(moved(before, net.model, net.guide))
    assert model is not guide


def test_pyros_losses_get_the_missing_scale():
    """A plate of size B, N data: local terms times N/B, global terms once, all over N."""

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(shift, 1.0), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.5))

    x = torch.randn(10)
    values = {}
    for name, objective in {
        "ours": pv.ELBO(analytic_kl=False),
        "theirs": Trace_ELBO(),
    }.items():
        em = pv.VariationalEM(model, guide, objective, data_size=100)
        em.prepare(x)
        pyro.set_rng_seed(0)
        values[name] = em.step(x).objective.item()
    pyro.set_rng_seed(0)
    z = dist.Normal(0.3, 0.5).sample()
    log_p, log_q = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(0.3, 0.5).log_prob(z)
    expected = (10 * dist.Normal(z, 1.0).log_prob(x).sum() + log_p - log_q) / 100
    assert values["ours"] == pytest.approx(expected.item(), rel=1e-9)
    # Pyro returns a float32 total
    assert values["theirs"] == pytest.approx(expected.item(), rel=1e-6)


def test_a_bad_batch_stops_before_a_weight_moves():
    model, guide, (x,), _ = programs.with_pyro_module()
    em = pv.VariationalEM(model, guide)
    em.step(x)
    before = clones(model, guide)
    bad = x.clone()
    bad[3, 1] = float("inf")
    with pytest.raises(
        NotFinite, match=r"not finite at row\(s\) \[3\] of the batch, in log p\(x\|z\)"
    ) as error:
        em.step(bad)
    assert error.value.rows == [3]
    assert not any(moved(before, model, guide))
    em.step(x)  # and goes on


def test_a_gradient_that_is_not_finite_names_its_parameter():
    scale = torch.tensor(1e-200)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        width = pyro.param("width", scale, constraint=dist.constraints.positive)
        power = pyro.param("power", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            # sqrt at 0: a finite value with an infinite derivative
            pyro.sample("z", dist.Normal((power - power.detach()).abs().sqrt(), 1.0 + width))

    em = pv.VariationalEM(model, guide)
    with pytest.raises(
        NotFinite,
        match=r"gradient of parameter\(s\) \['power'\] is not finite.*No weight has moved",
    ):
        em.step(torch.randn(4))


def test_clipping_bounds_the_step():
    model, guide, args, _ = programs.with_pyro_module()
    sgd = lambda params: torch.optim.SGD(params, lr=1.0)  # noqa: E731
    em = pv.VariationalEM(model, guide, e_optimizer=sgd, clip_norm=1e-3)
    before = clones(model, guide)
    record = em.step(*args)
    after = clones(model, guide)
    length = sum((a - b).square().sum() for a, b in zip(after, before, strict=True)).sqrt()
    assert record.grad_norm > 1
    assert length == pytest.approx(1e-3, rel=1e-4)


def test_each_role_has_its_optimizer():
    model, guide, args, _ = programs.with_pyro_module()
    frozen = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    em = pv.VariationalEM(model, guide, e_optimizer=pv.adam(0.01), m_optimizer=frozen)
    before = clones(model, guide)
    em.step(*args)
    assert moved(before, model, guide) == [False] * 4 + [True] * 4


def test_evaluating_switches_modes_and_puts_them_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.BatchNorm1d(2))
    net[1].eval()

    def program(x):
        return net(x)

    with evaluating(program):
        assert not any(m.training for m in net.modules())
        assert not torch.is_grad_enabled()
    assert [m.training for m in net] == [True, False, True]


def test_a_scope_survives_an_exception_and_nests():
    scope = pv.traces.ParamScope()
    pyro.param("outside", torch.tensor(1.0))

    def stopped():
        with scope:
            pyro.param("inside", torch.tensor(2.0))
            with scope:
                assert "inside" in pyro.get_param_store()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert list(pyro.get_param_store()) == ["outside"]
    assert list(scope.unconstrained) == ["inside"]
    scope.export()
    assert pyro.param("inside") == 2.0


def test_programs_without_parameters_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    with pytest.raises(ValueError, match="own no trainable parameter.*Try: register"):
        pv.VariationalEM(model, guide).step(torch.randn(3))


def test_losses_that_would_be_scaled_inside_a_logarithm_are_refused():
    model, guide, args, _ = programs.with_pyro_module()
    with pytest.raises(TypeError, match="RenyiELBO is not supported.*pv.IWAE"):
        pv.VariationalEM(model, guide, pyro.infer.RenyiELBO(num_particles=5))


def test_the_logged_bound_shares_global_terms_among_all_data():
    """One step's bound and the validation bound: global KL over N, whatever the batch size."""

    def model(x):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0 * shift, 1.0), obs=x)

    def guide(x):
        pyro.sample("shift", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 1.0))

    x = torch.randn(10)
    log_px = dist.Normal(0.0, 1.0).log_prob(x).mean().item()
    for weight in (1.0, 0.5):
        em = pv.VariationalEM(model, guide, pv.ELBO(kl_weight=weight), data_size=1000)
        elbo = em.step(x).elbo.item()
        assert elbo == pytest.approx(log_px - 4.5 / 1000, rel=1e-9)
        assert em.evaluate((x,), {}) == pytest.approx(elbo, abs=1e-4)


def test_networks_in_inner_functions_and_global_containers_are_found():
    nets = [nn.Linear(1, 1) for _ in range(2)]
    namespace = {"NETS": {"a": nets[0]}, "net": nets[1]}
    code = (
        "def program(x):\n    def inner(x):\n        return net(x)\n    return inner(NETS['a'](x))"
    )
    exec(code, namespace)  # noqa: S102
    assert modules_of(namespace["program"]) == nets
