"""Control of the KL term: each value against its formula, each effect against a closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from scipy.special import expit
from torch import nn
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.kl_control import Cyclical, FreeBits, Linear, Sigmoid, TargetRate
from tests import programs
from tests.ppca import PPCA

STANDARD = dist.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)


# Values ----------------------------------------------------------------------------------------


def test_linear_is_the_line_and_stays():
    warm_up = Linear(0.1, 2.1, steps=20)
    line = [min(0.1 + 2.0 * t / 20, 2.1) for t in range(30)]
    assert [warm_up.at(t) for t in range(30)] == pytest.approx(line, rel=1e-14)
    assert warm_up.at(10**9) == 2.1


def test_sigmoid_is_the_logistic_function_stretched_to_its_ends():
    schedule = Sigmoid(steps=100, steepness=10.0)
    assert (schedule.at(0), schedule.at(100)) == (0.0, 1.0)
    low = expit(-5.0)
    for t in range(1, 100):
        expected = (expit(10 * (t / 100 - 0.5)) - low) / (1 - 2 * low)
        assert schedule.at(t) == pytest.approx(expected, rel=1e-12)
    assert 100 * (0.5 / 10) * 2 == 10  # the middle half takes 2.2 T / k = 22 steps
    assert schedule.at(50 - 11) == pytest.approx(0.25, abs=0.01)
    assert schedule.at(50 + 11) == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(("length", "cycles", "ramp"), [(40, 4, 0.5), (90, 3, 0.8), (7, 1, 1.0)])
def test_cyclical_is_the_papers_rule(length, cycles, ramp):
    """Rise by equal amounts to 1 in the first part of each period, then stay there."""
    schedule = Cyclical(steps=length, cycles=cycles, ramp=ramp)
    period = length // cycles
    expected = [min(t / (period * ramp), 1.0) for _ in range(cycles) for t in range(period)]
    found = [schedule.at(t) for t in range(cycles * period)]
    assert found == pytest.approx(expected, rel=1e-12)
    assert found.count(0.0) == cycles
    assert schedule.at(length) == schedule.at(length + 1) == 1.0


def test_a_controller_follows_its_formula():
    target, gain, rate = 2.0, 0.05, 0.01
    controller = TargetRate(target, proportional=gain, integral=rate)
    assert controller.value == 0
    integral = 0.0
    kls = [3.0, 5.0, 4.0, 2.5, 2.1, 1.9, 3.0]  # never at an end: no waiting
    for kl in kls:
        controller.advance(torch.tensor(kl))
        integral += rate * (kl - target)
        expected = gain / (1 + math.exp(target - kl)) + integral
        assert controller.value.item() == pytest.approx(expected, rel=1e-12)


def test_a_controller_leaves_both_ends_at_once():
    controller = TargetRate(2.0, proportional=0.01, integral=0.1)
    for _ in range(100):
        controller.advance(torch.tensor(0.0))
    assert controller.value == 0
    controller.advance(torch.tensor(4.0))
    assert controller.value > 0.2  # 0.1 * 2: nothing has been wound up
    for _ in range(100):
        controller.advance(torch.tensor(9.0))
    assert controller.value == 1
    controller.advance(torch.tensor(0.0))
    assert controller.value < 1
    before = controller.value.item()
    controller.advance(torch.tensor(math.nan))
    assert 0 <= controller.value <= 1
    assert abs(controller.value.item() - before) <= 0.01  # a NaN is no error, in any sense


def test_epochs_are_counted_in_steps_and_unknown_outside_fit():
    warm_up = Linear(epochs=2.5)
    warm_up.begin(steps_per_epoch=4)
    assert [warm_up.at(t) for t in (0, 5, 10, 11)] == [0.0, 0.5, 1.0, 1.0]
    model, guide = PPCA.random().programs("wrong")
    svi = SVI(model, guide, pyro.optim.Adam({}), pv.ELBO(kl_weight=Linear(epochs=3)))
    with pytest.raises(ValueError, match=r"Linear\(.*epochs=3\).*how many steps.*Try: Linear"):
        svi.step(torch.zeros(3, 5))


# In the objective ------------------------------------------------------------------------------


def ppca_vae(dtype=torch.float64):
    """A linear VAE of 5 features, 2 latents, with a factorized guide; its decoder is given."""
    ppca = PPCA.random()
    encoder = nn.Linear(5, 4, dtype=dtype)
    model, _ = ppca.programs()

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, ppca.sample(60), encoder


def test_the_surrogate_has_the_weight_of_its_step_from_exactly_zero():
    """Under plain SVI; log p(x|z) - w KL with a closed-form KL."""
    ppca = PPCA.random()
    x = ppca.sample(10)
    model, guide = ppca.programs("wrong")
    kl = kl_divergence(ppca.wrong(x).base_dist, dist.Normal(torch.zeros(2), 1.0)).sum().item()
    objective = pv.ELBO(kl_weight=Linear(0.0, 0.5, steps=4))
    svi = SVI(model, guide, pyro.optim.Adam({}), objective)
    for weight in (0.0, 0.125, 0.25, 0.375, 0.5, 0.5):
        pyro.set_rng_seed(0)
        likelihood = pv.terms(model, guide, x).log_likelihood.sum().item()
        for _ in range(2):  # evaluation moves nothing
            pyro.set_rng_seed(0)
            assert svi.evaluate_loss(x) == pytest.approx(weight * kl - likelihood, rel=1e-12)
        pyro.set_rng_seed(0)
        assert svi.step(x) == pytest.approx(weight * kl - likelihood, rel=1e-12)


def test_only_training_steps_count():
    model, guide, x, _ = ppca_vae()
    objective = pv.ELBO(kl_weight=Linear(steps=10))
    em = pv.VariationalEM(model, guide, objective)
    value = objective.kl_weight.value
    for step in range(1, 4):
        em.step(x)
        objective.per_datum(em.model, em.guide, x)
        objective.loss(em.model, em.guide, x)
        em.evaluate((x,), {})
        assert objective.kl_weight.step == step
    assert value.item() == 0.3
    assert objective.kl_weight.value is value  # one tensor, changed in place
    pv.VariationalEM(model, guide, objective)  # a new run begins anew
    assert (objective.kl_weight.step, value.item()) == (0, 0.0)


@pytest.mark.parametrize(
    ("schedule", "moves"),
    [
        (pv.Alternating(3, 2), 5),
        (pv.Converge(tolerance=1e-9, max_steps=4, window=2), 5),
        (pv.Aggressive(stop="never", window=2, max_steps=6, first_loss=-math.inf), 3),
        (pv.SemiAmortized(2), 2),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, pv.em.Schedule) else "",
)
def test_the_weight_holds_for_all_the_moves_of_a_step(schedule, moves, monkeypatch):
    """Inner E-steps are no training steps of their own."""
    torch.manual_seed(0)
    vae = pv.models.VAE(5, 2, 8, likelihood="normal_fixed", likelihood_args={"scale": 0.5})
    x = PPCA.random().sample(20)
    objective = pv.ELBO(kl_weight=Linear(steps=8))
    seen = []
    original = objective.figures

    def figures(*args):
        found = original(*args)
        seen.append(found["kl_weight"].item())
        return found

    monkeypatch.setattr(objective, "figures", figures)
    em = pv.VariationalEM(vae.model, vae.guide, objective, schedule=schedule)
    for step in range(3):
        seen.clear()
        record = em.step(x, batches=[x, x])
        assert set(seen) == {step / 8}
        assert len(seen) == moves
        assert record.figures["kl_weight"] == step / 8
    assert objective.kl_weight.step == 3


def test_a_refused_step_does_not_count():
    model, guide, x, _ = ppca_vae()
    objective = pv.ELBO(kl_weight=TargetRate(1.0))
    em = pv.VariationalEM(model, guide, objective)
    em.step(x)
    before = objective.state_dict()["kl_weight"]["value"].clone()
    with pytest.raises(FloatingPointError), pyro.validation_enabled(False):
        em.step(x * math.nan)
    assert objective.kl_weight.step == 1
    assert torch.equal(objective.kl_weight.value, before)


@pytest.mark.parametrize("weight", [0.0, 0.3, torch.tensor(0.3), 1.0])
def test_the_history_has_the_true_bound_beside_what_was_maximized(weight):
    """Objective = ELBO + (1 - w) KL, each a mean over the same steps."""
    model, guide, x, _ = ppca_vae()
    run = pv.fit(
        model, guide, x, objective=pv.ELBO(kl_weight=weight), epochs=3, batch_size=25,
        progress=False,
    )  # fmt: skip
    for record in run.history:
        assert record["kl_weight"] == pytest.approx(float(weight))
        expected = record["elbo"] + (1 - float(weight)) * record["kl"]
        assert record["objective"] == pytest.approx(expected, rel=1e-12)
        assert record["kl"] > 0


def test_the_history_has_the_mean_weight_of_each_epoch():
    model, guide, x, _ = ppca_vae()
    objective = pv.ELBO(kl_weight=Linear(epochs=2), capacity=None)
    for _ in range(2):  # the same objective again: another run, from 0
        run = pv.fit(model, guide, x, objective=objective, epochs=3, batch_size=20, progress=False)
        weights = [record["kl_weight"] for record in run.history]
        assert weights == pytest.approx([(0 + 1 + 2) / 18, (3 + 4 + 5) / 18, 1.0], rel=1e-12)
    assert run.config["objective"]["kl_weight"]["epochs"] == 2


@pytest.mark.parametrize(("objective", "keys"), [(pv.IWAE(3), {"kl"}), (Trace_ELBO(), set())])
def test_other_objectives_log_what_they_know(objective, keys):
    model, guide, x, _ = ppca_vae()
    run = pv.fit(model, guide, x, objective=objective, epochs=1, progress=False)
    assert {"kl", "kl_weight", "capacity"} & run.history[0].keys() == keys


def test_the_logged_kl_is_the_closed_form():
    ppca = PPCA.random()
    x = ppca.sample(30)
    model, guide = ppca.programs("wrong")
    terms = pv.terms(model, guide, x)
    exact = kl_divergence(ppca.wrong(x).base_dist, dist.Normal(torch.zeros(2), 1.0)).sum(1).mean()
    for objective in (pv.ELBO(), pv.ELBO(kl_weight=0.0), pv.ELBO(free_bits=9.0)):
        assert objective.figures(terms)["kl"].item() == pytest.approx(exact.item(), rel=1e-12)
    many = pv.terms(model, guide, x, particles=4000)
    # 120 000 draws, sd of a log-ratio about 1: 5 sigma = 0.015
    assert pv.IWAE(2).figures(many)["kl"].item() == pytest.approx(exact.item(), abs=0.02)


def test_a_global_latents_kl_is_shared_out():
    model, guide, args, kwargs = programs.global_latent()
    guide(*args, **kwargs)
    terms = pv.terms(model, guide, *args, **kwargs)
    local = sum(latent.kl.mean() for latent in terms.local_latents)
    shared = sum(latent.kl.squeeze() for latent in terms.global_latents)
    found = pv.ELBO().figures(terms, 1000)["kl"]
    torch.testing.assert_close(found, local + shared / 1000)


@pytest.mark.parametrize("build", [programs.global_latent, programs.two_latents])
@pytest.mark.parametrize(
    "objective",
    [
        pv.ELBO(kl_weight=Linear(steps=5)),
        pv.ELBO(kl_weight=TargetRate(1.0)),
        pv.ELBO(capacity=Linear(0, 3, steps=5), kl_weight=10.0),
        pv.ELBO(free_bits=FreeBits(0.1)),
    ],
    ids=["linear", "controller", "capacity", "free bits"],
)
def test_float32_stays_float32(build, objective):
    torch.set_default_dtype(torch.float32)
    model, guide, args, kwargs = build()
    em = pv.VariationalEM(model, guide, objective)
    for _ in range(3):
        record = em.step(*args, **kwargs)
    assert record.objective.dtype == record.elbo.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in record.figures.values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: pv.ELBO(kl_weight=Sigmoid(epochs=5)),
        lambda: pv.ELBO(kl_weight=TargetRate(2.0, integral=1e-2)),
        lambda: pv.ELBO(kl_weight=20.0, capacity=Cyclical(0.5, 3.0, epochs=5)),
    ],
    ids=["sigmoid", "controller", "capacity"],
)
def test_a_run_is_continued_to_the_last_bit(make, tmp_path):
    def train(epochs, folder, **options):
        pyro.set_rng_seed(5)
        model, guide, x, encoder = ppca_vae()
        run = pv.fit(
            model, guide, x, objective=make(), epochs=epochs, batch_size=16, out=tmp_path / folder,
            checkpoint_seconds=0, progress=False, **options,
        )  # fmt: skip
        kept = [{k: v for k, v in r.items() if k != "seconds"} for r in run.history]
        return kept, encoder.weight.clone()

    history, weight = train(6, "whole")
    train(3, "parts")
    continued, same = train(6, "parts", resume=True)
    assert continued == history
    assert torch.equal(weight, same)
    assert len({record["kl_weight"] for record in history}) > 1 or "capacity" in history[0]


def test_another_schedule_is_not_the_same_run(tmp_path):
    model, guide, x, _ = ppca_vae()
    options = {"out": tmp_path, "checkpoint_seconds": 0, "progress": False}
    pv.fit(model, guide, x, objective=pv.ELBO(kl_weight=Linear(epochs=5)), epochs=1, **options)
    for other in (pv.ELBO(kl_weight=Linear(epochs=6)), pv.ELBO(kl_weight=Sigmoid(epochs=5))):
        with pytest.raises(ValueError, match="objective is not that of the run"):
            pv.fit(model, guide, x, objective=other, epochs=2, resume=True, **options)
    state = pv.ELBO(kl_weight=Linear(steps=1)).state_dict()
    with pytest.raises(ValueError, match=r"schedules for \['kl_weight'\], this objective for"):
        pv.ELBO().load_state_dict(state)


# Free bits -------------------------------------------------------------------------------------


def of_means(loc, scale=1.0, prior=None):
    """A pair whose posterior is Normal(loc, scale); the model ignores z."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior or dist.Normal(torch.zeros(loc.shape[-1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("analytic", [True, False])
@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(
    ("per", "groups"),
    [
        ("unit", [[0], [1], [2], [3]]),
        ("site", [[0, 1, 2, 3]]),
        (2, [[0, 1], [2, 3]]),
        (3, [[0, 1, 2], [3]]),
        ([[3, 0], [1], [2]], [[3, 0], [1], [2]]),
    ],
)
def test_free_bits_by_group_have_the_value_and_gradient_of_their_formula(
    per, groups, particles, analytic
):
    x = torch.randn(6)
    means = torch.randn(6, 4) * torch.tensor([0.1, 2.0, 0.3, 3.0])
    loc = means.clone().requires_grad_()
    model, guide = of_means(loc)
    free = 0.4
    objective = pv.ELBO(analytic, free_bits=FreeBits(free, per), particles=particles)
    pyro.set_rng_seed(0)
    surrogate = objective.surrogate(model, guide, x)
    (gradient,) = torch.autograd.grad(surrogate, loc)

    leaf = means.clone().requires_grad_()
    pyro.set_rng_seed(0)
    terms = objective.terms(*of_means(leaf), x)
    if analytic:
        kl = leaf**2 / 2
    else:
        z = terms.latents["z"].value
        kl = (dist.Normal(leaf, 1.0).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).mean(0)
    total = terms.log_likelihood.mean(0).sum()
    for group in groups:
        mean = kl[:, group].sum(1).mean()
        total = total - 6 * (mean if mean > free else free)
    (expected,) = torch.autograd.grad(total, leaf)
    assert surrogate.item() == pytest.approx(total.item(), rel=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    if per == "unit":
        assert (gradient == 0).all(0).tolist() == [True, False, True, False] or not analytic


def test_free_bits_of_a_site_are_what_the_number_means():
    ppca = PPCA.random()
    model, guide = ppca.programs("wrong")
    x = ppca.sample(9)
    values = []
    for free in (3.0, FreeBits(3.0, per="site")):
        pyro.set_rng_seed(0)
        values.append(pv.ELBO(free_bits=free).loss(model, guide, x))
    assert values[0] == values[1]


@pytest.mark.parametrize(
    "posterior",
    [
        dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1),
    ],
)
def test_units_of_a_joint_posterior_are_refused(posterior):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior)

    model, _ = of_means(torch.zeros(3, 2))
    objective = pv.ELBO(free_bits=FreeBits(0.1))
    with pytest.raises(ValueError, match="'z' does not factorize.*Try: free_bits=NATS"):
        objective.loss(model, guide, torch.zeros(3))


def test_groups_that_do_not_fit_the_site_are_refused():
    objective = pv.ELBO(free_bits=FreeBits(0.1, per=[[0, 1], [2]]))
    with pytest.raises(ValueError, match="groups of 3 units in all, a latent site has 2"):
        objective.loss(*of_means(torch.zeros(4, 2)), torch.zeros(4))


# Targets ---------------------------------------------------------------------------------------


def test_a_capacity_is_a_penalty_on_the_distance_of_the_mean_kl():
    loc = torch.randn(6, 2, requires_grad=True)
    model, guide = of_means(loc)
    x = torch.randn(6)
    kl = (loc**2 / 2).sum(1).mean()
    likelihood = dist.Normal(0.0, 1.0).log_prob(x).sum()
    for capacity, sign in ((kl.item() - 0.3, 1), (kl.item() + 0.3, -1)):
        for target in (capacity, Linear(capacity, 9.0, steps=3)):
            surrogate = pv.ELBO(kl_weight=50.0, capacity=target).surrogate(model, guide, x)
            assert surrogate.item() == pytest.approx((likelihood - 6 * 50 * 0.3).item(), rel=1e-9)
            (gradient,) = torch.autograd.grad(surrogate, loc)
            torch.testing.assert_close(gradient, -sign * 50 * loc.detach(), rtol=1e-9, atol=0)
    bound = pv.ELBO(kl_weight=50.0, capacity=1.0).per_datum(model, guide, x)
    torch.testing.assert_close(bound.sum(), (likelihood - 6 * kl).detach())


@pytest.mark.parametrize(
    "objective",
    [
        lambda c: pv.ELBO(kl_weight=30.0, capacity=Linear(0.0, c, epochs=20)),
        lambda c: pv.ELBO(kl_weight=TargetRate(c, proportional=0.05, integral=0.04, high=20.0)),
    ],
    ids=["capacity", "controller"],
)
@pytest.mark.parametrize("target", [1.8, 2.7])
def test_the_kl_comes_to_its_target(objective, target):
    """Weight 1 has a KL of 3.2 nats and weight 4 one of 1.9, so the weight is to exceed 1."""
    model, guide, x, _ = ppca_vae()
    run = pv.fit(
        model, guide, x, objective=objective(target), epochs=150, batch_size=20,
        optimizer=pv.adam(0.02), progress=False,
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 150),
    )  # fmt: skip
    assert run.history[-1]["kl"] == pytest.approx(target, abs=0.15)
    assert run.history[-1]["objective"] != pytest.approx(run.history[-1]["elbo"], abs=0.1)


# Mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(), "Linear: how long does it take.*Try: Linear"),
        (lambda: Linear(steps=3, epochs=3), "one of them"),
        (lambda: Linear(steps=0), "steps must be an integer of at least 1, got 0"),
        (lambda: Linear(steps=2.5), "steps must be an integer"),
        (lambda: Sigmoid(epochs=-1), "Sigmoid: epochs must be finite, above 0"),
        (lambda: Linear(epochs="10"), "epochs must be finite, above 0; got '10'"),
        (lambda: Sigmoid(epochs=math.inf), "epochs must be finite, above 0; got inf"),
        (lambda: Sigmoid(steps=3, steepness=0.0), "steepness must be finite, above 0; got 0.0"),
        (lambda: Linear(-0.1, steps=3), "Linear: start must be finite, at least 0; got -0.1"),
        (lambda: Linear(0.0, math.nan, steps=3), "stop must be finite"),
        (lambda: Linear("0", steps=3), "start must be finite"),
        (lambda: Cyclical(steps=8, cycles=0), "cycles must be an integer of at least 1"),
        (lambda: Cyclical(steps=8, ramp=0.0), "ramp must be finite, above 0 and at most 1"),
        (lambda: Cyclical(steps=8, ramp=1.5), "and at most 1; got 1.5"),
        (lambda: TargetRate(0.0), "nats must be finite, above 0"),
        (lambda: TargetRate(3.0, integral=0.0), "integral must be finite, above 0"),
        (lambda: TargetRate(3.0, low=0.5, high=0.5), "high must be above low"),
        (lambda: TargetRate(3.0).advance(), r"KL of the step is needed.*advance\(kl\)"),
        (lambda: FreeBits(0.0), "FreeBits: nats must be finite, above 0"),
        (lambda: FreeBits(1.0, per="units"), 'per must be "site", "unit".*got \'units\''),
        (lambda: FreeBits(1.0, per=0), "got 0"),
        (lambda: FreeBits(1.0, per=[[0], [2]]), "each unit 0, 1, ... once"),
        (lambda: FreeBits(1.0, per=[[0, 1], [1]]), "each unit 0, 1, ... once"),
        (lambda: FreeBits(1.0, per=[]), "got \\[\\]"),
        (lambda: pv.ELBO(capacity=-1.0), "capacity must be finite and at least 0, got -1.0"),
        (lambda: pv.ELBO(free_bits=1.0, capacity=1.0), "Expected: one of them"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("setting", ["kl_weight", "free_bits", "capacity"])
@pytest.mark.parametrize("value", ["0.5", [0.1], Linear, True], ids=repr)
def test_what_is_no_number_is_refused_with_an_example(setting, value):
    with pytest.raises(TypeError, match=f"ELBO: {setting} must be a number.*Try: {setting}="):
        pv.ELBO(**{setting: value})


def test_free_bits_do_not_move():
    with pytest.raises(TypeError, match="free_bits do not move, got Linear.*kl_weight="):
        pv.ELBO(free_bits=Linear(steps=3))


def test_one_schedule_cannot_be_two():
    schedule = Linear(steps=3)
    with pytest.raises(ValueError, match="a schedule each"):
        pv.ELBO(kl_weight=schedule, capacity=schedule)


def test_schedules_say_what_they_are():
    assert repr(Linear(epochs=10)) == "Linear(start=0.0, stop=1.0, epochs=10)"
    assert repr(TargetRate(3)) == (
        "TargetRate(nats=3, proportional=0.01, integral=0.0001, low=0.0, high=1.0)"
    )
