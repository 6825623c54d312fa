import itertools

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine import condition, trace
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from pyrovae.models import VAE
from pyrovae.models.autoregressive import AutoregressiveBernoulli
from pyrovae.nn import MADE


def images(shape):
    n = torch.Size(shape).numel()
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n))).reshape(-1, *shape)


KINDS = {
    "made": {"hidden": 16, "skip": True},
    "made, two layers": {"hidden": 16, "layers": 2},
    "window": {"radius": 2, "channels": 8, "layers": 2},
    "small window": {"radius": 1, "channels": 8, "maps": 1},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind="made"):
    name = "window" if "window" in kind else "made"
    return VAE((2, 3), 1, hidden=8, likelihood=name, likelihood_args=KINDS[kind])


def spread(module, scale=0.8):
    """Weights away from their start, so that pixels depend on each other and on z."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(scale * torch.randn_like(p))
    return module


@every_kind
def test_all_images_given_z_sum_to_one(kind):
    vae = spread(small(kind))
    x = images((2, 3))
    d = vae.decode(torch.randn(5, 1, 1))
    assert d.event_shape == (2, 3)
    total = d.log_prob(x).logsumexp(1)
    torch.testing.assert_close(total, torch.zeros(5), rtol=0, atol=1e-12)


@every_kind
def test_it_is_the_chain_rule_pixel_by_pixel(kind):
    """Each conditional from the joint over all 64 images, by summing what was not seen yet."""
    vae = spread(small(kind))
    x = images((2, 3))
    d = vae.decode(torch.randn(1))
    p = d.log_prob(x).exp()
    flat = x.flatten(1)
    logits = d.net(flat, d.context)
    for row in (0, 21, 63):
        for i in range(6):
            same = (flat[:, :i] == flat[row, :i]).all(1)
            one = p[same & (flat[:, i] == 1)].sum() / p[same].sum()
            torch.testing.assert_close(logits[row, i].sigmoid(), one)


@every_kind
def test_pixels_depend_on_each_other_given_z(kind):
    vae = spread(small(kind))
    x = images((2, 3)).flatten(1)
    p = vae.decode(torch.randn(1)).log_prob(images((2, 3))).exp()
    mean = p @ x
    covariance = (x - mean).T @ ((x - mean) * p[:, None])
    off = covariance - covariance.diag().diag()
    assert off.abs().max() > 0.02


@every_kind
def test_log_evidence_is_that_of_a_grid(kind):
    """One latent: log p(x) by quadrature over z. Five standard errors: 6e-7 a datum, 64 data."""
    vae = small(kind)
    spread(vae.decoder, 0.4)
    with torch.no_grad():
        for p in vae.encoder.parameters():
            p.zero_()  # the guide is the prior, whose weights are bounded
    x = images((2, 3))
    z = torch.linspace(-8, 8, 2001)[:, None, None]
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    exact = (vae.decode(z).log_prob(x) + prior).logsumexp(0) + torch.tensor(16 / 2000).log()
    found = pv.log_evidence(vae.model, vae.guide, x, particles=4000, seed=0, progress=False)
    assert ((found.log_px - exact).abs() < 5 * found.std_error + 1e-9).all()
    torch.testing.assert_close(exact.exp().sum(), torch.tensor(1.0))


@every_kind
def test_trains_under_plain_svi_and_is_traced_into_a_graph(kind):
    x = images((2, 3))[::3]
    vae = small(kind)
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20])
    moved = [(a != b).any() for a, b in zip(before, vae.parameters(), strict=True)]
    assert all(moved)

    def log_joint(z, x):
        with pyro.validation_enabled(False):
            p = trace(condition(vae.model, {"z": z})).get_trace(x).nodes
            return p["x"]["fn"].log_prob(x) + p["z"]["fn"].log_prob(z)

    z, other = torch.randn(len(x), 1), torch.randn(len(x), 1)
    graph = make_fx(log_joint)(z, x)
    torch.testing.assert_close(graph(other, x.flip(0)), log_joint(other, x.flip(0)))


@every_kind
def test_particles_come_on_the_left(kind):
    vae = spread(small(kind))
    x, z = images((2, 3))[:10], torch.randn(5, 10, 1)
    together = vae.decode(z).log_prob(x)
    for k in range(5):
        torch.testing.assert_close(together[k], vae.decode(z[k]).log_prob(x))
    terms = pv.terms(vae.model, vae.guide, x, particles=5)
    assert terms.log_likelihood.shape == (5, 10)


def test_data_mean_starts_the_output_and_learns_the_data():
    """Four images, equally often: log p(x) climbs to -log 4, out of reach of the mean alone."""
    x = images((2, 3))[[0, 21, 42, 63]].repeat(25, 1, 1)
    vae = VAE(
        (2, 3), 1, hidden=8, likelihood="made", likelihood_args={"hidden": 16},
        data_mean=x.mean(0),
    )  # fmt: skip
    with torch.no_grad():
        for layer in (*vae.decoder[1].net.layers, *vae.decoder[1].net.contexts):
            layer.weight.zero_()
    start = vae.decode(torch.zeros(1, 1)).log_prob(x[:4]).mean()
    torch.testing.assert_close(start, 6 * torch.tensor(0.5).log())
    vae = VAE((2, 3), 1, hidden=8, likelihood="made", likelihood_args={"hidden": 16})
    pv.fit(vae.model, vae.guide, x, epochs=150, optimizer=pv.adam(0.02), progress=False)
    found = pv.log_evidence(vae.model, vae.guide, x[:4], particles=500, seed=0, progress=False)
    assert found.mean > -1.5  # -log 4 = -1.386; independent pixels: -4.16


@every_kind
def test_samples_and_reconstructions(kind):
    vae = spread(small(kind))
    x = vae.sample(7)
    assert x.shape == (7, 2, 3)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    assert vae.reconstruct(x).shape == (7, 2, 3)
    d = vae.decode(torch.zeros(4, 1))
    assert d.sample((3,)).shape == (3, 4, 2, 3)
    assert d.expand((5, 4)).log_prob(x[0]).shape == (5, 4)
    with pytest.raises(NotImplementedError, match="no closed form"):
        d.mean  # noqa: B018


def test_grey_pixels_are_refused():
    net = MADE(6, context=2, hidden=9)
    d = AutoregressiveBernoulli(net, torch.zeros(5, 2), (2, 3), validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        d.log_prob(torch.full((5, 2, 3), 0.5))
    vae = small()
    with pytest.raises(ValueError, match="outside the likelihood's support"):
        pv.fit(vae.model, vae.guide, torch.full((5, 2, 3), 0.5), epochs=1, progress=False)


def test_a_saved_run_comes_back(tmp_path):
    x = images((2, 3))
    vae = small()
    run = pv.fit(vae.model, vae.guide, x, epochs=2, out=tmp_path / "run", progress=False)
    again = pv.load_run(tmp_path / "run")
    pair = [pv.log_evidence(r.model, r.guide, x, particles=20, seed=1) for r in (run, again)]
    assert torch.equal(pair[0].log_px, pair[1].log_px)
