"""The command line: what is printed, written, refused and kept."""

import json
import math
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import _in_one_line, app
from pyrovae.cli.comparing import Pair, answer
from pyrovae.cli.data import choose, load_split
from pyrovae.cli.settings import Settings, _burda, _cosine
from pyrovae.cli.training import describe_prior
from pyrovae.evidence import log_evidence

TINY = ["--epochs", "2", "--hidden", "8", "--latent", "2", "--limit", "20"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Every command runs in an empty folder; the number of threads is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYROVAE_TRACEBACK", raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def good(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments, code=2):
    """The one line that a refused command prints."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.output
    return lines[0]


def read(path):
    return json.loads(path.read_text())


# Help and mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [[], ["train"], ["evaluate"], ["compare"]])
def test_help_has_examples_one_a_line(command):
    output = good(*command, "--help")
    examples = [line for line in output.splitlines() if line.startswith("    pyrovae ")]
    assert "Examples:" in output
    assert len(examples) >= 3


def test_no_argument_is_a_question_for_help():
    assert call().output == call("--help").output


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        (["trian"], "train"),
        (["train", "--posteriro", "Normal"], "--posterior"),
        (["train", "--posterior", "Lapace"], "'Laplace'"),
        (["train", "--data", "digts"], "'digits'"),
        (["train", "--likelihood", "bernouli"], "'bernoulli'"),
        (["train", "--objective", "iwea"], "'iwae'"),
        (["train", "--optimizer", "adm"], "'adam'"),
        (["train", "--lr-schedule", "cosin"], "'cosine'"),
        (["train", "--schedule", "agressive"], "'aggressive'"),
        (["train", "--binarize", "dynmic"], "'dynamic'"),
        (["compare", "--posteriors", "Normal,Logstic"], "'Logistic'"),
    ],
)
def test_unknown_names_come_with_the_nearest_known_one(arguments, nearest, tmp_path):
    assert nearest in refused(*arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--hidden", "20,x"], "--hidden"),
        (["train", "--lr", "-1"], "--lr must be positive"),
        (["train", "--valid", "1.5"], "--valid is a fraction"),
        (["train", "--patience", "3"], "--valid 0.1"),
        (["train", "--schedule", "aggressive"], "add --valid 0.1"),
        (["train", "--schedule", "alternating(0)"], "e_steps must be an integer of at least 1"),
        (["compare", "--schedule", "converge(tolerance=-1)"], "tolerance must be finite"),
        (["train", "--resume"], "--out"),
        (["train", "--resume", "--out", "nothing"], "holds no run"),
        (["train", "--objective", "iwae", "--kl-weight", "0.5"], "--objective elbo"),
        (["train", "--objective", "iwae", "--warm-up", "3"], "--warm-up: for --objective elbo"),
        (["train", "--target-kl", "3", "--warm-up", "3"], "not with --warm-up"),
        (["train", "--target-kl", "0"], "nats must be finite, above 0"),
        (["train", "--warm-up-shape", "sigmod", "--warm-up", "3"], "'sigmoid'"),
        (["train", "--warm-up-shape", "sigmoid"], "needs --warm-up"),
        (["train", "--free-bits", "1", "--free-bits-per", "unti"], "'unit'"),
        (["train", "--free-bits", "1", "--free-bits-per", "0"], "per must be"),
        (["train", "--free-bits-per", "unit"], "--free-bits-per needs --free-bits"),
        (["train", "--schedule", "agressive"], "schedule 'agressive' is not known; did you mean"),
        (["train", "--schedule", "aggressive(txt)"], "'txt' is not known. Expected: aggressive("),
        (["train", "--free-bits", "1", "--capacity", "5"], "one of them"),
        (["train", "--device", "gpu"], "cpu, cuda"),
        (["train", "--data", "faces.npy"], "no file faces.npy"),
        (["train", "--likelihood", "bernoulli"], "--binarize dynamic"),
        (["train", "--likelihood", "made"], "--binarize dynamic"),
        (["train", "--likelihood", "normal_fixed"], "needs its scale"),
        (["train", "--likelihood", "normal:3"], "takes no argument"),
        (["compare", "--posteriors", "Normal,normal"], "different names"),
        (["train", "--prior", "gamma(-1, 2)"], "'concentration' of Gamma"),
        (["train", "--prior", "student-t"], "'df' of StudentT has no usual value"),
        (["train", "--posterior", "student-t(df=x)"], "expected a number, found 'x'"),
        (["compare", "--evaluate", "0"], "--evaluate"),
        (["evaluate", "nothing"], "is missing"),
        (["evaluate"], "Missing argument"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, says, tmp_path):
    assert says in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        _in_one_line(KeyError("ours"))


def test_the_traceback_of_a_mistake_can_be_had(monkeypatch):
    monkeypatch.setenv("PYROVAE_TRACEBACK", "1")
    result = call("train", "--posterior", "Lapace")
    assert isinstance(result.exception, ValueError)


def test_what_is_not_a_mistake_of_the_user_is_code_1():
    assert _in_one_line(ConnectionError("no mirror\ngave it")) == ("no mirror gave it", 1)
    assert _in_one_line(FloatingPointError("nan"))[1] == 1


# train and evaluate ----------------------------------------------------------------------------


def test_train_prints_and_keeps_what_evaluate_finds_again(tmp_path):
    output = good("train", *TINY, "--evaluate", 50, "--out", "run")
    assert "Normal posterior, prior Normal(0, 1), binomial(16)" in output
    assert re.search(r"^ +epoch +train ELBO +seconds$", output, re.M)
    assert len(re.findall(r"^ +[12] +-\d+\.\d\d +\d+\.\d$", output, re.M)) == 2
    assert "20 of 360 rows" in output
    assert "mean log p(x)" in output
    kept = read(tmp_path / "run" / "evidence.json")
    good("evaluate", "run", "--particles", 50, "--limit", 20, "--quiet")
    again = read(tmp_path / "run" / "evidence.json")
    assert again["per_datum"] == kept["per_datum"]
    assert again["collapse"]["units"] == {"z": 2}

    run = pv.load_run("run")
    x = pv.datasets.digits("test").args[0][torch.tensor(kept["per_datum"]["row"])]
    expected = log_evidence(run.model, run.guide, x, particles=50, seed=0)
    assert kept["per_datum"]["log_px"] == expected.log_px.tolist()
    assert kept["mean"]["log_px"] == pytest.approx(np.mean(kept["per_datum"]["log_px"]))


def test_one_row_has_no_mutual_information_and_is_evaluated(tmp_path):
    good("train", *TINY, "--evaluate", "0", "--out", "run")
    assert "single datum" in good("evaluate", "run", "--limit", "1", "--particles", "10")


def test_default_folders_are_numbered(tmp_path):
    for _ in range(2):
        good("train", *TINY, "--evaluate", 0, "--quiet")
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == [
        "digits-normal",
        "digits-normal-2",
    ]


def test_quiet_prints_the_result_only():
    output = good("train", *TINY, "--evaluate", 5, "--quiet")
    assert "epoch" not in output
    assert "mean log p(x)" in output


def test_a_run_stopped_by_the_clock_resumes_to_the_last_bit(tmp_path):
    tiny = ["--epochs", 3, "--hidden", 8, "--latent", 2, "--evaluate", 0]
    good("train", *tiny, "--out", "straight")
    stopped = good("train", *tiny, "--minutes", 1e-9, "--out", "stopped")
    assert "after epoch 1 of 3" in stopped
    assert "--resume" in stopped
    good("train", "--out", "stopped", "--resume", "--minutes", 10, "--evaluate", 0)
    one, other = pv.load_run("straight"), pv.load_run("stopped")
    assert [r["elbo"] for r in one.history] == [r["elbo"] for r in other.history]
    assert all(torch.equal(p, other.params[name]) for name, p in one.params.items())
    assert read(tmp_path / "stopped" / "train.json")["hidden"] == "8"


@pytest.mark.parametrize(
    ("options", "objective"),
    [
        (["--warm-up", "3"], {"kl_weight": ("Linear", 3.0)}),
        (["--warm-up", "3", "--warm-up-shape", "cyclical"], {"kl_weight": ("Cyclical", 3.0)}),
        (
            ["--kl-weight", "20", "--capacity", "4", "--warm-up", "3"],
            {"capacity": ("Linear", 3.0)},
        ),
        (["--target-kl", "2"], {"kl_weight": ("TargetRate", None)}),
        (["--free-bits", "0.1", "--free-bits-per", "unit"], {"free_bits": (None, None)}),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_kl_control_is_kept_and_rebuilt_to_the_last_bit(options, objective, tmp_path):
    """Two epochs and two more are four: the schedule goes on where it was."""
    common = [*TINY, *options, "--evaluate", "0", "--lr-schedule", "constant"]
    said = good("train", *common, "--epochs", "4", "--out", "whole")
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert f"{option.removeprefix('--')} {value}, " in said
    good("train", *common, "--epochs", "2", "--out", "parts")
    good("train", "--resume", "--epochs", "4", "--evaluate", "0", "--out", "parts")
    timing = lambda line: {k: v for k, v in json.loads(line).items() if k != "seconds"}  # noqa: E731
    whole, parts = (
        [timing(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    )
    assert whole == parts
    kept = read(tmp_path / "parts" / "config.json")["objective"]
    for name, (kind, epochs) in objective.items():
        assert kept[name].get("name") == kind
        assert kept[name].get("epochs") == epochs


def test_resume_with_other_settings_is_refused_and_changes_nothing(tmp_path):
    good("train", *TINY, "--evaluate", 0, "--out", "run")
    before = (tmp_path / "run" / "train.json").read_text()
    assert "batch_size" in refused_late("train", "--out", "run", "--resume", "--batch-size", 7)
    assert (tmp_path / "run" / "train.json").read_text() == before


def refused_late(*arguments):
    """As `refused`, where something has been printed before."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


@pytest.mark.parametrize("file", ["notes.txt", "checkpoint/last.json"])
def test_a_folder_with_something_in_it_is_refused_untouched(file, tmp_path):
    path = tmp_path / "mine" / file
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert "--resume" in refused("train", *TINY, "--out", "mine")
    assert [p for p in (tmp_path / "mine").rglob("*") if p.is_file()] == [path]


def test_a_refused_training_leaves_the_folder_usable(tmp_path):
    np.save("grey.npy", np.random.RandomState(0).rand(30, 4))
    refused_late(
        "train", "--data", "grey.npy", "--likelihood", "binomial:4", *TINY, "--out", "run"
    )
    good("train", "--data", "grey.npy", *TINY, "--evaluate", 5, "--out", "run")


def test_validation_patience_and_iwae(tmp_path):
    output = good(
        "train", *TINY, "--valid", 0.1, "--patience", 1, "--objective", "iwae", "--evaluate", 0,
        "--optimizer", "adagrad", "--clip-norm", 5, "--lr-schedule", "burda", "--out", "run",
    )  # fmt: skip
    assert "valid ELBO" in output
    config = read(tmp_path / "run" / "config.json")
    assert config["objective"] == {
        "name": "IWAE",
        "estimator": "iwae",
        "particles": 5,
        "num_particles": 5,
    } | {
        k: v
        for k, v in config["objective"].items()
        if k not in ("name", "estimator", "particles", "num_particles")
    }
    assert "Adagrad" in config["optimizer"]["joint"]
    assert read(tmp_path / "run" / "train.json")["lr"] == 0.02


def test_a_schedule_is_kept_and_goes_on_where_it_was(tmp_path):
    tiny = [*TINY, "--schedule", "aggressive(window=1, max_steps=2)", "--valid", 0.05]
    output = good("train", *tiny, "--evaluate", 0, "--batch-size", 500, "--out", "run")
    assert "aggressive(window=1, max_steps=2), 2 epochs" in output
    good("train", "--out", "run", "--resume", "--epochs", 3, "--evaluate", 0)
    first, _, third = pv.load_run("run").history
    assert first["inner_steps"] == third["inner_steps"] == 2 * 3
    assert "mutual_information" in third
    kept = read(tmp_path / "run" / "config.json")
    assert kept["schedule"] == "aggressive(window=1, max_steps=2)"
    again = ["--schedule", "joint", "--resume", "--out", "run", "--epochs", 4]
    assert "schedule" in refused_late("train", *again)


def test_evaluate_takes_runs_of_fit_by_the_name_of_their_data():
    data = pv.datasets.digits(binarize="dynamic")
    vae = pv.models.VAE((8, 8), 2, hidden=8)
    pv.fit(vae.model, vae.guide, data, epochs=1, out="run", progress=False)
    output = good("evaluate", "run", "--particles", 5, "--limit", 10)
    assert "digits-test: 10 of 360 rows, binarized once (seed 0)" in output


def test_evaluate_asks_for_data_it_cannot_find():
    vae = pv.models.VAE(4, 2, hidden=8)
    pv.fit(vae.model, vae.guide, torch.ones(10, 4), epochs=1, out="run", progress=False)
    assert "--data" in refused("evaluate", "run")
    np.save("other.npy", np.ones((10, 4)))
    assert "other-test: 2 rows" in good("evaluate", "run", "--data", "other.npy", "--particles", 5)


def test_chunk_changes_memory_and_not_the_answer(tmp_path):
    good("train", *TINY, "--evaluate", 0, "--out", "run")
    answers = []
    for chunk in (20, 200):
        good("evaluate", "run", "--particles", 40, "--limit", 10, "--chunk", chunk)
        answers.append(read(tmp_path / "run" / "evidence.json")["per_datum"]["log_px"])
    assert answers[0] == pytest.approx(answers[1], rel=1e-12)


# compare ---------------------------------------------------------------------------------------


@pytest.fixture
def compared(tmp_path):
    output = good("compare", *TINY, "--evaluate", 20, "--out", "demo", "--quiet")
    return output, tmp_path / "demo"


def test_compare_prints_both_tables_and_an_answer(compared):
    output, folder = compared
    header = [cell.strip() for cell in output.splitlines()[0].split("|")]
    assert header == [
        "posterior",
        "ELBO",
        "log p(x) +- s.e.",
        "gap",
        "KL",
        "active units",
        "seconds",
    ]
    number = r" *(>= )?-?\d+\.\d\d"
    for name in ("Normal", "Laplace", "Logistic"):
        assert re.search(
            rf"^{name} +\|{number} \|{number} \+- \d+\.\d\d \|{number} \|", output, re.M
        )
    assert len(re.findall(r"^\w+ - \w+ +\| +[+-]\d", output, re.M)) == 3
    assert "prior of every unit, all: Normal(0, 1)" in output
    assert len(re.findall("^Which guide is better", output, re.M)) == 1
    written = (folder / "table.md").read_text()
    assert "| posterior |" in written
    assert "Which guide is better" in written
    assert (folder / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_paired_differences_are_those_of_the_kept_numbers(compared):
    kept = read(compared[1] / "comparison.json")
    found = {name: one["per_datum"] for name, one in kept["contenders"].items()}
    assert len({tuple(one["row"]) for one in found.values()}) == 1
    assert len(kept["paired"]) == 3
    for pair in kept["paired"]:
        for value, key in (("", "log_px"), ("elbo_", "elbo")):
            d = np.subtract(found[pair["first"]][key], found[pair["second"]][key])
            assert pair[f"{value}difference"] == pytest.approx(d.mean())
            assert pair[f"{value}std_error"] == pytest.approx(d.std(ddof=1) / math.sqrt(len(d)))
        assert pair["difference"] >= 0


def test_each_contender_is_a_run_of_its_own(compared):
    output = good("evaluate", compared[1] / "Laplace", "--particles", 20, "--limit", 20)
    kept = read(compared[1] / "comparison.json")["contenders"]["Laplace"]["per_datum"]["log_px"]
    assert read(compared[1] / "Laplace" / "evidence.json")["per_datum"]["log_px"] == kept
    assert "binarized once" in output


def test_contenders_start_from_the_same_weights():
    data = load_split("digits", "none", "train")
    vaes = [Settings.chosen({"posterior": p}).vae(data) for p in ("Normal", "Laplace")]
    weights = [dict(v.named_parameters()) for v in vaes]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


def test_an_old_comparison_is_moved_aside_whole(compared, tmp_path):
    before = {p.name: p.read_bytes() for p in compared[1].glob("*.*")}
    output = good("compare", "--posteriors", "Normal", *TINY, "--evaluate", 5, "--out", "demo")
    assert "is now in" in output
    aside = tmp_path / "demo-old"
    assert {p.name: p.read_bytes() for p in aside.glob("*.*")} == before
    assert sorted(p.name for p in compared[1].iterdir() if p.is_dir()) == ["Normal"]


def test_a_foreign_folder_is_refused_untouched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    assert "compare.json" in refused("compare", *TINY, "--out", "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_different_priors_are_said_to_make_different_models():
    output = good("compare", "--posteriors", "Normal,Gamma", *TINY, "--evaluate", 5, "--quiet")
    assert "the models differ too: Normal: Normal(0, 1); Gamma: Gamma(1, 1)" in output


def test_unreliable_numbers_are_not_called_an_answer():
    grey = ["--posteriors", "Normal,Laplace", "--binarize", "none"]
    output = good("compare", *grey, *TINY, "--evaluate", 50, "--quiet")
    assert "provisional" in output


def pair(first, second, difference, std_error):
    return Pair(first, second, difference, std_error, 0.0, 0.1)


def test_a_clear_winner_is_named():
    text = answer(
        [pair("A", "C", 1.0, 0.1), pair("A", "B", 0.5, 0.1), pair("B", "C", 0.5, 0.1)], 360
    )
    assert text.startswith("A: its log p(x)")
    assert "C by 1.000 +- 0.100, B by 0.500 +- 0.100" in text


def test_within_the_error_there_is_no_winner():
    text = answer([pair("A", "B", 0.2, 0.1)], 360)
    assert text.startswith("A: ")  # 2.0 standard errors, 1.96 needed for one pair
    text = answer(
        [pair("A", "C", 0.2, 0.1), pair("A", "B", 0.2, 0.1), pair("B", "C", 0.0, 0.1)], 360
    )
    assert text.startswith("no single winner")  # 2.39 needed for three
    assert "2.4 standard errors" in text


def test_a_tie_at_the_top_still_names_who_is_beaten():
    text = answer(
        [pair("A", "C", 1.0, 0.1), pair("B", "C", 0.95, 0.1), pair("A", "B", 0.05, 0.1)], 9
    )
    assert text.startswith("no single winner. A")
    assert "cannot be told from B (0.050 +- 0.100)" in text
    assert "better than C by 1.000 +- 0.100 nats, but" in text


# Data, schedules, settings ---------------------------------------------------------------------


def test_a_file_is_split_once_and_without_overlap(tmp_path):
    np.save("x.npy", np.arange(50.0)[:, None])
    parts = [load_split("x.npy", "none", s).args[0].flatten().tolist() for s in ("train", "test")]
    assert [len(p) for p in parts] == [40, 10]
    assert sorted(parts[0] + parts[1]) == list(range(50))


def test_a_file_with_a_split_of_its_own_keeps_it(tmp_path):
    np.savez("x.npz", train=np.zeros((6, 2)), test=np.ones((3, 2)))
    assert load_split("x.npz", None, "test").args[0].unique().tolist() == [1.0]
    assert len(load_split("x.npz", None, "train")) == 6


def test_one_array_of_several_is_named_after_a_colon(tmp_path):
    np.savez("x.npz", images=np.zeros((10, 2)), labels=np.arange(10))
    assert load_split("x.npz:images", None, "train").data_shape == (2,)
    assert "'images'" in refused("train", "--data", "x.npz:imges")
    assert "which array" in refused("train", "--data", "x.npz")


def test_binarized_files_become_bernoulli(tmp_path):
    np.save("x.npy", np.random.RandomState(0).rand(20, 4))
    data = load_split("x.npy", "dynamic", "train")
    assert Settings.chosen({"data": "x.npy"}).likelihood_of(data) == ("bernoulli", {})
    grey = load_split("x.npy", "none", "train")
    assert Settings.chosen({"data": "x.npy"}).likelihood_of(grey) == ("normal", {})


def test_byte_images_are_refused_with_advice(tmp_path):
    np.save("x.npy", np.zeros((20, 4, 4), np.uint8))
    assert "255" in refused("train", "--data", "x.npy")


def test_rows_are_chosen_once_and_nested():
    few, more = set(choose(360, 20).tolist()), set(choose(360, 50).tolist())
    assert len(few) == 20
    assert few < more
    assert choose(360, None).tolist() == list(range(360)) == choose(360, 0).tolist()


def test_burda_schedule_is_the_papers():
    """Stage i of 3^i epochs at 1e-4 round(10^(1 - i/7), 1), relative to its first, 1e-3."""
    expected = [r for i in range(8) for r in [round(10 ** (1 - i / 7), 1) / 10] * 3**i]
    assert [_burda(epoch / 3280) for epoch in range(3280)] == expected
    assert expected[:2] == [1.0, 0.72]
    assert _burda(1.0) == 0.1


def test_cosine_schedule_goes_from_one_to_nothing():
    assert [_cosine(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_a_prior_by_name_is_trained_kept_and_evaluated(tmp_path):
    options = ["--posterior", "erlang", "--prior", "gamma(2, rate=0.3)", "--evaluate", 5]
    output = good("train", *options, *TINY)
    assert "Erlang posterior, prior Gamma(2, 0.3)" in output
    folder = tmp_path / "runs" / "digits-erlang"
    assert read(folder / "train.json")["prior"] == "Gamma(concentration=2, rate=0.3)"
    prior = pv.load_run(folder).model.program.__self__.prior()
    assert (prior.base_dist.concentration == 2).all()
    assert "log p(x)" in good("evaluate", folder, "--particles", 5, "--limit", 5)
    good("train", "--resume", "--out", folder, "--epochs", 3, "--evaluate", 0)


def test_posteriors_with_numbers_are_compared():
    options = ["--posteriors", "student-t(df=5), laplace(scale=1),normal", "--prior", "laplace"]
    output = good("compare", *options, *TINY, "--evaluate", 5, "--out", "demo")
    assert "prior of every unit, all: Laplace(0, 1)" in output
    assert {"StudentT-df-5", "Laplace-scale-1", "Normal"} <= {
        p.name for p in Path("demo").iterdir()
    }


@pytest.mark.parametrize(
    ("posterior", "words"),
    [
        ("Normal", "Normal(0, 1)"),
        ("Cauchy", "Cauchy(0, 1)"),
        ("Beta", "Beta(1, 1)"),
        ("Dirichlet", "Dirichlet(1)"),
        ("Weibull", "Exponential(1)"),
    ],
)
def test_priors_in_words(posterior, words):
    vae = pv.models.VAE(4, 3, hidden=4, posterior=pv.distributions.lookup(posterior))
    assert describe_prior(vae) == words


def test_settings_survive_json(tmp_path):
    settings = Settings.chosen({"data": "mnist", "posterior": "student-t"})
    assert (settings.posterior, settings.latent, settings.binarize) == ("StudentT", 50, "dynamic")
    settings.save(tmp_path)
    assert Settings.chosen(read(tmp_path / "train.json")) == settings


@pytest.mark.parametrize(
    ("text", "built"),
    [
        ("made", ("made", {})),
        ("made:300", ("made", {"hidden": 300})),
        ("window:2", ("window", {"radius": 2})),
    ],
)
def test_autoregressive_likelihoods_by_name(text, built):
    settings = Settings.chosen({"likelihood": text, "hidden": "8"})
    data = pv.datasets.Dataset((torch.ones(5, 4, 4),), likelihood="bernoulli")
    assert settings.likelihood_of(data) == built
    assert settings.vae(data).decode(torch.zeros(1, settings.latent)).event_shape == (4, 4)


def test_the_package_runs_as_a_module(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pyrovae", "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("pyrovae", run_name="__main__")
    assert left.value.code == 0
    assert "compare" in capsys.readouterr().out
