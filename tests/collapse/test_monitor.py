"""The live warning: what it measures, when it speaks, and that it moves nothing."""

import json
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from tests import programs


def dial(latent=4):
    """A pair whose guide is set by hand: `gain` of each unit, `scale` of all."""
    settings = {"gain": torch.ones(latent), "scale": torch.tensor(0.5)}

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            q = dist.Normal(settings["gain"] * x, settings["scale"])
            pyro.sample("z", q.to_event(1))

    return model, guide, settings


def said(watch, epoch):
    """What it says at an epoch, and the record."""
    record = {"epoch": epoch}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch(record)
    assert all(w.category is pv.CollapseWarning for w in caught)
    return [str(w.message) for w in caught], record


def test_it_speaks_once_for_each_reason_after_its_patience():
    model, guide, settings = dial()
    watch = pv.CollapseMonitor(model, guide, torch.randn(300, 4), patience=2)
    assert said(watch, 1)[0] == []
    settings["gain"][0] = 0.0  # 3 of 4: a fall below 80 %
    assert said(watch, 2)[0] == []
    (fall,) = said(watch, 3)[0]
    assert fall.startswith("epoch 3: units of 'z' fall out of use: 3 active, there were 4.")
    assert "Try" in fall
    assert "pv.kl_control.Linear" in fall
    assert said(watch, 4)[0] == []
    settings["gain"][:3] = 0.0
    assert said(watch, 5)[0] == []
    (worse,) = said(watch, 6)[0]
    assert worse.startswith("epoch 6: partly collapsed, no longer healthy.")
    settings["gain"][:], settings["scale"] = 0.0, torch.tensor(0.3)
    said(watch, 7)
    (collapsed,) = said(watch, 8)[0]
    assert collapsed.startswith("epoch 8: collapsed: no unit of z is active, KL 2.")
    settings["scale"] = torch.tensor(1.0)
    said(watch, 9)
    (silent,) = said(watch, 10)[0]
    assert "z says nothing of x: KL 0.000 (below 0.1) and mutual information 0.000" in silent
    assert said(watch, 11)[0] == []


def test_a_lapse_shorter_than_the_patience_is_forgiven():
    model, guide, settings = dial()
    watch = pv.CollapseMonitor(model, guide, torch.randn(300, 4), patience=2)
    for epoch in range(1, 9):
        settings["gain"] = torch.full((4,), float(epoch % 2))
        assert said(watch, epoch)[0] == []


def test_superfluous_latents_from_the_start_are_no_news():
    model, guide, settings = dial(10)
    settings["gain"][2:] = 0.0
    watch = pv.CollapseMonitor(model, guide, torch.randn(300, 10), patience=1)
    messages, record = said(watch, 1)
    assert messages == []
    assert record["verdict"] == "partly collapsed"


def test_the_record_has_the_figures_of_the_report():
    model, guide, _ = dial()
    x = torch.randn(200, 4)
    watch = pv.CollapseMonitor(model, guide, x, every=3)
    assert "mi" in said(watch, 1)[1]
    assert said(watch, 2)[1] == {"epoch": 2}
    record = said(watch, 3)[1]
    report = pv.collapse_report(model, guide, x)
    assert record["active_units"] == 4
    assert record["monitored_kl"] == pytest.approx(report.kl["z"], rel=1e-12)
    assert record["mi"] == report.mutual_information["z"]
    assert record["mi_std_error"] == report.mutual_information_std_error["z"]
    assert record["verdict"] == report.verdict
    assert list(watch.reports) == [1, 3]
    json.dumps(record)


def test_several_sites_are_told_apart():
    model, guide, args, kwargs = programs.two_latents()
    guide(*args, **kwargs)
    record = said(pv.CollapseMonitor(model, guide, *args, **kwargs), 1)[1]
    assert {"mi:a", "mi:b", "active_units:a", "monitored_kl:b"} <= record.keys()


def with_bare_params():
    def model(x):
        weight = pyro.param("weight", torch.ones(programs.D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * weight, 1.0).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.full((programs.D,), 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x @ slope)[:, None], 0.5).to_event(1))

    return model, guide, (), {}


@pytest.mark.parametrize("build", [with_bare_params, programs.with_pyro_module])
def test_in_fit_it_sees_the_trained_parameters_and_leaves_no_trace(build, tmp_path):
    """Parameters of a run live in the run's own store."""

    def train(folder, watch):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        model, guide, _, _ = build()
        x = torch.randn(60, programs.D)
        monitor = pv.CollapseMonitor(model, guide, x, patience=9)
        run = pv.fit(
            model, guide, x, epochs=3, batch_size=20, optimizer=pv.adam(0.05), progress=False,
            callbacks=[monitor] if watch else [], out=tmp_path / folder,
        )  # fmt: skip
        return run, x

    (watched, x), (alone, _) = train("watched", True), train("alone", False)
    assert all(torch.equal(p, alone.params[n]) for n, p in watched.params.items())
    assert [r["elbo"] for r in watched.history] == [r["elbo"] for r in alone.history]
    assert list(pyro.get_param_store()) == []
    report = pv.collapse_report(watched.model, watched.guide, x)
    assert watched.history[-1]["monitored_kl"] == pytest.approx(report.kl["z"], rel=1e-9)
    kls = [r["monitored_kl"] for r in watched.history]
    assert len(set(kls)) == 3
    kept = [json.loads(s) for s in (tmp_path / "watched/metrics.jsonl").read_text().splitlines()]
    assert [r["mi"] for r in kept] == [r["mi"] for r in watched.history]


def test_batch_norm_and_dropout_of_the_training_do_not_move():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    x = torch.randn(50, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    said(pv.CollapseMonitor(model, guide, x), 1)
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_a_vae_that_collapses_is_warned_of_while_it_trains():
    """A KL weight of 30 on noise: nothing is worth saying, and that is said before the end."""
    torch.manual_seed(0)
    x = torch.randn(100, 4)
    vae = pv.models.VAE(4, 2, 8, likelihood="normal_fixed", likelihood_args={"scale": 1.0})
    watch = pv.CollapseMonitor(vae.model, vae.guide, x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", pv.CollapseWarning)
        run = pv.fit(
            vae.model, vae.guide, x, objective=pv.ELBO(kl_weight=30.0), epochs=25, batch_size=20,
            optimizer=pv.adam(0.02), callbacks=[watch], progress=False,
        )  # fmt: skip
    words = [str(w.message) for w in caught]
    (silent,) = (w for w in words if "z says nothing of x" in w)
    assert int(silent.split(":")[0].removeprefix("epoch ")) < 20
    assert run.history[-1]["verdict"] == "collapsed"
    assert run.history[-1]["mi"] == pytest.approx(0.0, abs=0.05)
    assert math.isfinite(run.history[-1]["mi_std_error"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be an integer of at least 1, got 0"),
        ({"patience": 1.5}, ValueError, "patience must be an integer"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    model, guide, _ = dial()
    with pytest.raises(error, match=message):
        pv.CollapseMonitor(model, guide, torch.zeros(3, 4), **options)
    with pytest.raises(TypeError, match="the model and the guide, two programs"):
        pv.CollapseMonitor(torch.zeros(3, 4), model, guide)
