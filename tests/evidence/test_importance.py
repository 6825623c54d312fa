"""log_evidence against probabilistic PCA: value, error, invariances, bad input, side effects."""

import math
import os
import subprocess
import sys
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import nn

from pyrovae.evidence import log_evidence
from tests.ppca import PPCA
from tests.programs import PROGRAMS


@pytest.fixture
def ppca():
    return PPCA.random(features=5, latent=2)


def networks(width=5):
    encoder = nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 4)
    )
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, width))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.7).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, encoder, decoder


# Exactness -----------------------------------------------------------------------------------


def test_with_the_exact_posterior_every_weight_is_the_evidence(ppca):
    x = ppca.sample(30)
    found = log_evidence(*ppca.programs("exact"), x, particles=50, batch_size=7)
    torch.testing.assert_close(found.log_px, ppca.log_px(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.elbo, ppca.log_px(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(found.ess, torch.full((30,), 50.0), rtol=1e-9, atol=0)
    assert found.std_error.max() < 1e-7
    assert bool((found.khat == -math.inf).all())
    assert not found.warnings()
    assert found.log_px.dtype == torch.float64


def test_with_a_wrong_guide_the_value_is_within_four_standard_errors(ppca):
    # false alarm: for one seed and datum P(|z| > 4) = 6e-5 (Normal); more than 1 of 100 seeds
    # with 5 data: 5e-4
    x = ppca.sample(5)
    programs, exact = ppca.programs("wrong"), ppca.log_px(x)
    good = 0
    for seed in range(100):
        found = log_evidence(*programs, x, particles=400, seed=seed)
        good += bool(((found.log_px - exact).abs() <= 4 * found.std_error).all())
    assert good >= 99


def test_standard_errors_are_calibrated(ppca):
    # 4000 z-scores: their variance has standard error sqrt(2 / 4000) = 0.022, their mean 0.016
    # beside a bias of -s.e./2; bounds at about 4.5 sigma, false alarm 1e-5
    x = ppca.sample(400)
    programs, exact = ppca.programs("wrong"), ppca.log_px(x)
    found = [log_evidence(*programs, x, particles=1000, seed=s, batch_size=400) for s in range(10)]
    z = torch.cat([(f.log_px - exact) / f.std_error for f in found])
    assert abs(z.var().item() - 1) < 0.1
    assert abs(z.mean().item()) < 0.1
    elbo = ppca.elbo(x, ppca.wrong(x))
    z = torch.cat([(f.elbo - elbo) / f.elbo_std_error for f in found])
    assert abs(z.var().item() - 1) < 0.1
    assert abs(z.mean().item()) < 0.08


def test_bounds_are_ordered(ppca):
    x = ppca.sample(200)
    programs = ppca.programs("wrong")
    means = [log_evidence(*programs, x, particles=k, seed=k).mean for k in (1, 5, 50, 5000)]
    assert means[0] < means[1] < means[2] < means[3]
    assert abs(means[3] - ppca.log_px(x).mean().item()) < 0.01


def test_a_stream_of_many_blocks_is_one_big_average(ppca):
    """Blocks of 20 give the ESS, s.e. and k-hat of all log-weights at once."""
    from pyrovae import bounds
    from pyrovae.evidence.psis import psis_khat
    from pyrovae.evidence.stream import Stream

    log_weights = 3 * torch.randn(2000, 4) - 700
    log_weights[::7] = -math.inf
    stream = Stream(2000, 4)
    for block in log_weights.split(20):
        stream.add(block)
    found = stream.result()
    torch.testing.assert_close(found["log_px"], bounds.iwae(log_weights), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        found["std_error"], bounds.std_error(log_weights), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(
        found["ess"], bounds.effective_sample_size(log_weights), rtol=1e-9, atol=0
    )
    torch.testing.assert_close(found["khat"], psis_khat(log_weights), rtol=1e-10, atol=0)
    assert bool((found["elbo"] == -math.inf).all())


# Invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk", [1, 17, 10_000])
def test_the_memory_chunk_never_changes_the_answer(dtype, rtol, chunk):
    torch.set_default_dtype(dtype)
    model, guide, _, _ = networks()
    x = torch.randn(9, 5)
    ours, others = (
        log_evidence(model, guide, x, particles=60, seed=5, chunk=c) for c in (None, chunk)
    )
    torch.testing.assert_close(others.log_px, ours.log_px, rtol=rtol, atol=0)
    torch.testing.assert_close(others.ess, ours.ess, rtol=10 * rtol, atol=0)


def test_the_chunk_does_not_matter_where_the_guide_is_run_for_each_block():
    program = next(p for p in PROGRAMS if p.name == "bottom_up")
    model, guide, args, kwargs = program.build()
    ours, others = (
        log_evidence(model, guide, *args, particles=50, seed=5, chunk=c, **kwargs)
        for c in (None, 20)
    )
    torch.testing.assert_close(others.log_px, ours.log_px, rtol=1e-12, atol=0)


def test_batch_size_order_and_mates_change_it_within_the_error(ppca):
    # 4 comparisons of 23 data at 4.5 sigma: false alarm 6e-4 at most, the seed being fixed
    x = ppca.sample(23)
    programs = ppca.programs("wrong")
    whole = log_evidence(*programs, x, particles=2000, seed=0)
    order = torch.randperm(23)
    reordered = log_evidence(*programs, x[order], particles=2000, seed=1)
    # the last batch has three
    small = log_evidence(*programs, x, particles=2000, seed=2, batch_size=4)
    alone = log_evidence(*programs, x[-1:], particles=2000, seed=3)
    mates = log_evidence(*programs, torch.cat([x, 5 * x]), particles=2000, seed=4, batch_size=10)

    def z(a, b, left=slice(None), right=slice(None)):
        error = (a.std_error[left] ** 2 + b.std_error[right] ** 2).sqrt()
        return ((a.log_px[left] - b.log_px[right]) / error).abs().max().item()

    assert z(whole, reordered, order) < 4.5
    assert z(whole, small) < 4.5
    assert z(whole, alone, slice(-1, None)) < 4.5
    assert z(whole, mates, slice(None), slice(0, 23)) < 4.5
    assert len(small) == 23


def test_the_seed_decides_everything(ppca):
    x, programs = ppca.sample(4), ppca.programs("wrong")
    one = log_evidence(*programs, x, particles=30, seed=3)
    torch.randn(7)
    two = log_evidence(*programs, x, particles=30, seed=3)
    other = log_evidence(*programs, x, particles=30, seed=4)
    assert torch.equal(one.log_px, two.log_px)
    assert not torch.equal(one.log_px, other.log_px)
    pyro.set_rng_seed(1)
    first = log_evidence(*programs, x, particles=30)
    pyro.set_rng_seed(1)
    assert torch.equal(first.log_px, log_evidence(*programs, x, particles=30).log_px)
    again = log_evidence(*programs, x, particles=30, seed=first.seed)
    assert torch.equal(first.log_px, again.log_px)


@pytest.mark.parametrize("particles", [1, 2, 3, 101])
def test_any_number_of_particles(ppca, particles):
    found = log_evidence(*ppca.programs("wrong"), ppca.sample(3), particles=particles, chunk=9)
    assert bool(found.log_px.isfinite().all())
    assert bool(found.std_error.isnan().all()) == (particles == 1)
    assert found.summary()


# What it must leave alone (D10) ----------------------------------------------------------------


def test_evaluation_moves_no_weight_no_buffer_no_mode_and_no_random_state():
    model, guide, encoder, decoder = networks()
    x = torch.randn(12, 5)
    encoder.train()
    decoder[2].eval()
    model(x), guide(x)
    before = {k: v.clone() for k, v in (encoder.state_dict() | decoder.state_dict()).items()}
    state = torch.get_rng_state()
    modes = [m.training for m in (*encoder.modules(), *decoder.modules())]
    found = log_evidence(model, guide, x, particles=20, seed=0)
    after = encoder.state_dict() | decoder.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [m.training for m in (*encoder.modules(), *decoder.modules())]
    assert all(p.grad is None for p in (*encoder.parameters(), *decoder.parameters()))
    assert not found.log_px.requires_grad
    encoder.eval(), decoder.eval()  # dropout and batch statistics were off: the same numbers
    assert torch.equal(found.log_px, log_evidence(model, guide, x, particles=20, seed=0).log_px)


def test_the_encoder_runs_once_a_batch():
    model, guide, encoder, _ = networks()
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    log_evidence(model, guide, torch.randn(20, 5), particles=500, batch_size=10, chunk=50)
    assert len(calls) <= 2 * 2  # per batch once as it stands, once to see what depends on what


# Programs ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:log_evidence. the programs cannot run with a particle")
@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.local], ids=lambda p: p.name)
def test_every_local_program_is_evaluated_or_refused_by_name(program):
    model, guide, args, kwargs = program.build()
    guide(*args, **kwargs)
    if program.name == "subsampled_inside":
        with pytest.raises(ValueError, match="holds 4 of 12 elements, while 12 rows"):
            log_evidence(model, guide, *args, **kwargs)
        return
    found = log_evidence(model, guide, *args, particles=40, seed=1, **kwargs)
    cut = log_evidence(model, guide, *args, particles=40, seed=1, chunk=6, **kwargs)
    torch.testing.assert_close(found.log_px, cut.log_px, rtol=1e-12, atol=0)
    assert bool(found.log_px.isfinite().all())


@pytest.mark.parametrize("program", [p for p in PROGRAMS if not p.local], ids=lambda p: p.name)
def test_global_sites_are_refused_by_name(program):
    model, guide, args, kwargs = program.build()
    with pytest.raises(ValueError, match="stands outside the data plate 'data'"):
        log_evidence(model, guide, *args, particles=4, **kwargs)


def test_scales_of_training_do_not_enter():
    ppca = PPCA.random()
    model, guide = ppca.programs("exact")
    x = ppca.sample(4)
    scaled = pyro.poutine.scale(model, scale=0.1), pyro.poutine.scale(guide, scale=0.1)
    torch.testing.assert_close(log_evidence(*scaled, x, particles=3).log_px, ppca.log_px(x))


def test_a_network_that_mixes_up_particles_silently_is_caught():
    """A softmax over dimension 1 is wrong for [K, B, features], and no error says so."""
    weight = torch.randn(3, 3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.softmax(z @ weight, 1), 0.5).to_event(1), obs=x)

    def good(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.softmax(z @ weight, -1), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.1 * x, 1.0).to_event(1))

    x = torch.randn(3, 3)
    with pytest.warns(
        UserWarning, match="two particles at once do not give what they give one by one"
    ):
        found = log_evidence(model, guide, x, particles=40, seed=0)
    expected = log_evidence(good, guide, x, particles=40, seed=0)
    torch.testing.assert_close(found.log_px, expected.log_px, rtol=1e-12, atol=0)


def test_a_hard_coded_uniform_likelihood_gives_zero_density_not_an_error():
    """x ~ U(z - 1, z + 1), z ~ N(0, 1): p(x) = (cdf(x + 1) - cdf(x - 1)) / 2."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Uniform(z - 1, z + 1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.tensor([0.3, -1.0, 1e4])
    found = log_evidence(model, guide, x, particles=20_000, seed=0)
    exact = torch.tensor(norm.cdf(x + 1) - norm.cdf(x - 1)).log() - math.log(2)
    # false alarm 1e-4
    assert bool(((found.log_px - exact).abs()[:2] < 4 * found.std_error[:2]).all())
    assert found.log_px[2] == -math.inf
    assert found.ess[2] == 0
    assert any("-inf: no draw" in w for w in found.warnings())
    assert bool((found.elbo == -math.inf).all())


def test_a_data_set_is_realized():
    class Binary:
        def realize(self, seed=0):
            return (torch.full((6, 5), float(seed)),), {}

    ppca = PPCA.random()
    found = log_evidence(*ppca.programs("exact"), Binary(), particles=2)
    torch.testing.assert_close(found.log_px, ppca.log_px(torch.zeros(6, 5)))


def test_arguments_of_the_datas_length_are_cut_with_it():
    def model(x, y, size):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y, size):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))

    x, y = torch.randn(11), torch.randn(11)
    found = log_evidence(model, guide, x, y=y, size=torch.tensor(3), particles=5, batch_size=4)
    torch.testing.assert_close(
        found.log_px, dist.Normal(y, 2**0.5).log_prob(x), rtol=0, atol=1e-10
    )


# Reports -------------------------------------------------------------------------------------


def test_the_paired_difference_is_sharper_than_two_means(ppca):
    x = ppca.sample(300)
    other = PPCA(ppca.W * 1.1, ppca.sigma, ppca.mean)
    a = log_evidence(*ppca.programs("exact"), x, particles=2)
    b = log_evidence(*other.programs("exact"), x, particles=2)
    pair = a.paired(b)
    difference = ppca.log_px(x) - other.log_px(x)
    assert pair.difference == pytest.approx(difference.mean().item(), abs=1e-9)
    assert pair.std_error == pytest.approx(difference.std().item() / 300**0.5, rel=1e-9)
    assert pair.std_error < 0.5 * (a.mean_std_error**2 + b.mean_std_error**2) ** 0.5
    with pytest.raises(ValueError, match="300 and 2 data"):
        a.paired(log_evidence(*ppca.programs("exact"), x[:2], particles=2))


def test_the_summary_counts_only_data_whose_khat_can_be_judged(ppca):
    x = ppca.sample(8)
    few = log_evidence(*ppca.programs("wrong"), x, particles=5, seed=0)
    assert "Pareto k-hat    not to be judged\n" in few.summary()
    found = log_evidence(*ppca.programs("wrong", widen=0.3, shift=1.0), x, particles=500, seed=0)
    found.khat[:3] = math.inf
    share = 100 * (found.khat[3:] > found.khat_threshold).double().mean().item()
    assert f"{share:.1f} % of data above" in found.summary()
    assert "of the 5 judged" in found.summary()


def test_the_summary_has_both_errors_and_the_doubts(ppca):
    x = ppca.sample(50)
    good = log_evidence(*ppca.programs("wrong"), x, particles=500, seed=0)
    text = good.summary()
    assert f"{good.mean:.3f} +- {good.mean_std_error:.3f}" in text
    assert f"+- {good.monte_carlo_error:.4f} Monte Carlo" in text
    assert good.total == pytest.approx(good.log_px.sum().item())
    assert good.mean_std_error == pytest.approx((good.log_px.std() / 50**0.5).item())
    narrow = log_evidence(*ppca.programs("wrong", widen=0.3, shift=1.0), x, particles=500, seed=0)
    assert narrow.unreliable.double().mean() > 0.5
    assert any("heavy-tailed" in doubt for doubt in narrow.warnings())


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message", "kind"),
    [
        ({"method": "ais"}, "method='ais' is not available", NotImplementedError),
        ({"tolerance": 0.1}, "tolerance=0.1 is not available", NotImplementedError),
        ({"method": "magic"}, "method must be \"importance\", got 'magic'", ValueError),
        ({"particles": 0}, "particles must be at least 1, got 0", ValueError),
        ({"chunk": 0}, "chunk must be at least 1 row", ValueError),
        ({"batch_size": 0}, "batch_size must be at least 1", ValueError),
    ],
)
def test_options_are_checked(ppca, options, message, kind):
    with pytest.raises(kind, match=message):
        log_evidence(*ppca.programs(), ppca.sample(3), **options)


def test_empty_data_and_nan_are_refused_with_their_place(ppca):
    with pytest.raises(ValueError, match=r"no data: the first tensor has shape \(0, 5\)"):
        log_evidence(*ppca.programs(), torch.zeros(0, 5))
    x = ppca.sample(12)
    model, guide = ppca.programs("wrong")

    def blind(x):
        return guide(x.nan_to_num())

    x[10, 3] = math.nan
    with pytest.raises(ValueError, match="site 'x': datum 10 holds nan"):
        log_evidence(model, blind, x, particles=4, batch_size=5)


def test_a_nan_weight_names_site_and_datum():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = torch.where(x > 2, z / 0.0 * 0.0, z)
            pyro.sample("x", dist.Normal(loc, 1.0, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x = torch.tensor([0.0, 1.0, 3.0, 1.0])
    with pytest.raises(ValueError, match="observed site 'x' is NaN for datum 2"):
        log_evidence(model, guide, x, particles=4, batch_size=2)


def test_grey_pixels_are_refused_in_any_batch():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    x = torch.ones(6, 5)
    x[5, 2] = 0.5
    with pytest.raises(
        ValueError, match=r"site 'x': datum 5 has values in \[0.5, 1\], outside .* Bernoulli"
    ):
        log_evidence(model, guide, x, particles=4, batch_size=4)


def test_a_point_mass_guide_is_refused(ppca):
    model, _ = ppca.programs()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 2)).to_event(1))

    with pytest.raises(ValueError, match="site 'z' at a single point"):
        log_evidence(model, guide, ppca.sample(3))


def test_a_plate_subsampled_at_random_cannot_be_attributed():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as i:
            pyro.sample("z", dist.Normal(x[i], 1.0))

    with pytest.raises(ValueError, match="holds 4 of 8 elements, while 8 rows of data"):
        log_evidence(model, guide, torch.randn(8), particles=3)
    # nothing left out
    found = log_evidence(model, guide, torch.randn(8), particles=3, batch_size=4)
    assert len(found) == 8


# Memory --------------------------------------------------------------------------------------

_PEAK = """
import resource, sys, torch
from tests.ppca import PPCA
from pyrovae.evidence import log_evidence
torch.set_num_threads(1)
ppca = PPCA.random(features=50, latent=8)
log_evidence(*ppca.programs("wrong"), ppca.sample(2), particles=int(sys.argv[1]), seed=0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_particles():
    def peak(particles):
        command = [sys.executable, "-W", "ignore", "-c", _PEAK, str(particles)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p) or ".",
        }
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return int(out.stdout)

    assert peak(50_000) < 1.1 * peak(5_000)


def test_it_says_nothing_when_nothing_is_wrong(ppca):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_evidence(*ppca.programs("wrong"), ppca.sample(3), particles=10, progress=False)


def test_quadrature_agrees_on_a_posterior_that_is_not_normal():
    """z ~ Gamma(2, 1), x ~ N(sqrt z, 1), Gamma guide: against scipy's integral."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 1.0))
            pyro.sample("x", dist.Normal(z.sqrt(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(torch.full((len(x),), 2.0), 0.8))

    found = log_evidence(model, guide, torch.tensor([0.5]), particles=20_000, seed=0)
    exact = math.log(quad(lambda z: z * math.exp(-z) * norm.pdf(0.5, z**0.5), 0, math.inf)[0])
    assert abs(found.log_px.item() - exact) < 4 * found.std_error.item()  # false alarm 6e-5
