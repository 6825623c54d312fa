"""Schedules: who moves when and on which data, the published loop step by step, refusals."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.em import Batch, NotFinite, parse_schedule, spell_schedule
from pyrovae.traces import modules_of
from tests import programs
from tests.ppca import PPCA

ENUM = TraceEnum_ELBO(strict_enumeration_warning=False)
SCHEDULES = [pv.Alternating(1, 1), pv.SemiAmortized(1), pv.SemiAmortized(1, through=True)]


def parameters(*roles):
    return [p.detach().clone() for m in modules_of(*roles) for p in m.parameters()]


def moved(before, *roles):
    after = [p for m in modules_of(*roles) for p in m.parameters()]
    return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]


class Scripted(pv.ELBO):
    """Losses as written, one a move; the gradient stays a real one."""

    def __init__(self, losses, annealed=None):
        super().__init__()
        self.losses, self.annealed = iter(losses), annealed

    def objective(self, terms):
        value = super().objective(terms)
        self.now = next(self.losses)
        shown = self.now if self.annealed is None else self.annealed(self.now)
        return value - value.detach() - shown

    def is_bound(self, terms):
        return self.annealed is None

    def bound(self, terms):
        return torch.full((terms.plate.size,), -self.now)


def logged(log, role):
    """An optimizer that writes down when it steps."""

    class Logging(torch.optim.SGD):
        def step(self, closure=None):
            log.append(role)
            return super().step(closure)

    return lambda params: Logging(params, lr=1e-3)


def scripted(schedule, losses, log, **options):
    model, guide, args, _ = programs.with_pyro_module()
    annealed = options.pop("annealed", None)
    return pv.VariationalEM(
        model,
        guide,
        Scripted(losses, annealed),
        logged(log, "E"),
        logged(log, "M"),
        schedule,
        **options,
    ), args[0]


def fresh(x=None):
    return itertools.repeat(programs.data(seed=9) if x is None else x)


# Who moves --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: spell_schedule(s))
@pytest.mark.parametrize(
    "program", [p for p in programs.PROGRAMS if p.pathwise], ids=lambda p: p.name
)
@pytest.mark.filterwarnings("ignore:the programs cannot run with a particle")
def test_every_supported_program_trains(program, schedule):
    if program.name == "joint_autoguide" and isinstance(schedule, pv.SemiAmortized):
        pytest.skip("its latents are global: nothing to refine")
    model, guide, args, kwargs = program.build()
    em = pv.VariationalEM(model, guide, e_optimizer=pv.adam(0.03), schedule=schedule)
    em.prepare(*args, **kwargs)
    first = em.evaluate(args, kwargs)
    for _ in range(10):
        record = em.step(*args, **kwargs)
    assert em.evaluate(args, kwargs) > first
    assert (record.role, record.inner_steps) == (
        "joint" if "yes" in spell_schedule(schedule) else "model",
        1,
    )


def test_an_e_step_moves_the_guide_alone_and_leaves_no_gradient():
    model, guide, args, _ = programs.with_pyro_module()
    em = pv.VariationalEM(model, guide, schedule=pv.Alternating())
    em.prepare(*args)
    theta, phi = parameters(model), parameters(guide)
    record = em.e_step(*args)
    assert record.role == "guide"
    assert not any(moved(theta, model))
    assert all(moved(phi, guide))
    assert all(p.grad is None for leaves in em.params.values() for p in leaves.values())
    theta, phi = parameters(model), parameters(guide)
    record = em.m_step(*args)
    assert record.role == "model"
    assert all(moved(theta, model))
    assert not any(moved(phi, guide))
    assert all(p.grad is None for leaves in em.params.values() for p in leaves.values())


@pytest.mark.parametrize(
    "objective", [pv.ELBO(), pv.IWAE(3), Trace_ELBO()], ids=lambda o: type(o).__name__
)
def test_gradients_of_the_role_that_stays_are_not_computed(objective):
    """Autograd never visits the other role's weights: a hook on them would have been called."""
    model, guide, args, _ = programs.with_pyro_module()
    seen = []
    for role, program in (("model", model), ("guide", guide)):
        for parameter in modules_of(program)[0].parameters():
            parameter.register_hook(lambda g, role=role: seen.append(role))
    em = pv.VariationalEM(model, guide, objective, schedule=pv.Alternating())
    em.prepare(*args)
    seen.clear()
    em.e_step(*args)
    assert set(seen) == {"guide"}
    seen.clear()
    em.m_step(*args)
    assert set(seen) == {"model"}


@pytest.mark.parametrize("objective", [pv.ELBO(), pv.ELBO(analytic_kl=False), pv.IWAE(4, "dreg")])
def test_a_move_has_the_gradient_of_the_joint_step(objective):
    sgd = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731
    results = {}
    for role in ("joint", "guide", "model"):
        model, guide, args, _ = programs.with_pyro_module()
        em = pv.VariationalEM(model, guide, objective, sgd, schedule=pv.Alternating())
        em.prepare(*args)
        pyro.set_rng_seed(4)
        em.take(role, Batch(args))
        results[role] = [m[0].weight.detach().clone() for m in modules_of(model, guide)]
    assert torch.equal(results["joint"][0], results["model"][0])
    assert torch.equal(results["joint"][1], results["guide"][1])
    assert not torch.equal(results["guide"][0], results["model"][0])


@pytest.mark.parametrize("objective", [Trace_ELBO(), TraceMeanField_ELBO(), ENUM])
def test_pyros_losses_step_one_role(objective):
    model, guide, args, _ = programs.with_pyro_module()
    em = pv.VariationalEM(model, guide, objective, schedule=pv.Alternating(2, 1))
    theta = parameters(model)
    em.prepare(*args)
    em.e_step(*args)
    assert not any(moved(theta, model))
    assert all(moved(theta, model)) or em.step(*args).inner_steps == 2
    assert all(moved(theta, model))


def with_batch_norm():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
    decoder = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", programs.prior())
            pyro.sample("x", programs.likelihood(decoder(z)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", programs.normal(encoder(x)))

    return model, guide, encoder[1], decoder[1], programs.data(size=12)


def test_batchnorm_of_the_role_that_stays_does_not_move():
    model, guide, encoder, decoder, x = with_batch_norm()
    em = pv.VariationalEM(model, guide, schedule=pv.Alternating())
    em.prepare(x)
    em.e_step(x)
    assert (decoder.num_batches_tracked, encoder.num_batches_tracked) == (0, 1)
    assert torch.equal(decoder.running_mean, torch.zeros(4))
    em.m_step(x)
    assert (decoder.num_batches_tracked, encoder.num_batches_tracked) == (1, 1)
    em.take("guide", Batch((x,)), move_buffers=True)  # trap (f) of the published code
    assert (decoder.num_batches_tracked, encoder.num_batches_tracked) == (2, 2)


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (pv.Aggressive(stop="never", window=2, max_steps=4), (1, 4)),
        (pv.Aggressive(stop="never", window=2, max_steps=4, move_buffers=True), (5, 5)),
        (pv.SemiAmortized(3), (1, 1)),
        (pv.SemiAmortized(3, through=True), (1, 1)),
    ],
    ids=repr,
)
def test_batchnorm_under_a_schedule(schedule, counts):
    model, guide, encoder, decoder, x = with_batch_norm()
    em = pv.VariationalEM(model, guide, schedule=schedule, e_optimizer=pv.adam(1e-9))
    em.objective = Scripted(itertools.count(10, -1)) if schedule.needs_batches else em.objective
    em.step(x, batches=[x])
    assert (decoder.num_batches_tracked, encoder.num_batches_tracked) == counts


# The published loop -----------------------------------------------------------------------------


def test_alternating_takes_what_it_says():
    log = []
    em, x = scripted(pv.Alternating(3, 2), itertools.count(), log)
    record = em.step(x)
    assert "".join(log) == "EEEMM"
    assert (record.inner_steps, record.role) == (3, "model")


def test_alternating_starts_each_role_on_the_steps_own_batch():
    seen = []

    class Watching(pv.ELBO):
        def objective(self, terms):
            seen.append(next(iter(terms.observed.values())).value[0, 0].item())
            return super().objective(terms)

    model, guide, _, _ = programs.with_pyro_module()
    em = pv.VariationalEM(model, guide, Watching(), schedule=pv.Alternating(3, 2))
    rows = [torch.full((6, 5), float(i)) for i in range(9)]
    em.step(rows[0], batches=iter(rows[1:]))
    em.step(rows[0])
    assert seen == [0, 1, 2, 0, 3] + [0] * 5


@pytest.mark.parametrize(
    ("losses", "steps"),
    [
        ([5.0] * 15 + [4.0] * 15 + [4.5] * 15, 45),  # the third window is worse
        ([5.0] * 15 + [6.0] * 15, 30),  # the earliest end
        ([5.0] * 15 + [5.0] * 15 + [5.1] * 15, 45),  # equal is not larger
        ([100.0 - k for k in range(99)], 99),  # never worse: fewer than 100
        ([2e4] * 15, 15),  # the first is compared with 1e4
    ],
)
def test_the_papers_text_loop(losses, steps):
    log = []
    em, x = scripted(pv.Aggressive.paper("text"), [*losses, 0.0], log)
    record = em.step(x, batches=fresh())
    assert "".join(log) == "E" * steps + "M"  # decoder only, while aggressive
    assert record.inner_steps == steps


def test_the_papers_image_loop_has_windows_of_ten():
    log = []
    em, x = scripted(pv.Aggressive.paper("image"), [5.0] * 10 + [6.0] * 10 + [0.0], log)
    assert em.step(x, batches=fresh()).inner_steps == 20


def test_a_windows_mean_is_over_data_or_over_what_is_counted():
    """Two batches of unequal size in a window: 6 data at 1, 2 data at 9 -> 3, not 5."""
    x, small = programs.data(), programs.data(size=2)
    script = [1.0, 9.0, 3.5, 3.5, 0.0]  # 3 then 3.5: worse; by batches 5 then 3.5: better
    log = []
    em, x = scripted(pv.Aggressive(stop="never", window=2, max_steps=8), script, log)
    assert em.step(x, batches=iter([small, x, small])).inner_steps == 4
    by_batch = pv.Aggressive(stop="never", window=2, max_steps=5, count=lambda x: 1.0)
    em, x = scripted(by_batch, [1.0, 9.0, 1.0, 9.0, 0.0, 0.0], [])
    assert em.step(x, batches=iter([small, x, small, x])).inner_steps == 5


def test_the_window_test_is_on_the_true_bound_or_the_annealed_one():
    """Trap (c): the annealed loss rises with the KL weight while the bound falls."""
    rising = itertools.count()
    for annealed_test, steps in ((False, 8), (True, 4)):
        schedule = pv.Aggressive(stop="never", window=2, max_steps=8, annealed_test=annealed_test)
        losses = [10.0 - k for k in range(9)]
        em, x = scripted(schedule, losses, [], annealed=lambda loss: next(rising))
        assert em.step(x, batches=fresh()).inner_steps == steps


def test_where_the_inner_loop_starts():
    """Trap (b)."""
    x, other = programs.data(), programs.data(seed=8, size=3)
    sizes = []

    class Sizes(pv.ELBO):
        def objective(self, terms):
            sizes.append(terms.plate.size)
            return super().objective(terms)

    for start in (True, False):
        model, guide, _, _ = programs.with_pyro_module()
        schedule = pv.Aggressive(stop="never", window=1, max_steps=2, start_on_batch=start)
        em = pv.VariationalEM(model, guide, Sizes(), schedule=schedule)
        em.step(x, batches=fresh(other))
    assert sizes == [6, 3, 6] + [3, 3, 6]


def test_clipping_of_one_role_or_of_both():
    """Trap (a): the norm that is clipped contains the decoder's gradient, or not."""
    norms = {}
    for both in (False, True):
        model, guide, args, _ = programs.with_pyro_module()
        em = pv.VariationalEM(model, guide, schedule=pv.Alternating(), clip_norm=1e-3)
        em.prepare(*args)
        for role in ("guide", "model", "joint"):
            pyro.set_rng_seed(0)
            frozen = parameters(model, guide)
            record = em.take(role, Batch(args), clip_both=both)
            norms[both, role] = record.grad_norm.item()
            assert any(moved(frozen, model, guide))
            with torch.no_grad():  # put back: one gradient for all
                now = [p for m in modules_of(model, guide) for p in m.parameters()]
                for p, old in zip(now, frozen, strict=True):
                    p.copy_(old)
    whole = norms[False, "joint"]
    assert math.hypot(norms[False, "guide"], norms[False, "model"]) == pytest.approx(whole)
    assert norms[True, "guide"] == norms[True, "model"] == pytest.approx(whole)


class Information(pv.Aggressive):
    """Mutual information as written."""

    def information(self, em, valid):
        return next(self.script)


def ends(settings, script):
    """After which epoch the schedule is no longer aggressive."""
    schedule = Information(**settings)
    object.__setattr__(schedule, "script", iter(script))
    em, x = scripted(schedule, itertools.count(), [])
    em.prepare(x)
    for epoch in range(1, len(script) + 1):
        said = em.end_epoch(x)
        assert said["aggressive"]
        assert said["mutual_information"] == script[epoch - 1]
        if not em.schedule_state["aggressive"]:
            assert em.end_epoch(x) == {"aggressive": False}
            return epoch
    return None


def test_the_stop_rule():
    """Trap (d): text ends at the first drop, images at the fifth value below the best."""
    text, image = vars(pv.Aggressive.paper("text")), vars(pv.Aggressive.paper("image"))
    assert ends(text, [1.0, 2.0, 2.0, 1.9]) == 4
    assert ends(text, [-0.1]) == 1  # compared with 0 at first
    assert ends(text, [1.0, 2.0, 3.0]) is None
    low = [1.0, 3.0, 2.0, 2.5, 2.6, 3.5, 3.0, 3.4]  # below the best: epochs 3, 4, 5, 7, 8
    assert ends(image, low) == 8
    assert ends(image | {"compare": "previous"}, low) is None  # drops: 3, 7
    assert ends(image | {"patience": 2}, low) == 4


def test_information_that_is_no_number_is_a_drop():
    schedule = Information(patience=1)
    object.__setattr__(schedule, "script", iter([math.nan]))
    em, x = scripted(schedule, itertools.count(), [])
    em.prepare(x)
    em.end_epoch(x)
    assert not em.schedule_state["aggressive"]


def test_aggressive_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="looked at every 10 E-steps.*ends after 4.*window=2"):
        pv.Aggressive(max_steps=4)
    with pytest.raises(TypeError, match="count must be a function.*'words'"):
        pv.Aggressive(count="words")


def test_afterwards_both_roles_step_at_once():
    log = []
    em, x = scripted(pv.Aggressive(stop=1, window=2, max_steps=2), itertools.count(), log)
    em.step(x, batches=fresh())
    assert em.end_epoch() == {"aggressive": True}
    record = em.step(x)
    assert log == ["E", "E", "M", "M", "E"]
    assert (record.role, record.inner_steps) == ("joint", 0)
    assert em.end_epoch() == {"aggressive": False}


def test_the_information_is_that_of_the_report():
    model, guide, args, _ = programs.with_pyro_module()
    x = programs.data(size=64)
    schedule = pv.Aggressive()
    em = pv.VariationalEM(model, guide, schedule=schedule)
    em.prepare(x)
    with em.scope:
        report = pv.collapse_report(model, guide, x, particles=1)
    said = em.end_epoch((x,))
    assert said["mutual_information"] == pytest.approx(report.mutual_information["z"])
    by_batch = pv.Aggressive(reference=16, by_batch=True)
    parts = [
        pv.collapse_report(model, guide, part, particles=1).mutual_information["z"]
        for part in x.split(16)
    ]
    assert by_batch.information(em, Batch((x,))) == pytest.approx(sum(parts) / 4)
    assert by_batch.information(em, Batch((x,))) < math.log(16)  # trap (e): the cap


def pixels(n=40):
    torch.manual_seed(5)
    return (torch.rand(n, programs.D) < 0.4).double()


def vae():
    torch.manual_seed(0)
    return pv.models.VAE(programs.D, 2, 8)


def short(net, data, **options):
    return pv.fit(
        net.model, net.guide, data, **{"epochs": 2, "batch_size": 8, "progress": False} | options
    )


# In fit -----------------------------------------------------------------------------------------

FITTED = [
    pv.Alternating(2, 1),
    pv.Converge(max_steps=4, window=2),
    pv.Aggressive(window=2, max_steps=4),
    pv.SemiAmortized(2),
]


@pytest.mark.parametrize("schedule", FITTED, ids=lambda s: type(s).__name__)
def test_a_fitted_run_resumes_to_the_last_bit(schedule, tmp_path):
    options = {"schedule": schedule, "valid": 0.25, "checkpoint_seconds": 0, "clip_norm": 5.0}
    grey = pv.datasets.Dataset((torch.rand(40, programs.D),), binarize="dynamic")
    whole = short(vae(), grey, epochs=3, **options)
    short(vae(), grey, epochs=1, out=tmp_path / "run", **options)
    run = short(vae(), grey, epochs=3, out=tmp_path / "run", resume=True, **options)
    for name, value in whole.params.items():
        assert torch.equal(value, run.params[name]), name
    keep = lambda r: {k: v for k, v in r.items() if k != "seconds"}  # noqa: E731
    assert [keep(r) for r in whole.history] == [keep(r) for r in run.history]
    assert pv.load_run(tmp_path / "run").history == run.history
    with pytest.raises(ValueError, match="schedule is not that of the run.*joint here"):
        short(vae(), grey, out=tmp_path / "run", resume=True, valid=0.25, clip_norm=5.0)


def test_the_history_says_what_the_schedule_did():
    x = pixels()
    (first, second) = short(vae(), x, schedule=pv.Alternating(3), epochs=2).history
    assert first["inner_steps"] == second["inner_steps"] == 3 * 5
    record = short(vae(), x, schedule=pv.Converge(max_steps=4, window=2)).history[0]
    assert 0 <= record["converged"] <= 1
    schedule = pv.Aggressive(window=1, max_steps=3, stop=1)
    first, second = short(vae(), x, schedule=schedule).history
    assert first["aggressive"]
    assert first["inner_steps"] >= 10
    assert (second["aggressive"], second["inner_steps"]) == (False, 0)
    first = short(vae(), x, schedule=pv.Aggressive(window=2, max_steps=2), valid=0.25).history[0]
    assert abs(first["mutual_information"]) < math.log(10)
    assert "inner_steps" not in short(vae(), x).history[0]


def test_state_in_the_middle_of_an_epoch():
    schedule = pv.Aggressive(window=2, max_steps=3, patience=2)
    x = pixels()
    runs = []
    for interrupted in (False, True):
        net = vae()
        em = pv.VariationalEM(net.model, net.guide, schedule=schedule)
        pyro.set_rng_seed(3)
        em.step(x, batches=[x])
        em.end_epoch(x)
        em.step(x, batches=[x])
        if interrupted:
            state = em.state_dict()
            assert state["schedule"]["epochs"] == 1
            kept = {k: v.clone() for leaves in em.params.values() for k, v in leaves.items()}
            noise = torch.get_rng_state()
            net = vae()
            em = pv.VariationalEM(net.model, net.guide, schedule=schedule)
            em.prepare(x)
            em.load_state_dict(state)
            torch.set_rng_state(noise)
            assert all(
                torch.equal(kept[k], v) for leaves in em.params.values() for k, v in leaves.items()
            )
        for _ in range(2):
            em.step(x, batches=[x])
            em.end_epoch(x)
        runs.append((em.schedule_state, net.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(v, runs[1][1][k]) for k, v in runs[0][1].items())


def test_fresh_batches_are_rows_of_the_data_drawn_with_replacement():
    x = torch.arange(7.0)[:, None].expand(7, programs.D)
    seen = []

    class Rows(pv.ELBO):
        def objective(self, terms):
            seen.append(next(iter(terms.observed.values())).value[:, 0].tolist())
            return super().objective(terms)

    model, guide, _, _ = programs.with_pyro_module()
    pv.fit(
        model,
        guide,
        x,
        objective=Rows(),
        schedule=pv.Alternating(300),
        epochs=1,
        batch_size=7,
        progress=False,
    )
    drawn = torch.tensor(seen[1:-1])  # without the step's own batch
    assert sorted(seen[-1]) == x[:, 0].tolist()
    assert drawn.shape == (299, 7)
    counts = drawn.flatten().long().bincount(minlength=7).double()
    expected = counts.sum() / 7
    chi2 = ((counts - expected).square() / expected).sum()
    assert chi2 < 35  # 6 degrees of freedom: false alarm 4e-6
    assert any(len(set(row)) < 7 for row in drawn.tolist())


def test_an_optimizer_for_each_role_in_fit():
    net = vae()
    before = parameters(net.model)
    still = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
    optimizer = {"guide": pv.adam(0.01), "model": still}
    run = short(net, pixels(), optimizer=optimizer, schedule=pv.Alternating(1, 1))
    changed = {name.split("$$$")[0] for name, p in run.params.items()}
    assert changed == {"encoder", "decoder"}
    after = dict(net.named_parameters())
    names = list(after)
    flags = dict(zip(names, moved(before, net.model), strict=True))
    assert all(flag == name.startswith("encoder") for name, flag in flags.items())
    with pytest.raises(ValueError, match=r"optimizer has the keys \['guide'\]"):
        short(net, pixels(), optimizer={"guide": pv.adam()})


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: pv.Alternating(n),
        lambda n: pv.Alternating(1, n),
        lambda n: pv.Converge(max_steps=n),
        lambda n: pv.Aggressive(window=n),
        lambda n: pv.Aggressive(patience=n),
        lambda n: pv.SemiAmortized(n),
    ],
)
def test_steps_that_are_no_positive_integer_are_refused(make, value):
    with pytest.raises(ValueError, match="must be an integer of at least 1, got"):
        make(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.Converge(tolerance=-1.0), "tolerance must be finite and at least 0"),
        (lambda: pv.Aggressive(stop=0), "a number of epochs of at least 1, got 0"),
        (lambda: pv.Aggressive(compare="last"), 'must be "best" or "previous"'),
        (lambda: pv.Aggressive(reference=1), "with one datum q"),
        (lambda: pv.Aggressive.paper("music"), 'kind must be "text" or "image"'),
        (lambda: pv.SemiAmortized(lr=0.0), "lr must be positive"),
        (lambda: pv.SemiAmortized(momentum=1.0), "momentum must be at least 0 and below 1"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def sharing():
    model, guide, args, _ = programs.with_pyro_module()
    gain = nn.Parameter(torch.ones(()))

    def shared_model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", programs.prior())
            net = modules_of(model)[0]
            pyro.module("decoder", net)
            pyro.sample("x", programs.likelihood(pyro.param("gain", gain) * net(z)), obs=x)

    def shared_guide(x):
        with pyro.plate("data", len(x)):
            net = modules_of(guide)[0]
            pyro.module("encoder", net)
            pyro.sample("z", programs.normal(pyro.param("gain", gain) * net(x)))

    return shared_model, shared_guide, args


def test_a_shared_parameter_is_named():
    model, guide, args = sharing()
    pv.VariationalEM(model, guide).step(*args)
    with pytest.raises(ValueError, match=r"share parameter\(s\) \['gain'\].*pv.Joint"):
        pv.VariationalEM(model, guide, schedule=pv.Alternating()).step(*args)


def test_what_both_declare_but_one_uses_has_one_owner():
    pair = programs.Methods()

    def model(x):
        pyro.module("pair", nn.ModuleDict({"e": pair.encoder, "d": pair.decoder}))
        return pair.model(x)

    def guide(x):
        pyro.module("pair", nn.ModuleDict({"e": pair.encoder, "d": pair.decoder}))
        return pair.guide(x)

    em = pv.VariationalEM(model, guide, schedule=pv.Alternating())
    em.prepare(programs.data())
    ids = {role: {id(p) for p in leaves.values()} for role, leaves in em.params.items()}
    assert ids["model"] == {id(p) for p in pair.decoder.parameters()}
    assert ids["guide"] == {id(p) for p in pair.encoder.parameters()}


def test_a_role_without_a_parameter_is_refused():
    ppca = PPCA.random()
    model, _, args, _ = programs.with_pyro_module()
    with pytest.raises(ValueError, match="the guide owns no trainable parameter, so an E-step"):
        pv.VariationalEM(model, ppca.programs()[1], schedule=pv.Alternating()).step(*args)
    for module in modules_of(model):
        module.requires_grad_(False)
    guide = programs.with_pyro_module()[1]
    with pytest.raises(ValueError, match="the model owns no trainable parameter, so an M-step"):
        pv.VariationalEM(model, guide, schedule=pv.Alternating()).step(*args)


def test_a_parameter_owned_by_neither_is_refused():
    model, guide, args, _ = programs.with_pyro_module()
    stranger = nn.Parameter(torch.zeros(3, 2))
    foreign = lambda params: torch.optim.Adam([*params, stranger])  # noqa: E731
    for schedule in (pv.Joint(), pv.Alternating()):
        with pytest.raises(ValueError, match=r"shape \(3, 2\) that is owned by neither program"):
            pv.VariationalEM(model, guide, None, foreign, schedule=schedule).step(*args)
    theirs = list(modules_of(model)[0].parameters())
    thief = lambda params: torch.optim.Adam(theirs)  # noqa: E731
    with pytest.raises(ValueError, match=r"optimizer of the guide holds the model's parameter 'd"):
        pv.VariationalEM(model, guide, None, thief, pv.adam(), pv.Alternating()).step(*args)


@pytest.mark.parametrize("schedule", [pv.Joint(), pv.Alternating()], ids=repr)
def test_a_parameter_that_appears_later_is_refused(schedule):
    """Its name depends on the batch: nobody would train it, and nobody would notice."""
    model, _, (x,), _ = programs.with_pyro_module()

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param(f"loc_{len(x)}", lambda: torch.zeros(len(x), programs.Z))
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    em = pv.VariationalEM(model, guide, schedule=schedule)
    em.step(x)
    before = parameters(model)
    with pytest.raises(ValueError, match=r"\['loc_4'\] appeared after the first.*by neither role"):
        em.step(x[:4])
    assert not any(moved(before, model))


def test_a_bad_datum_in_the_inner_loop_is_named_and_moves_nothing():
    x = pixels()
    bad = x[:8].clone()
    bad[3, 1] = float("nan")
    net = vae()
    schedule = pv.Aggressive(stop="never", window=2, max_steps=6)
    em = pv.VariationalEM(net.model, net.guide, schedule=schedule)
    em.step(x, batches=[x])
    kept = []

    def batches():
        yield x[:8]
        kept.extend(parameters(net.model))
        yield bad

    with (
        pyro.validation_enabled(False),
        pytest.raises(NotFinite, match=r"E-step 3 of the inner loop: .*row\(s\) \[3\]") as error,
    ):
        em.step(x, batches=batches())
    assert error.value.rows == [3]
    assert torch.equal(error.value.batch.args[0].isnan(), bad.isnan())
    assert not any(moved(kept, net.model))
    em.step(x, batches=[x])  # and goes on


@pytest.mark.parametrize("schedule", [pv.Alternating(50), pv.Alternating(1, 50)])
def test_fit_says_which_row_of_the_data_a_step_on_drawn_rows_met(schedule):
    """One likelihood is zero for one datum, which an E-step or an M-step on drawn rows meets."""
    model, guide, _, _ = programs.with_pyro_module()
    x = programs.data(size=40)
    x[17] = 1e200  # its square is not finite

    with pytest.raises(FloatingPointError, match=r"row\(s\) \[17.*\] of the data.*No weight"):
        pv.fit(model, guide, x, schedule=schedule, epochs=1, batch_size=4, progress=False)


def test_fit_refuses_a_stop_rule_without_held_out_data():
    with pytest.raises(ValueError, match="ends by the mutual information on held-out.*valid=0.1"):
        short(vae(), pixels(), schedule=pv.Aggressive())
    with pytest.raises(ValueError, match="for one datum.*at least 2 data"):
        short(vae(), pixels(), schedule=pv.Aggressive(), valid=pixels(1))
    net = vae()
    em = pv.VariationalEM(net.model, net.guide, schedule=pv.Aggressive())
    em.prepare(pixels())
    with pytest.raises(ValueError, match="there are none.*em.end_epoch"):
        em.end_epoch()
    with pytest.raises(ValueError, match="asked of one datum.*at least 2 data"):
        em.end_epoch(pixels(1))


def test_fresh_batches_are_asked_for_and_may_run_out():
    net, x = vae(), pixels()
    em = pv.VariationalEM(net.model, net.guide, schedule=pv.Aggressive(stop="never"))
    with pytest.raises(ValueError, match="its inner loop runs on fresh batches.*batches=loader"):
        em.step(x)
    with pytest.raises(ValueError, match="ran out of fresh batches.*itertools.cycle"):
        em.step(x, batches=iter([x, x]))


def test_losses_that_cannot_step_one_role_are_refused():
    model, guide, _, _ = programs.with_pyro_module()
    with pytest.raises(TypeError, match=r"TraceGraph_ELBO computes the gradients of both.*Joint"):
        pv.VariationalEM(model, guide, TraceGraph_ELBO(), schedule=pv.Alternating())
    with pytest.raises(TypeError, match=r"refines the bound of each datum.*Trace_ELBO"):
        pv.VariationalEM(model, guide, Trace_ELBO(), schedule=pv.SemiAmortized())
    with pytest.raises(ValueError, match=r"a step of the model alone needs an optimizer"):
        pv.VariationalEM(model, guide).m_step(programs.data())
    with pytest.raises(TypeError, match=r"must be one of pyrovae's, got 'joint'"):
        pv.VariationalEM(model, guide, schedule="joint")


# As text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [
        pv.Joint(),
        pv.Alternating(5, 2),
        pv.Converge(1e-3, common_noise=True),
        pv.Aggressive(stop=4),
        pv.Aggressive.paper("image", patience=2),
        pv.SemiAmortized(20, 1.0, through=True),
    ],
    ids=spell_schedule,
)
def test_text_and_back(schedule):
    assert parse_schedule(spell_schedule(schedule)) == schedule


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        (" Alternating( 5, m_steps = 2 )", pv.Alternating(5, 2)),
        ("aggressive(text, patience=3)", pv.Aggressive.paper("text", patience=3)),
        ("semi_amortized(20, lr=1)", pv.SemiAmortized(20, lr=1.0)),
        ("converge(1e-3)", pv.Converge(1e-3)),
        ("aggressive(stop=never)", pv.Aggressive(stop="never")),
    ],
)
def test_text_as_one_writes_it(text, schedule):
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agressive", "did you mean 'aggressive'"),
        ("alternating(esteps=3)", "did you mean 'e_steps'"),
        ("alternating(0)", "e_steps must be an integer of at least 1"),
        ("alternating(1, 2, 3)", "'3' has no place"),
        ("alternating(e_steps=1, 2)", "'2' has no place"),
        ("alternating(5, e_steps=5)", "given twice"),
        ("alternating(5", "expected a name and perhaps settings"),
        ("converge(fast)", "schedule 'converge\\(fast\\)'"),
    ],
)
def test_text_that_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule(text)


# Variational EM climbs --------------------------------------------------------------------------


def linear_gaussian(x):
    """A linear model and guide, one latent: the family contains the exact posterior.

    Returns both, the bound with its expectations in closed form, and the greatest log p(x) there
    is (Tipping & Bishop 1999).
    """
    mean, features = x.mean(0), x.shape[1]
    cov = (x - mean).T @ (x - mean) / len(x)
    white = torch.linalg.inv(torch.linalg.cholesky(cov))
    values = torch.linalg.eigvalsh(cov).flip(0)
    rest = values[1:].mean()
    constant = features * (math.log(2 * math.pi) + 1)
    best = -0.5 * (constant + values[0].log() + (features - 1) * rest.log())
    positive = dist.constraints.positive
    start = 0.5 * torch.randn(features, generator=torch.Generator().manual_seed(4))

    def model(x):
        loadings = pyro.param("loadings", lambda: start.clone())
        sigma = pyro.param("sigma", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z.unsqueeze(-1) * loadings + mean
            pyro.sample("x", dist.Normal(loc, sigma).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", lambda: torch.zeros(features))
        width = pyro.param("width", torch.tensor(1.0), constraint=positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - mean) @ white.T @ weight, width))

    class Closed(pv.ELBO):
        def bound(self, terms):
            q, x = terms.latents["z"].posterior, terms.observed["x"].value
            loadings, sigma = pyro.param("loadings"), pyro.param("sigma")
            missed = x - mean - q.mean.unsqueeze(-1) * loadings
            far = missed.square().sum(-1) + q.variance * loadings.square().sum()
            scale = features * (2 * math.pi * sigma**2).log()
            return -0.5 * scale - far / (2 * sigma**2) - terms.latents["z"].kl

        objective = bound

    return model, guide, Closed(), best.item()


@pytest.mark.parametrize(
    ("steps", "left"), [(20, 0.02), pytest.param(150, 1e-4, marks=pytest.mark.slow)]
)
def test_converge_climbs_log_px_to_its_maximum(steps, left):
    """No step lowers log p(x), and the end is the closed-form maximum."""
    x = PPCA.random(features=4, latent=1, sigma=0.6).sample(60)
    model, guide, objective, best = linear_gaussian(x)
    rprop = lambda params: torch.optim.Rprop(params, lr=0.05, step_sizes=(1e-9, 0.3))  # noqa: E731
    sgd = lambda params: torch.optim.SGD(params, lr=0.2)  # noqa: E731
    schedule = pv.Converge(tolerance=1e-9, max_steps=60, window=5, m_steps=3)
    em = pv.VariationalEM(model, guide, objective, rprop, sgd, schedule)
    em.prepare(x)

    def log_px():
        with em.scope, torch.no_grad():
            loadings, sigma = pyro.param("loadings"), pyro.param("sigma")
            return PPCA(loadings[:, None], sigma.item(), x.mean(0)).log_px(x).mean().item()

    found = [log_px()]
    for _ in range(steps):
        em.step(x)
        found.append(log_px())
    assert torch.tensor(found).diff().min() > 0
    assert found[0] < best - 0.5
    assert best - left < found[-1] < best + 1e-9


def test_common_noise_makes_the_e_steps_climb_one_function():
    model, guide, (x,), _ = programs.with_pyro_module()
    values = []

    class Watching(pv.ELBO):
        def objective(self, terms):
            value = super().objective(terms)
            values.append(value.mean().item())
            return value

    still = lambda params: torch.optim.SGD(params, lr=1e-12)  # noqa: E731
    for common in (True, False):
        values.clear()
        schedule = pv.Converge(window=1, max_steps=2, tolerance=0.0, common_noise=common)
        em = pv.VariationalEM(model, guide, Watching(), still, schedule=schedule)
        for _ in range(2):
            em.step(x)
        if common:
            one, two = values[:2], values[3:5]
            assert one[0] == pytest.approx(one[1], abs=1e-8)
            assert two[0] == pytest.approx(two[1], abs=1e-8)
            assert one[0] != pytest.approx(two[0], abs=1e-3)  # new noise in the next step
            assert values[2] != pytest.approx(one[0], abs=1e-3)  # and for the M-step
        else:
            assert values[0] != pytest.approx(values[1], abs=1e-3)


def test_converge_says_whether_the_bound_came_to_rest():
    for losses, steps, rested in (
        ([5.0, 4.0, 3.9999999, 0.0], 3, True),
        ([5.0, 4.0, 3.0, 2.0, 0.0], 4, False),
        ([5.0, 6.0, 0.0], 2, True),
    ):
        em, x = scripted(pv.Converge(1e-4, max_steps=4, window=1), losses, [])
        record = em.step(x)
        assert (record.inner_steps, record.converged) == (steps, rested)
