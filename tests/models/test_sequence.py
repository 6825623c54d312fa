import math

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.fx.experimental.proxy_tensor import make_fx

import pyrovae as pv
from pyrovae import distributions as D
from pyrovae.models import SequenceVAE

LENGTHS = torch.tensor([5, 1, 3, 4])
TOKENS = torch.tensor([[1, 2, 3, 4, 0], [0, 6, 6, 6, 6], [5, 5, 0, 2, 2], [6, 1, 1, 0, 3]])


def small(**options):
    options = {"embedding": 6, "hidden": 8, "dropout": 0.0, "init": "torch"} | options
    return SequenceVAE(7, **({"latent": 2} | options))


def by_hand(vae, z, tokens, length):
    """log p(x | z) of one sequence: the gates of the LSTM written out, one step at a time."""
    decoder = vae.decoder
    w_in, w_state = decoder.lstm.weight_ih_l0, decoder.lstm.weight_hh_l0
    bias = decoder.lstm.bias_ih_l0 + decoder.lstm.bias_hh_l0
    c = decoder.to_cell.weight @ z
    h = c.tanh()
    last, total = vae.vocabulary, 0.0
    for token in tokens[:length].tolist():
        gates = w_in @ torch.cat([decoder.embed.weight[last], z]) + w_state @ h + bias
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        total = total + (decoder.out.weight @ h).log_softmax(0)[token]
        last = token
    return total


def encoded_by_hand(vae, tokens, length):
    """Last hidden state of the encoder for one sequence alone, without padding."""
    states, _ = vae.encoder.lstm(vae.encoder.embed(tokens[None, :length]))
    return vae.encoder.head.linear.weight @ states[0, -1]


# -- the two programs -----------------------------------------------------------------------------


def test_log_likelihood_is_a_loop_over_time():
    vae = small()
    z = torch.randn(4, 2)
    expected = torch.stack([by_hand(vae, z[b], TOKENS[b], int(LENGTHS[b])) for b in range(4)])
    found = vae.decode(z, 5, LENGTHS).log_prob(TOKENS)
    torch.testing.assert_close(found, expected)
    whole = torch.stack([by_hand(vae, z[b], TOKENS[b], 5) for b in range(4)])
    torch.testing.assert_close(vae.decode(z, 5).log_prob(TOKENS), whole)


def test_posterior_is_the_state_after_the_last_token():
    vae = small()
    q = vae.encode(TOKENS, LENGTHS)
    raw = torch.stack([encoded_by_hand(vae, TOKENS[b], int(LENGTHS[b])) for b in range(4)])
    torch.testing.assert_close(q.mean, raw[:, :2])
    torch.testing.assert_close(q.stddev, (10 * (raw[:, 2:] / 10).tanh()).exp())


def test_padding_changes_nothing():
    """Other ids beyond the lengths, and more of them."""
    vae = small()
    other = TOKENS.clone()
    for b, length in enumerate(LENGTHS.tolist()):
        other[b, length:] = 3
    longer = torch.cat([other, torch.full((4, 4), 2)], 1)
    z = torch.randn(4, 2)
    for tokens in (other, longer):
        torch.testing.assert_close(
            vae.decode(z, tokens.shape[1], LENGTHS).log_prob(tokens),
            vae.decode(z, 5, LENGTHS).log_prob(TOKENS),
        )
        torch.testing.assert_close(
            vae.encode(tokens, LENGTHS).mean, vae.encode(TOKENS, LENGTHS).mean
        )
    grads = [
        torch.autograd.grad(
            vae.decode(z, t.shape[1], LENGTHS).log_prob(t).sum(), list(vae.decoder.parameters())
        )
        for t in (TOKENS, longer)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_probabilities_of_all_sequences_sum_to_one():
    """Every sequence of three tokens over seven ids, at one z."""
    vae = small()
    every = torch.cartesian_prod(*[torch.arange(7)] * 3)
    z = torch.randn(1, 2).expand(len(every), 2)
    total = vae.decode(z, 3).log_prob(every).logsumexp(0)
    torch.testing.assert_close(total, torch.tensor(0.0))


@pytest.mark.parametrize("gradient", [True, False])
def test_particles_come_on_the_left(gradient, monkeypatch):
    monkeypatch.setattr("pyrovae.models.sequence._LOGITS", 5 * 7 * 3)  # three rows at a time
    vae = small()
    z = torch.randn(3, 4, 2)
    rows = torch.stack([vae.decode(zk, 5, LENGTHS).log_prob(TOKENS) for zk in z])
    with torch.set_grad_enabled(gradient):
        found = vae.decode(z, 5, LENGTHS).log_prob(TOKENS)
    torch.testing.assert_close(found, rows)
    terms = pv.terms(vae.model, vae.guide, TOKENS, LENGTHS, particles=3)
    assert terms.log_likelihood.shape == (3, 4)
    torch.testing.assert_close(
        terms.log_likelihood,
        vae.decode(terms.latents["z"].value, 5, LENGTHS).log_prob(TOKENS),
    )


def test_elbo_is_the_one_of_its_parts():
    vae = small()
    pyro.set_rng_seed(3)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, TOKENS, LENGTHS)
    pyro.set_rng_seed(3)
    q = vae.encode(TOKENS, LENGTHS)
    z = q.rsample()
    likelihood = sum(by_hand(vae, z[b], TOKENS[b], int(LENGTHS[b])) for b in range(4))
    kl = (0.5 * (q.mean**2 + q.variance - 1) - q.stddev.log()).sum()
    torch.testing.assert_close(torch.tensor(loss), (kl - likelihood).detach())


def test_gradients_are_those_of_finite_differences():
    vae = small(latent=1, embedding=3, hidden=3)
    z = torch.randn(4, 1)

    def total():
        return vae.decode(z, 5, LENGTHS).log_prob(TOKENS).sum()

    for parameter in vae.decoder.parameters():
        (gradient,) = torch.autograd.grad(total(), parameter)
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-6 * direction
            up = total()
            parameter -= 2e-6 * direction
            down = total()
            parameter += 1e-6 * direction
        torch.testing.assert_close(
            (gradient * direction).sum(), (up - down) / 2e-6, rtol=1e-5, atol=1e-7
        )


def test_log_evidence_is_the_integral_over_z():
    """A 1-D z on a grid of 2,001 points; 4 standard errors, a false alarm in about 4,000."""
    vae = small(latent=1)
    found = pv.log_evidence(vae.model, vae.guide, TOKENS, LENGTHS, particles=4000, seed=0)
    grid = torch.linspace(-10, 10, 2001)
    log_joint = vae.decode(grid.view(-1, 1, 1), 5, LENGTHS).log_prob(TOKENS)
    log_joint = log_joint + torch.distributions.Normal(0.0, 1.0).log_prob(grid)[:, None]
    exact = log_joint.logsumexp(0) + math.log(20 / 2000)
    assert ((found.log_px - exact).abs() < 4 * found.std_error + 1e-9).all()
    assert found.std_error.max() < 0.05


def test_guide_runs_once_for_all_particles():
    """The encoder is not called again for each block of draws."""
    vae = small()
    calls = []
    vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for particles in (200, 20_000):
        calls.clear()
        pv.log_evidence(vae.model, vae.guide, TOKENS, LENGTHS, particles=particles)
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 3


# -- families, priors, tools ----------------------------------------------------------------------


@pytest.mark.parametrize("family", [D.lookup(name) for name in D.names()])
def test_every_posterior_trains(family):
    vae = small(posterior=family)
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(3):
        assert math.isfinite(svi.step(TOKENS, LENGTHS))
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))


def test_priors_by_name_and_learned():
    vae = small(posterior="gamma", prior="gamma(2, 1)", latent=3)
    assert vae.prior().event_shape == (3,)
    assert type(vae.prior().base_dist).__name__ == "Gamma"

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(2))

        def forward(self):
            return D.Normal(self.loc, 1.0).to_event(1)

    vae = small(prior=Learned())
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(TOKENS, LENGTHS)
    assert (vae.prior_net.loc != 0).all()
    assert vae.config is None


@pytest.mark.parametrize("what", [pv.ELBO(), pv.IWAE(3, "dreg")], ids=["elbo", "dreg"])
def test_fit_learns_the_language(what):
    """Sequences that repeat their first token: log p(x) rises towards -log 7 from -5 log 7."""
    tokens = torch.randint(0, 7, (200, 1)).expand(200, 5).contiguous()
    lengths = torch.randint(1, 6, (200,))
    vae = small(embedding=8, hidden=16)
    run = pv.fit(
        vae.model, vae.guide, (tokens, lengths), objective=what, optimizer=pv.adam(3e-2),
        epochs=12, batch_size=20, valid=0.1, progress=False,
    )  # fmt: skip
    start = -math.log(7) * lengths.double().mean()
    assert run.history[0]["elbo"] < 0.8 * start
    assert run.history[-1]["valid_elbo"] > -2.6


def test_tensors_of_ids_can_be_32_bits_wide():
    vae = small()
    z = torch.randn(4, 2)
    torch.testing.assert_close(
        vae.decode(z, 5, LENGTHS.int()).log_prob(TOKENS.int()),
        vae.decode(z, 5, LENGTHS).log_prob(TOKENS),
    )
    torch.testing.assert_close(
        vae.encode(TOKENS.int(), LENGTHS.int()).mean, vae.encode(TOKENS, LENGTHS).mean
    )


def test_the_papers_start():
    vae = SequenceVAE(30, 4, embedding=20, hidden=40)
    for net in (vae.encoder, vae.decoder):
        for name, p in net.named_parameters():
            bound = 0.1 if "embed" in name else 0.01
            assert 0.8 * bound < p.abs().max() <= bound, name
    assert vae.encoder.head.linear.bias is None
    assert vae.decoder.dropout.p == 0.5
    default = SequenceVAE(30)
    sizes = (default.latent_shape, default.encoder.embed.weight.shape[1])
    assert (*sizes, default.decoder.lstm.hidden_size) == ((32,), 512, 1024)


def test_log_joint_can_be_traced_into_a_graph():
    vae = small(dropout=0.0)

    def log_joint(z, tokens, lengths):
        total = vae.decode(z, 5, lengths).log_prob(tokens) + vae.prior().log_prob(z)
        total = total - vae.encode(tokens, lengths).log_prob(z)
        return total, torch.autograd.grad(total.sum(), list(vae.parameters()))

    z, other = torch.randn(4, 2), torch.randn(4, 2)
    with pyro.validation_enabled(False):
        graph = make_fx(log_joint)(z, TOKENS, LENGTHS)
        new = torch.tensor([2, 5, 1, 1])
        a, ga = graph(other, TOKENS.flip(0), new)
        b, gb = log_joint(other, TOKENS.flip(0), new)
    torch.testing.assert_close(a, b)
    for u, v in zip(ga, gb, strict=True):
        torch.testing.assert_close(u, v)


# -- writing --------------------------------------------------------------------------------------


def test_draws_have_the_probabilities_of_the_model():
    """First two tokens of 20,000 draws at one z; chi-square over 49 cells at one in 100,000."""
    vae = small()
    z = torch.tensor([[0.4, -1.0]])
    with torch.no_grad():
        drawn, _ = vae.generate(z.expand(20_000, 2), 2)
        every = torch.cartesian_prod(torch.arange(7), torch.arange(7))
        p = vae.decode(z.expand(49, 2), 2).log_prob(every).exp()
    counts = torch.bincount(drawn[:, 0] * 7 + drawn[:, 1], minlength=49)
    chi_square = ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum()
    assert chi_square < 101.7  # scipy.stats.chi2(48).isf(1e-5)


def test_generation_ends_at_the_end_symbol():
    vae = small(end=0)
    tokens, lengths = vae.sample(500, 12)
    assert tokens.shape[1] <= 12
    for row, length in zip(tokens, lengths, strict=True):
        ended = row[length - 1] == 0
        assert (row[: length - 1] != 0).all()
        assert ended or length == tokens.shape[1]
        assert (row[length:] == 0).all()
    vae.model(tokens, lengths)  # what is written can be read
    never, lengths = small().sample(5, 12)
    assert never.shape == (5, 12)
    assert (lengths == 12).all()


def test_greedy_writing_takes_the_likeliest_token_each_time():
    vae = small()
    z = torch.randn(6, 2)
    tokens, _ = vae.generate(z, 4, greedy=True)
    for t in range(4):
        others = tokens[:, : t + 1].unsqueeze(1).repeat(1, 7, 1)  # [6, 7, t + 1]
        others[:, :, t] = torch.arange(7)
        scores = vae.decode(z.unsqueeze(1).expand(6, 7, 2), t + 1).log_prob(others)
        assert torch.equal(scores.argmax(1), tokens[:, t])
    cold, _ = vae.generate(z, 4, temperature=1e-6)
    assert torch.equal(cold, tokens)


def test_writing_is_done_in_evaluation_mode_and_moves_nothing():
    vae = small(dropout=0.9)
    vae.train()
    a, _ = vae.reconstruct(TOKENS, LENGTHS)
    b, _ = vae.reconstruct(TOKENS, LENGTHS)
    assert torch.equal(a, b)
    assert vae.training
    assert a.shape[0] == 4


def test_a_law_can_be_expanded_and_drawn():
    vae = small()
    d = vae.decode(torch.randn(4, 2), 5, LENGTHS)
    drawn = d.sample((3,))
    assert drawn.shape == (3, 4, 5)
    assert (drawn[:, 1, 1:] == 0).all(), "beyond the length"
    wide = d.expand((3, 4))
    assert wide.batch_shape == (3, 4)
    torch.testing.assert_close(wide.log_prob(drawn), d.log_prob(drawn))


# -- files ----------------------------------------------------------------------------------------


def test_a_run_is_built_again_from_its_folder(tmp_path):
    vae = small(posterior="student-t(df=5)", prior="laplace", end=0)
    run = pv.fit(
        vae.model, vae.guide, (TOKENS, LENGTHS), epochs=2, out=tmp_path / "run", progress=False
    )
    again = pv.load_run(tmp_path / "run")
    assert isinstance(again.model.program.__self__, SequenceVAE)
    assert again.model.program.__self__.end == 0
    a, b = (
        pv.log_evidence(r.model, r.guide, TOKENS, LENGTHS, particles=50, seed=1)
        for r in (run, again)
    )
    assert torch.equal(a.log_px, b.log_px)


def test_config_builds_the_same_networks():
    vae = small(posterior="von-mises", latent=(2, 3))
    other = SequenceVAE.from_config(vae.config)
    other.load_state_dict(vae.state_dict())
    z = vae.prior().sample((4,))
    torch.testing.assert_close(
        other.decode(z, 5).log_prob(TOKENS), vae.decode(z, 5).log_prob(TOKENS)
    )


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TOKENS.tolist(),), TypeError, "tokens: expected a tensor, got list"),
        ((TOKENS[0],), ValueError, r"tokens: expected shape \[B, T\].*got \[5\]; one sequence is"),
        ((TOKENS[:0],), ValueError, r"none of them 0, got \[0, 5\]"),
        ((TOKENS.double(),), ValueError, r"expected integers.*got torch.float64; use .long\(\)"),
        ((TOKENS + 1,), ValueError, r"vocabulary=7\): 7 at row 1, feature 1 \(5 such in 2 of 4"),
        ((TOKENS - 1,), ValueError, "-1 at row 0, feature 4"),
        ((TOKENS, LENGTHS - 1), ValueError, "lengths: 0 at row 1.*Expected 1 to 5"),
        ((TOKENS, LENGTHS + 1), ValueError, "lengths: 6 at row 0.*Expected 1 to 5"),
        ((TOKENS, LENGTHS[:3]), ValueError, "3 lengths for 4 sequences"),
        ((TOKENS, LENGTHS.double()), ValueError, "lengths: expected integers"),
        ((TOKENS, LENGTHS[:, None]), ValueError, r"lengths: expected shape \[B\]"),
    ],
)
def test_bad_batches_are_refused_by_name(arguments, error, message):
    vae = small()
    for program in (vae.model, vae.guide):
        with pytest.raises(error, match=message):
            program(*arguments)


def test_fit_refuses_bad_tokens_before_a_weight_moves():
    vae = small()
    tokens = TOKENS.repeat(50, 1)
    tokens[150, 2] = 9
    before = vae.decoder.out.weight.clone()
    with pytest.raises(ValueError, match="9 at row 150, feature 2"):
        pv.fit(vae.model, vae.guide, tokens, epochs=1, batch_size=10, progress=False)
    assert torch.equal(before, vae.decoder.out.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"end": 7}, "end=7 is not one of the 7 token ids"),
        ({"init": "glorot"}, 'init must be "uniform" or "torch"'),
        ({"posterior": "normall"}, "did you mean"),
        ({"prior": 3}, "SequenceVAE: prior must be a distribution"),
        ({"prior": D.Normal(torch.zeros(3), 1.0)}, r"one latent has shape \(2,\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_padding_that_counts_for_want_of_lengths_is_told():
    tokens, lengths = torch.tensor([[3, 0, 0], [2, 5, 0]]), torch.tensor([2, 3])
    vae = small(end=0)
    with pytest.warns(UserWarning, match="1 of 2 sequences end in several end symbols.*lengths"):
        vae.model(tokens)
    vae.model(tokens, lengths)  # a warning would be an error
    vae.model(tokens[1:])
    small().model(tokens)


def test_bad_generation_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1 and temperature positive"):
        small().sample(3, temperature=0)
