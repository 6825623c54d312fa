import json
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine import condition, trace
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyrovae import distributions as D
from pyrovae.models import VAE, likelihood_names
from pyrovae.nn import MLP, Head

FAMILIES = [D.lookup(name) for name in D.names()]
LIKELIHOODS = {
    "bernoulli": {},
    "binomial": {"total_count": 16},
    "normal": {},
    "normal_full": {},
    "normal_learned": {"scale": 2.0},
    "normal_fixed": {"scale": 0.5},
    "made": {"hidden": 12, "layers": 2, "skip": True},
    "window": {"radius": 1, "channels": 5, "layers": 2, "maps": 2},
}


BINARY = ("bernoulli", "made", "window")


def counts(shape=(6, 4, 4), n=16):
    return torch.randint(0, n + 1, shape).to(torch.get_default_dtype())


def data_for(likelihood):
    x = counts()
    return (x > 8).to(x.dtype) if likelihood in BINARY else x


def small(likelihood="bernoulli", **options):
    args = LIKELIHOODS[likelihood]
    options = {"data_shape": (4, 4), "latent": 3, "hidden": (9, 5)} | options
    return VAE(likelihood=likelihood, likelihood_args=args, **options)


def test_every_likelihood_is_tested():
    assert set(LIKELIHOODS) == set(likelihood_names())


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_posterior_trains_with_every_likelihood_under_plain_svi(family, likelihood):
    x = data_for(likelihood)
    vae = small(likelihood, posterior=family, data_mean=x.mean(0))
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(3):
        assert torch.tensor(svi.step(x)).isfinite()
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    assert all(g.isfinite().all() for g in gradients)
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_particles_come_on_the_left(likelihood):
    vae = small(likelihood)
    z = torch.randn(5, 6, 3)
    d = vae.decode(z)
    assert d.batch_shape == (5, 6)
    assert d.event_shape == (4, 4)
    x = data_for(likelihood)
    rows = torch.stack([vae.decode(zk).log_prob(x) for zk in z])
    torch.testing.assert_close(d.log_prob(x), rows)
    loss = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert torch.tensor(loss.loss(vae.model, vae.guide, x)).isfinite()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_are_the_formulas_of_the_table(likelihood):
    vae = small(likelihood)
    z, x = torch.randn(6, 3), data_for(likelihood)
    trunk, head = vae.decoder
    d = vae.decode(z)
    flat = x.reshape(6, 16).numpy()
    if likelihood in ("made", "window"):
        logits = head.net(x.reshape(6, 16), trunk(z)).detach().numpy()
        expected = scipy.stats.bernoulli.logpmf(flat, 1 / (1 + np.exp(-logits))).sum(-1)
    elif likelihood == "normal_full":
        mean = d.mean.reshape(6, 16).detach().numpy()
        cov = d.base_dist.covariance_matrix.detach().numpy()
        expected = [
            scipy.stats.multivariate_normal(m, c).logpdf(v)
            for m, c, v in zip(mean, cov, flat, strict=True)
        ]
    else:
        raw = head.linear(trunk(z)).detach()
        first = raw[:, :16].numpy()
        if likelihood in ("bernoulli", "binomial"):
            n = 16 if likelihood == "binomial" else 1
            one = scipy.stats.binom.logpmf(flat, n, 1 / (1 + torch.tensor(-first).exp().numpy()))
        else:
            scale = {"normal": (10 * (raw[:, 16:] / 10).tanh()).exp().numpy()}.get(
                likelihood, LIKELIHOODS[likelihood].get("scale")
            )
            one = scipy.stats.norm.logpdf(flat, first, scale)
        expected = one.sum(-1)
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(d.log_prob(x).detach(), expected, rtol=1e-10, atol=1e-9)


def test_elbo_is_the_one_of_plain_torch():
    """Estimator B with the noise replayed: E log p(x|z) - KL, networks written out by hand."""
    vae = small("binomial")
    x = counts()
    pyro.set_rng_seed(3)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(3)
    raw = vae.encoder[1].linear(vae.encoder[0].layers(x.reshape(6, 16) / 16))
    loc, scale = raw[:, :3], (10 * (raw[:, 3:] / 10).tanh()).exp()
    z = loc + scale * torch.normal(torch.zeros(6, 3), torch.ones(6, 3))
    logits = vae.decoder[1].linear(vae.decoder[0].layers(z))
    likelihood = torch.distributions.Binomial(16, logits=logits).log_prob(x.reshape(6, 16)).sum()
    kl = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()
    torch.testing.assert_close(torch.tensor(loss), (kl - likelihood).detach())


@pytest.mark.parametrize("likelihood", ["bernoulli", "binomial", "normal", "normal_full"])
@pytest.mark.parametrize("family", [D.Normal, D.Logistic, D.StudentT, D.Dirichlet])
def test_log_joint_can_be_traced_into_a_graph(family, likelihood):
    vae = small(likelihood, posterior=family)
    x = data_for(likelihood)
    vae.guide(x)
    vae.model(x)  # the networks are in the param store

    def log_joint(z, x):
        with pyro.validation_enabled(False):
            given = {"z": z}
            q = trace(condition(vae.guide, given)).get_trace(x).nodes["z"]["fn"]
            p = trace(condition(vae.model, given)).get_trace(x).nodes
            total = p["x"]["fn"].log_prob(x) + p["z"]["fn"].log_prob(z) - q.log_prob(z)
            return total, torch.autograd.grad(total.sum(), list(vae.parameters()))

    z, other = vae.prior().sample((6,)), vae.prior().sample((6,))
    graph = make_fx(log_joint)(z, x)
    a, ga = graph(other, x.flip(0))
    b, gb = log_joint(other, x.flip(0))
    torch.testing.assert_close(a, b)
    for u, v in zip(ga, gb, strict=True):
        torch.testing.assert_close(u, v)


# -- networks, priors, posteriors -----------------------------------------------------------------


def test_network_of_burda_et_al():
    vae = VAE(784, 50, hidden=(200, 200))
    shapes = [tuple(p.shape) for p in vae.parameters() if p.dim() == 2]
    assert shapes == [
        (200, 784), (200, 200), (100, 200), (200, 50), (200, 200), (784, 200)
    ]  # fmt: skip


def test_data_mean_starts_the_output():
    mean = torch.rand(4, 4) * 16
    mean[0, 0] = 0.0
    vae = small("binomial", data_mean=mean)
    d = vae.decode(torch.zeros(3))
    torch.testing.assert_close(d.mean, (mean / 16).clamp(0.001, 0.999) * 16)
    normal = small("normal_full", data_mean=mean)
    torch.testing.assert_close(normal.decode(torch.zeros(3)).mean, mean)


def test_learned_and_fixed_scale():
    learned, fixed = small("normal_learned"), small("normal_fixed")
    assert "decoder.1.fixed_scale.raw" in dict(learned.named_parameters())
    scale = learned.decode(torch.zeros(2, 3)).base_dist.scale
    torch.testing.assert_close(scale, torch.full((2, 4, 4), 2.0), rtol=1e-12, atol=0)
    assert fixed.decode(torch.zeros(2, 3)).base_dist.scale.eq(0.5).all()


def test_fixed_posterior_parameters():
    vae = small(posterior=partial(D.StudentT, df=7.0))
    assert vae.encode(data_for("bernoulli")).base_dist.df.eq(7.0).all()


@pytest.mark.parametrize(
    ("family", "prior"),
    [
        (D.Normal, dist.Normal(0.0, 2.0)),
        (D.Normal, dist.Normal(torch.zeros(3), 2.0)),
        (D.Normal, dist.Normal(torch.zeros(3), 2.0).to_event(1)),
        (D.Normal, dist.MultivariateNormal(torch.zeros(3), torch.eye(3))),
        (D.Uniform, dist.Normal(0.0, 1.0)),
        (D.Dirichlet, dist.Dirichlet(torch.full((3,), 0.5))),
    ],
)
def test_any_prior_that_fits(family, prior):
    prior = D.map_tensors(prior, torch.Tensor.double)
    vae = small(posterior=family, prior=prior)
    assert vae.prior().event_shape == (3,)
    assert vae.prior().batch_shape == ()
    x = data_for("bernoulli")
    assert torch.tensor(Trace_ELBO().loss(vae.model, vae.guide, x)).isfinite()


@pytest.mark.parametrize(
    ("posterior", "prior", "law"),
    [
        ("laplace", None, dist.Normal),
        ("Laplace", "laplace(0, 2)", D.Laplace),
        ("student-t(df=5)", "student-t(df=5)", D.StudentT),
        (partial(D.Erlang, concentration=5), None, D.Erlang),
        ("gamma", "gamma(0.3, 0.3)", D.Gamma),
        ("fisher-snedecor", partial(D.FisherSnedecor, 3.0, 5.0), D.FisherSnedecor),
        ("dirichlet", "dirichlet(0.5)", D.Dirichlet),
        ("multivariate-normal(scale_tril=0.5)", None, D.MultivariateNormal),
    ],
)
def test_posterior_and_prior_by_name_and_back_from_json(posterior, prior, law):
    prior = prior() if isinstance(prior, partial) else prior
    vae = small(posterior=posterior, prior=prior)
    inner = vae.prior()
    while isinstance(inner, dist.Independent):
        inner = inner.base_dist
    assert isinstance(inner, law)
    again = VAE.from_config(json.loads(json.dumps(vae.config)))
    again.load_state_dict(vae.state_dict())
    assert again.config == vae.config
    x, z = counts((6, 4, 4)) / 16, vae.prior().sample((6,))
    assert torch.equal(again.prior().log_prob(z), vae.prior().log_prob(z))
    assert torch.equal(again.encode(x).log_prob(z), vae.encode(x).log_prob(z))


def test_erlang_learns_its_rate_only():
    vae = small(posterior="erlang")
    q = vae.encode(counts()).base_dist
    assert (q.concentration == 3).all()
    assert vae.prior().base_dist.concentration.eq(3).all()
    assert [slot.name for slot in vae.encoder[1].slots] == ["rate"]
    assert small(posterior="erlang(5)").encode(counts()).base_dist.concentration.eq(5).all()
    with pytest.raises(ValueError, match="'concentration' of Erlang; pass fixed="):
        Head(5, D.Erlang, 3)


class LearnedPrior(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self):
        return dist.Normal(self.loc, 1.0).to_event(1)


def test_a_learned_prior_is_registered_and_trains():
    vae = small(prior=LearnedPrior())
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(data_for("bernoulli"))
    assert vae.prior_net.loc.ne(0).all()
    assert any(name.startswith("prior") for name in pyro.get_param_store())


def test_the_prior_moves_with_the_networks():
    vae = small(posterior=D.Gumbel).float()
    x = data_for("bernoulli").float()
    assert vae.prior().sample().dtype == torch.float32
    assert vae.model(x).dtype == torch.float32
    assert torch.tensor(Trace_ELBO().loss(vae.model, vae.guide, x)).isfinite()
    assert vae.double().prior().sample().dtype == torch.float64


def test_own_networks():
    encoder = nn.Sequential(MLP((4, 4), 7), Head(7, D.Laplace, 3))
    decoder = nn.Sequential(MLP(3, 7), Head(7, D.Bernoulli, (4, 4)))
    vae = small(encoder=encoder, decoder=decoder, posterior=D.Laplace)
    x = data_for("bernoulli")
    assert isinstance(vae.encode(x).base_dist, D.Laplace)
    assert torch.tensor(Trace_ELBO().loss(vae.model, vae.guide, x)).isfinite()
    bare = small(encoder=MLP((4, 4), 7))
    with pytest.raises(
        ValueError, match="the encoder returned Tensor, not a distribution; end it"
    ):
        bare.guide(x)
    flat = small(decoder=nn.Sequential(MLP(3, 7), Head(7, D.Bernoulli, 16)))
    with pytest.raises(ValueError, match=r"event shape \(16,\), expected event shape \(4, 4\)"):
        flat.model(x)


def test_latents_of_any_shape():
    vae = small(latent=(2, 3))
    x = data_for("bernoulli")
    assert vae.guide(x).shape == (6, 2, 3)
    assert torch.tensor(Trace_ELBO().loss(vae.model, vae.guide, x)).isfinite()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("family", [D.Normal, D.Cauchy, D.Dirichlet])
def test_sample_and_reconstruct(likelihood, family):
    vae = small(likelihood, posterior=family)
    x = data_for(likelihood)
    draws = vae.sample(11)
    assert draws.shape == (11, 4, 4)
    assert vae.decode(vae.prior().sample((11,))).log_prob(draws).isfinite().all()
    r = vae.reconstruct(x)
    assert r.shape == x.shape
    assert r.isfinite().all()
    assert not r.requires_grad
    if likelihood not in ("made", "window"):  # they draw a reconstruction
        torch.testing.assert_close(r, vae.reconstruct(x))


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (lambda: [[0.0] * 16], r'site "x": expected a tensor, got list; use torch.as_tensor'),
        (lambda: torch.zeros(6, 5, 4), r"expected a batch of shape \[B, 4, 4\], got \[6, 5, 4\]"),
        (lambda: torch.zeros(4, 4), r"add the batch dimension with x\[None\]"),
        (lambda: torch.zeros(6, 16), r"build VAE\(data_shape=\(16,\), ...\), reshape the data"),
        (lambda: torch.zeros(0, 4, 4), "the batch is empty"),
        (lambda: torch.zeros(6, 4, 4, dtype=torch.uint8), "8-bit pixels: choose a likelihood"),
        (
            lambda: torch.zeros(6, 4, 4, dtype=torch.float32),
            r"the data are torch.float32, the networks torch.float64; use x.to\(torch.float64\)",
        ),
        (lambda: torch.zeros(6, 4, 4, device="meta"), "the data are on meta, the networks on cpu"),
    ],
)
@pytest.mark.parametrize("program", ["model", "guide", "reconstruct"])
def test_data_that_do_not_fit(x, message, program):
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(small(), program)(x())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"likelihood": "bernouli"},
            "unknown likelihood 'bernouli'; did you mean 'bernoulli'\\? Known: bernoulli, ",
        ),
        ({"likelihood": "binomial"}, r"missing \['total_count'\]; write likelihood_args="),
        ({"likelihood": "normal_fixed"}, r"missing \['scale'\]"),
        (
            {"likelihood": "bernoulli", "likelihood_args": {"scale": 1.0}},
            r"'bernoulli' takes no arguments; unknown \['scale'\]",
        ),
        (
            {"likelihood": "normal_fixed", "likelihood_args": {"scale": -1.0}},
            "scale must be positive and finite, got -1.0",
        ),
        (
            {"likelihood": "normal_learned", "likelihood_args": {"scale": 1e-9}},
            r"scale must lie in \(4.6e-5, 2.2e4\) to be learned",
        ),
        (
            {"likelihood": "binomial", "likelihood_args": {"total_count": 2.5}},
            "total_count must be a positive integer, got 2.5",
        ),
        ({"posterior": D.Normal(0.0, 1.0)}, "posterior must be a distribution class"),
        ({"posterior": dist.Kumaraswamy}, "no default prior is known"),
        ({"posterior": partial(D.StudentT, 5.0)}, "fix the posterior's parameters by name"),
        ({"posterior": 3}, "posterior must be a distribution class .* or the name of one, got 3"),
        ({"posterior": "laplce"}, "unknown distribution 'laplce'"),
        ({"posterior": "student-t(df=-1)"}, "'df' of StudentT.*but found -1"),
        ({"prior": "gamma(-1)"}, "'concentration' of Gamma.*but found -1"),
        ({"prior": 0.0}, "prior must be a distribution, the name of one, or a module"),
        (
            {"prior": dist.Normal(torch.zeros(4), 1.0).to_event(1)},
            r'site "z": the prior has batch shape \(\) and event shape \(4,\), one latent ',
        ),
        ({"prior": dist.Normal(torch.zeros(6, 3), 1.0).to_event(1)}, r"has batch shape \(6,\)"),
        (
            {"prior": dist.Normal(torch.zeros(3, requires_grad=True), 1.0).to_event(1)},
            "only a registered module can train; give prior=module",
        ),
        ({"data_mean": torch.zeros(16)}, r"data_mean has shape \(16,\), one datum has \(4, 4\)"),
        ({"latent": 0}, "each of size 1 or more"),
        ({"init": "xavier"}, 'init must be "glorot" or "normal"'),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        VAE(**{"data_shape": (4, 4), "latent": 3, "hidden": 5} | options)


def test_values_outside_the_support_are_refused_by_validation():
    vae = small()
    with pytest.raises(ValueError, match="within the support"):
        Trace_ELBO().loss(vae.model, vae.guide, torch.full((6, 4, 4), 0.5))


def test_a_decoder_sees_no_jump_where_angles_begin_again():
    vae = small(posterior=D.VonMises)
    z = torch.tensor([[torch.pi, -torch.pi, 0.2], [-torch.pi, torch.pi, 0.2]])
    a, b = vae.decode(z).mean
    torch.testing.assert_close(a, b)
    first = vae.encode(counts()).base_dist.loc
    assert D.VonMises.support.check(first).all()


@pytest.mark.parametrize("name", ["vmf", "von-mises-fisher", "power-spherical"])
def test_latents_on_a_sphere(name):
    vae = small(posterior=D.lookup(name), latent=5)
    x = data_for("bernoulli")
    q = vae.encode(x)
    assert q.batch_shape == (6,)
    assert q.event_shape == (5,)
    torch.testing.assert_close(vae.prior().sample((9,)).norm(dim=-1), torch.ones(9))
    q, prior = vae.encode(x), vae.prior()
    assert not q.support.check(q.mean).any()  # it lies inside the ball
    torch.testing.assert_close(vae.reconstruct(x), vae.decode(q.mode).mean)
    closed = torch.distributions.kl_divergence(q, prior)
    z = q.sample((4000,))
    ratio = q.log_prob(z) - prior.log_prob(z)
    error = ratio.std(0) / len(z) ** 0.5
    assert ((ratio.mean(0) - closed).abs() < 6.5 * error).all()  # false alarm 1e-10 a datum
    loss = TraceMeanField_ELBO().differentiable_loss(vae.model, vae.guide, x)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(vae.parameters())))
