"""The loop: what it takes, what it refuses and how, and runs continued to the last bit."""

import json
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pyrovae as pv
from pyrovae.checkpoint import CheckpointError, load_state, save_state
from tests import programs
from tests.ppca import PPCA


def vae(seed=0, **options):
    torch.manual_seed(seed)
    return pv.models.VAE(
        programs.D, 2, 8, likelihood="normal_fixed", likelihood_args={"scale": 0.7}, **options
    )


def short(net, data, **options):
    return pv.fit(
        net.model, net.guide, data, **{"epochs": 2, "batch_size": 4, "progress": False} | options
    )


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# What is trained -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [None, pv.IWAE(3), Trace_ELBO(), TraceMeanField_ELBO(), TraceGraph_ELBO()],
    ids=lambda o: type(o).__name__,
)
def test_objectives_train(objective):
    x = PPCA.random().sample(64)
    run = short(vae(), x, objective=objective, epochs=15, optimizer=pv.adam(0.01), valid=0.25)
    assert run.history[-1]["valid_elbo"] > run.history[0]["valid_elbo"] + 0.5
    assert [h["epoch"] for h in run.history] == list(range(1, 16))
    assert run.history[-1]["step"] == 15 * 12


def test_an_enumerated_label_trains_with_pyros_loss():
    locs = torch.randn(3, programs.D)

    def model(x):
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=dist.constraints.simplex)
        centers = pyro.param("centers", 0.3 * locs)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(centers[k], 1.0).to_event(1), obs=x)

    def guide(x):
        pass

    x = locs[torch.randint(3, (60,))] + 0.3 * torch.randn(60, programs.D)
    run = pv.fit(
        model,
        guide,
        x,
        objective=TraceEnum_ELBO(),
        epochs=20,
        batch_size=30,
        optimizer=pv.adam(0.05),
        progress=False,
    )
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 0.3
    assert set(run.params) == {"weights", "centers"}


def test_exact_answer_a_linear_gaussian_model_reaches_its_maximum():
    """Probabilistic PCA: the guide can be exact, and the maximum of log p(x) is known.

    Source: Tipping & Bishop (1999).
    """
    x = PPCA.random(features=4, latent=1, sigma=0.6).sample(200)
    centered = x - x.mean(0)
    values = torch.linalg.eigvalsh(centered.T @ centered / len(x)).flip(0)
    noise = values[1:].mean()
    best = -0.5 * (4 * math.log(2 * math.pi) + values[0].log() + 3 * noise.log() + 4)
    decoder, encoder = nn.Linear(1, 4), nn.Linear(4, 1)

    def model(x):
        pyro.module("decoder", decoder)
        sigma = pyro.param("sigma", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), sigma).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        width = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), width).to_event(1))

    run = pv.fit(
        model,
        guide,
        x,
        objective=pv.ELBO(particles=4),
        epochs=300,
        batch_size=200,
        optimizer=pv.adam(0.03),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 300),
        progress=False,
    )
    bound = pv.ELBO(particles=2000).per_datum(run.model, run.guide, x).mean()
    assert bound <= best + 0.02  # Monte Carlo error of the bound
    assert bound == pytest.approx(best.item(), abs=0.03)
    with run.scope():
        assert pyro.param("sigma").item() == pytest.approx(noise.sqrt().item(), rel=0.05)


def test_the_scale_of_global_terms_comes_from_the_data():
    """One latent mean for all data: its posterior width is known, and right only with N/B."""
    x = 2.0 + torch.randn(200)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):  # B, not N: fit supplies N/B
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))

    for objective in (
        pv.ELBO(particles=8),
        Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1),
    ):
        pyro.clear_param_store()
        run = pv.fit(
            model,
            guide,
            x,
            objective=objective,
            epochs=200,
            batch_size=50,
            optimizer=pv.adam(0.05),
            lr_scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200),
            progress=False,
        )
        with run.scope():
            assert pyro.param("scale").item() == pytest.approx(1 / math.sqrt(200.01), rel=0.1)


def test_plain_pyro_programs_go_all_the_way():
    """A model and a guide with no class of ours in them: fit, then everything that judges."""
    model, guide, (x,), _ = programs.with_bare_params()
    run = pv.fit(
        model, guide, x, epochs=20, batch_size=len(x), optimizer=pv.adam(0.05), progress=False
    )
    assert len(pyro.get_param_store()) == 0  # nothing leaks
    bound = pv.ELBO().per_datum(run.model, run.guide, x)
    evidence = pv.log_evidence(run.model, run.guide, x, particles=200, seed=0)
    assert (evidence.log_px > bound - 3).all()
    report = pv.collapse_report(run.model, run.guide, x)
    assert report.kl["z"] > 0
    with pytest.raises(KeyError):
        pyro.param("noise")
    run.export()
    assert pyro.param("noise").item() == pytest.approx(run.params["noise"].exp().item())


@pytest.mark.parametrize(
    "data",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: {"x": x},
        lambda x: x.numpy(),
        lambda x: pv.datasets.as_dataset(x),
        lambda x: DataLoader(TensorDataset(x), batch_size=4, shuffle=True),
    ],
    ids=["tensor", "tuple", "dict", "array", "dataset", "loader"],
)
def test_forms_of_data(data):
    run = short(vae(), data(programs.data(size=10)))
    assert run.history[-1]["step"] == 6  # 4 + 4 + 2 rows, twice


def test_named_data_and_dynamic_binarization():
    torch.manual_seed(0)
    net = pv.models.VAE((8, 8), 2, 8, likelihood="binomial", likelihood_args={"total_count": 16})
    net.to(pv.datasets.digits().args[0].dtype)
    run = pv.fit(net.model, net.guide, "digits", epochs=1, progress=False)
    assert run.config["data"]["name"] == "digits-train"
    grey = pv.datasets.Dataset((torch.rand(30, programs.D),), binarize="dynamic")
    net = pv.models.VAE(programs.D, 2, 8)
    assert math.isfinite(short(net, grey, valid=0.3).history[-1]["valid_elbo"])


def test_a_batch_of_one_and_a_last_short_batch():
    assert short(vae(), programs.data(size=1)).history[-1]["step"] == 2
    assert short(vae(), programs.data(size=5)).history[-1]["step"] == 4


# Resuming --------------------------------------------------------------------------------------


class Normed(nn.Module):
    """A network with buffers, to be saved and found again (trap D13)."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(programs.D, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4)
        )
        self.decoder = nn.Linear(2, programs.D)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        noise = pyro.param("noise", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", programs.prior())
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", programs.normal(self.net(x)))


def normed():
    torch.manual_seed(0)
    return Normed()


@pytest.mark.parametrize("objective", [pv.ELBO(), Trace_ELBO()], ids=["ours", "pyros"])
def test_d13_to_d15_ten_epochs_are_five_and_five_to_the_last_bit(tmp_path, objective):
    x = programs.data(size=30)
    options = {
        "batch_size": 8,
        "valid": 0.2,
        "patience": 8,
        "lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        "objective": objective,
        "progress": False,
    }
    whole = normed()
    straight = pv.fit(whole.model, whole.guide, x, epochs=10, out=tmp_path / "whole", **options)
    first = normed()
    pv.fit(first.model, first.guide, x, epochs=5, out=tmp_path / "parts", **options)
    second = normed()
    second.decoder.weight.data.fill_(7.0)  # whatever it starts from
    torch.manual_seed(123)
    resumed = pv.fit(
        second.model, second.guide, x, epochs=10, out=tmp_path / "parts", resume=True, **options
    )
    for (name, a), (_, b) in zip(
        whole.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(straight.params["noise"], resumed.params["noise"])
    drop = {"seconds"}
    pairs = zip(straight.history, resumed.history, strict=True)
    assert all(
        {k: v for k, v in a.items() if k not in drop}
        == {k: v for k, v in b.items() if k not in drop}
        for a, b in pairs
    )


def test_inner_batches_of_a_loader_are_resumed_too(tmp_path):
    """Inner loops end when a loss rises: an epoch ends somewhere within a pass of the loader."""
    x = programs.data(size=14)
    loader = DataLoader(TensorDataset(x), batch_size=4, shuffle=True)
    schedule = pv.Aggressive(window=1, max_steps=9, stop="never")
    options = {"schedule": schedule, "checkpoint_seconds": 0.0}
    straight = short(vae(), loader, epochs=4, **options)
    short(vae(), loader, epochs=2, out=tmp_path, **options)
    resumed = short(vae(), loader, epochs=4, out=tmp_path, resume=True, **options)
    assert all(torch.equal(p, resumed.params[name]) for name, p in straight.params.items())


def test_a_run_interrupted_early_goes_on_from_its_first_epoch(tmp_path):
    def interrupt(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    x, options = programs.data(), {"out": tmp_path, "epochs": 4}
    with pytest.raises(KeyboardInterrupt):
        short(vae(), x, callbacks=[interrupt], checkpoint_seconds=1e9, **options)
    run = short(vae(seed=5), x, resume=True, **options)  # other weights: the saved ones count
    whole = short(vae(), x, epochs=4)
    assert run.history[-1]["elbo"] == whole.history[-1]["elbo"]


def test_a_saved_run_loads_and_judges_the_same(tmp_path):
    x = programs.data(size=30)
    net = normed()
    run = pv.fit(net.model, net.guide, x, epochs=3, out=tmp_path / "run", progress=False)
    other = Normed()
    loaded = pv.load_run(tmp_path / "run", model=other.model, guide=other.guide)
    assert torch.equal(other.net[1].running_mean, net.net[1].running_mean)
    assert net.net[1].running_mean.abs().sum() > 0
    for trained in (run, loaded):
        pyro.set_rng_seed(0)
        bound = pv.ELBO().per_datum(trained.model, trained.guide, x)
        if trained is run:
            expected = bound
    torch.testing.assert_close(bound, expected, rtol=0, atol=0)
    assert loaded.history == run.history
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.history


@pytest.mark.parametrize(
    "posterior",
    [
        pv.distributions.Laplace,
        "student-t(df=5)",
        "mixture(normal, 2, joint)",
        partial(pv.distributions.mixture_of(pv.distributions.StudentT, 2), df=5.0),
    ],
)
def test_a_vae_is_built_again_from_its_folder(posterior, tmp_path):
    x = programs.data(size=20)
    net = vae(posterior=posterior)
    short(net, x, out=tmp_path / "run")
    loaded = pv.load_run(tmp_path / "run")
    again = loaded.model.program.__self__
    assert again.posterior is net.posterior
    assert same(net, again)


def test_closures_must_be_given_to_load(tmp_path):
    model, guide, (x,), _ = programs.with_pyro_module()
    pv.fit(model, guide, x, epochs=1, out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"pv.load_run\(path, model=model, guide=guide\)"):
        pv.load_run(tmp_path / "run")
    assert pv.load_run(tmp_path / "run", model, guide).history


def test_a_folder_is_never_overwritten(tmp_path):
    short(vae(), programs.data(), out=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(FileExistsError, match="already holds a run.*resume=True"):
        short(vae(), programs.data(), out=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_resuming_with_other_data_is_refused(tmp_path):
    short(vae(), programs.data(), out=tmp_path)
    with pytest.raises(ValueError, match="resume=True, but data is not that of the run"):
        short(vae(), programs.data(seed=9), out=tmp_path, resume=True, epochs=3)
    net = pv.models.VAE(
        programs.D, 3, 8, likelihood="normal_fixed", likelihood_args={"scale": 0.7}
    )
    with pytest.raises(ValueError, match="do not fit|does not fit the programs"):
        short(net, programs.data(), out=tmp_path, resume=True, epochs=3)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "missing"])
@pytest.mark.parametrize("which", ["last.safetensors", "last.json"])
def test_damaged_checkpoints_are_refused_and_left_alone(tmp_path, damage, which):
    short(vae(), programs.data(), out=tmp_path)
    file = tmp_path / "checkpoint" / which
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        flipped = bytearray(content)
        flipped[-40] ^= 1
        file.write_bytes(bytes(flipped))
        if which == "last.json":
            pytest.skip("one flipped bit of text may be a valid text")
    elif damage == "foreign":
        file.write_bytes(b'{"weights": [1, 2, 3]}')
    else:
        file.unlink()
    before = sorted((f.name, f.stat().st_mtime_ns) for f in tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=f"checkpoint: .*{which.split('.')[0]}.*Try:"):
        short(vae(), programs.data(), out=tmp_path, resume=True, epochs=3)
    assert sorted((f.name, f.stat().st_mtime_ns) for f in tmp_path.rglob("*")) == before


def test_d14_states_are_plain_files_and_a_cut_write_leaves_the_previous(tmp_path, monkeypatch):
    state = {
        "a": torch.arange(3),
        "b": [1, (2.5, None)],
        "c": {3: torch.ones(2, dtype=torch.bool), "d": "text"},
    }
    save_state(tmp_path, "s", state)
    loaded = load_state(tmp_path, "s")
    assert loaded["b"] == [1, (2.5, None)]
    assert torch.equal(loaded["c"][3], state["c"][3])
    assert {f.suffix for f in tmp_path.iterdir()} == {".safetensors", ".json"}

    import pyrovae.checkpoint as checkpoint

    calls = []

    def stops(file, content):
        calls.append(file)
        if len(calls) == 2:
            raise OSError("disk full")
        write(file, content)

    write = checkpoint.write_atomic
    monkeypatch.setattr(checkpoint, "write_atomic", stops)
    with pytest.raises(OSError, match="disk full"):
        save_state(tmp_path, "s", {"a": torch.zeros(1)})
    assert torch.equal(load_state(tmp_path, "s")["a"], torch.arange(3))


def test_states_with_foreign_objects_are_refused(tmp_path):
    with pytest.raises(TypeError, match="optimizer/hook is a object"):
        save_state(tmp_path, "s", {"optimizer": {"hook": object()}})


def test_a_run_that_stopped_early_loads_the_weights_it_went_back_to(tmp_path):
    x = programs.data(size=20)
    net = vae()
    run = short(
        net,
        x[:12],
        valid=x[12:],
        patience=1,
        epochs=40,
        optimizer=lambda p: torch.optim.SGD(p, lr=3.0),
        out=tmp_path,
        clip_norm=1.0,
    )
    assert max(run.history, key=lambda r: r["valid_elbo"])["epoch"] < len(run.history)
    assert same(net, pv.load_run(tmp_path).model.program.__self__)


def test_patience_given_on_resuming_counts_from_there(tmp_path):
    x = programs.data(size=12)
    short(vae(), x, valid=0.25, epochs=6, out=tmp_path)
    run = short(vae(), x, valid=0.25, epochs=8, out=tmp_path, resume=True, patience=5)
    assert len(run.history) == 8


def test_resuming_without_the_scheduler_is_refused(tmp_path):
    exponential = lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)  # noqa: E731
    short(vae(), programs.data(), out=tmp_path, lr_scheduler=exponential)
    with pytest.raises(ValueError, match="was trained with lr_scheduler="):
        short(vae(), programs.data(), out=tmp_path, resume=True, epochs=3)


def test_a_float64_vae_loads(tmp_path):
    net = vae().double()
    short(net, programs.data().double(), out=tmp_path)
    torch.set_default_dtype(torch.float32)
    assert same(net, pv.load_run(tmp_path).model.program.__self__)


# The loop --------------------------------------------------------------------------------------


def test_callbacks_stop_and_see_the_history():
    seen = []
    run = short(
        vae(), programs.data(), epochs=9, callbacks=[seen.append, lambda r: r["epoch"] == 3]
    )
    assert [r["epoch"] for r in seen] == [1, 2, 3]
    assert run.history == seen
    assert {"elbo", "objective", "grad_norm", "lr", "seconds", "step"} <= set(seen[0])


def test_early_stopping_keeps_the_best_weights():
    x = programs.data(size=20)
    net = vae()
    rates = [1e-3] * 3 + [3.0] * 30  # after three epochs it is spoilt on purpose
    run = short(
        net,
        x[:12],
        valid=x[12:],
        patience=2,
        epochs=30,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: rates[e]),
        clip_norm=1.0,
    )
    best = max(run.history, key=lambda r: r["valid_elbo"])
    assert len(run.history) == best["epoch"] + 2
    pyro.set_rng_seed(0)
    bound = pv.ELBO().per_datum(run.model, run.guide, x[12:]).mean().item()
    assert bound == pytest.approx(best["valid_elbo"], rel=1e-9)


def test_the_same_seed_is_the_same_run_and_the_callers_generator_is_left_alone():
    nets = [vae(), vae(), vae()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        short(net, programs.data(size=12), seed=seed)
    assert torch.equal(state, torch.get_rng_state())
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_a_failing_epoch_says_where_and_keeps_the_checkpoint(tmp_path):
    x = programs.data(size=12)
    net = vae()
    short(net, x, out=tmp_path, checkpoint_seconds=0.0)
    before = load_state(tmp_path / "checkpoint", "last")["step"]

    def explode(record):
        for p in net.decoder.parameters():
            p.data.fill_(1e200)

    with pytest.raises(
        FloatingPointError,
        match=r"fit: epoch 4, step 10, row\(s\) .*last checkpoint in .* is intact",
    ):
        short(
            net,
            x,
            out=tmp_path,
            resume=True,
            epochs=9,
            callbacks=[explode],
            checkpoint_seconds=1e9,
        )
    assert load_state(tmp_path / "checkpoint", "last")["step"] == before


# Bad settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": pv.Aggressive}, r"fit: schedule .*Try: schedule=pv.Aggressive\(\)"),
        ({"schedule": "alternating(5, 1)"}, r"parse_schedule\('alternating\(5, 1\)'\)"),
        ({"objective": pv.IWAE}, r"is the class IWAE.*Try: IWAE\(\)"),
        ({"optimizer": pyro.optim.Adam({"lr": 1e-3})}, "got one of pyro.optim.*Try: pv.adam"),
        ({"optimizer": torch.optim.SGD([torch.ones(1)], 0.1)}, "an instance of torch.optim.SGD"),
        ({"optimizer": "adam"}, "got 'adam'"),
        ({"optimizer": lambda params: None}, "one that returns NoneType"),
        ({"callbacks": [None]}, r"fit: callbacks holds None.*Try: callbacks=\[lambda record"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_with_the_right_kind(options, message):
    net = vae()
    with pytest.raises(TypeError, match=message):
        short(net, programs.data(size=9), **options)
    assert same(net, vae())


def test_a_single_callback_may_stand_by_itself():
    seen = []
    short(vae(), programs.data(size=9), callbacks=seen.append)
    assert [record["epoch"] for record in seen] == [1, 2]


# Bad input -------------------------------------------------------------------------------------


def bad_row(value):
    x = programs.data(size=9)
    x[4, 2] = value
    return x


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (lambda: bad_row(float("nan")), ValueError, "nan at row 4, feature 2"),
        (lambda: bad_row(float("inf")), ValueError, "inf at row 4, feature 2"),
        (lambda: torch.zeros(0, programs.D), ValueError, "empty data"),
        (lambda: torch.zeros(9, 28, 28, dtype=torch.uint8), TypeError, r"x.float\(\) / 255"),
        (
            lambda: programs.data().float(),
            TypeError,
            "the data are torch.float32, the networks torch.float64",
        ),
        (
            lambda: torch.randn(9, 7),
            ValueError,
            r"expected a batch of shape \[B, 5\], got \[4, 7\]",
        ),
        (lambda: "digist", ValueError, "did you mean 'digits"),
    ],
    ids=["nan", "inf", "empty", "uint8", "dtype", "features", "name"],
)
def test_bad_data_are_refused_before_a_weight_moves(data, error, message):
    net = vae()
    with pytest.raises(error, match=message):
        short(net, data())
    assert same(net, vae())


def test_a_nan_in_a_later_batch_of_a_loader_is_found_before_its_step():
    net = vae()
    loader = DataLoader(TensorDataset(bad_row(float("nan"))), batch_size=3)
    with pytest.raises(ValueError, match="nan at row 1, feature 2"):
        short(net, loader, epochs=1)


def test_values_outside_the_support_in_a_loader_stop_the_first_epoch():
    net = pv.models.VAE(programs.D, 2, 8)
    x = torch.ones(12, programs.D)
    x[7, 3] = 7.0
    with pytest.raises(ValueError, match="within the support"):
        short(net, DataLoader(TensorDataset(x), batch_size=3))


@pytest.mark.parametrize(
    ("likelihood", "bad", "support"),
    [
        ("bernoulli", 0.5, "Boolean.*Try: binarize the data"),
        ("binomial", 17.0, "IntegerInterval.*Try: counts from 0 to 16"),
    ],
)
def test_values_outside_the_likelihoods_support_are_refused(likelihood, bad, support):
    arguments = {"total_count": 16} if likelihood == "binomial" else {}
    net = pv.models.VAE(programs.D, 2, 8, likelihood=likelihood, likelihood_args=arguments)
    x = torch.ones(50, programs.D)
    x[41, 3] = bad  # not in the first batch
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=f"site 'x'.*{bad:g} at row 41, feature 3.*{support}"):
        short(net, x)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def with_batch_norm():
    layers = nn.Sequential(nn.Linear(programs.D, 4), nn.BatchNorm1d(4))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.sum(-1))

    def guide(x):
        pyro.module("layers", layers)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(layers(x), 1.0).to_event(1))

    return model, guide


def test_a_last_batch_of_one_datum_for_batch_norm_says_what_to_try():
    with pytest.raises(ValueError, match=r"last batch of the epoch holds one\. Try: .*batch_size"):
        pv.fit(*with_batch_norm(), programs.data(size=9), batch_size=4, progress=False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[0], r"shapes \[\(5,\)\]"),
        (lambda x: x.long(), r"x\.float\(\), x is torch.int64"),
    ],
    ids=["one datum", "integers"],
)
def test_what_a_layer_refuses_is_told_with_the_shapes(change, says):
    with pytest.raises(RuntimeError, match=f"(?s)could not be run on a batch.*{says}"):
        pv.fit(*with_batch_norm(), change(programs.data(size=9)), batch_size=9, progress=False)


def test_a_wrong_feature_size_in_plain_programs_says_what_to_try():
    model, guide, _, _ = programs.with_pyro_module()
    with pytest.raises(
        RuntimeError,
        match=r"(?s)arguments of shapes \[\(4, 9\)\].*Try: run guide\(x\), then model\(x\)",
    ):
        pv.fit(model, guide, torch.randn(12, 9), batch_size=4, progress=False)


def _pair(model_site="z", guide_site="z", event=1, plate=True):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(model_site, programs.prior())
            pyro.sample(
                "x", programs.likelihood(z.sum(-1, keepdim=True) + torch.zeros(programs.D)), obs=x
            )

    def guide(x):
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            d = (
                dist.Normal(loc.expand(len(x), 2), 1.0).to_event(1)
                if event
                else dist.Normal(loc[0], 1.0)
            )
            pyro.sample(guide_site, d)

    return model, guide


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            _pair(guide_site="zz"),
            "latent site 'z' of the model is missing.*Did you mean 'zz'.*Try: add",
        ),
        (_pair(event=0), r"site 'z': the guide's event shape is \(\) .* the model's is \(2,\)"),
    ],
    ids=["missing", "event"],
)
def test_programs_that_do_not_fit_are_refused_by_site(pair, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(*pair, programs.data(), progress=False)


def test_an_extra_site_of_the_guide_is_refused():
    model, guide = _pair()

    def more(x):
        guide(x)
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(
        ValueError, match="guide: site 'w' has no counterpart in the model.*is_auxiliary"
    ):
        pv.fit(model, more, programs.data(), progress=False)


def test_no_data_plate_comes_with_the_fix():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(2))
        pyro.sample(
            "x", dist.Normal(z.sum(-1, keepdim=True), 1.0).expand(x.shape).to_event(2), obs=x
        )

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(len(x), 2)), 1.0).to_event(2))

    with pytest.raises(
        ValueError,
        match=r"no data plate: .*\['x'\].*Try: \"with pyro.plate\('data', len\(x\)\):\"",
    ):
        pv.fit(model, guide, programs.data(), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer"),
        ({"patience": 3}, "patience=3 needs validation data"),
        ({"clip_norm": -1.0}, "clip_norm must be positive"),
        ({"resume": True}, "resume=True needs out="),
        ({"valid": 1.5}, "holding out 1.5"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        short(vae(), programs.data(), **options)


def test_data_on_another_device_are_refused_by_the_programs():
    net = vae()
    with pytest.raises(ValueError, match="the data are on meta, the networks on cpu; use vae.to"):
        net.guide(programs.data().to("meta"))
    with pytest.raises(ValueError, match="mixed devices: .* on cpu, .* on meta"):
        short(net, (programs.data(), programs.data().to("meta")))
