import numpy as np
import pytest
import torch
from torch import nn

from pyrovae.datasets import lagging_synthetic
from pyrovae.datasets.lagging import CENTRES, Writer, _categorical, _corpus


def test_sizes_and_splits_are_the_papers():
    train, valid, test, whole = (
        lagging_synthetic(split) for split in ("train", "valid", "test", "all")
    )
    assert [len(ds) for ds in (train, valid, test)] == [16_000, 2_000, 2_000]
    tokens, lengths = whole.args
    assert tokens.shape == (20_000, 10)
    assert torch.equal(torch.cat([ds.args[0] for ds in (train, valid, test)]), tokens)
    assert (lengths == 10).all()
    assert len(whole.vocabulary) == 1000
    assert (tokens.min(), tokens.max()) == (0, 999)
    assert whole.vocabulary.decode(tokens[:1])[0].split() == [str(i) for i in tokens[0].tolist()]


def test_the_writer_is_torchs_lstm():
    """Logits of every word after the first, with the same weights in torch's cell."""
    rng = np.random.RandomState(3)
    writer = Writer.draw(rng)
    weights = {name: torch.from_numpy(value) for name, value in vars(writer).items()}
    cell = nn.LSTMCell(102, 100)
    with torch.no_grad():
        cell.weight_ih.copy_(weights["w_in"])
        cell.weight_hh.copy_(weights["w_state"])
        cell.bias_ih.copy_(weights["bias_in"])
        cell.bias_hh.copy_(weights["bias_state"])
    z, words = rng.standard_normal((5, 2)), rng.randint(0, 1000, (5, 10))
    state, memory = writer.start(z)
    z_torch = torch.from_numpy(z)
    c = z_torch @ weights["to_cell"].T
    h = c.tanh()
    for t in range(9):
        logits, state, memory = writer.step(words[:, t], z, state, memory)
        read = torch.cat([weights["embed"][torch.from_numpy(words[:, t])], z_torch], 1)
        h, c = cell(read, (h, c))
        expected = h @ weights["from_state"].T + z_torch @ weights["from_latent"].T
        torch.testing.assert_close(torch.from_numpy(logits), expected)


def test_weights_have_the_papers_spread():
    writer = Writer.draw(np.random.RandomState(0))
    for name, value in vars(writer).items():
        bound = 5 if name == "from_latent" else 1
        assert 0.95 * bound < np.abs(value).max() <= bound, name


def test_clusters_and_first_words_are_uniform():
    """Chi-square of 4 and of 1,000 cells, each a false alarm in a million."""
    ds = lagging_synthetic("all")
    for counts, limit in (
        (torch.bincount(ds.labels), 30.7),  # scipy.stats.chi2(3).isf(1e-6)
        (torch.bincount(ds.args[0][:, 0], minlength=1000), 1226.1),  # chi2(999)
    ):
        expected = 20_000 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < limit


def test_words_are_drawn_with_their_probabilities():
    """20,000 draws of one row; chi-square of 6 cells, a false alarm in a million."""
    logits = np.log([0.3, 0.05, 0.15, 0.2, 0.25, 0.05]) + 800.0
    drawn = _categorical(np.tile(logits, (20_000, 1)), np.random.RandomState(0))
    p = np.exp(logits - 800.0)
    counts = np.bincount(drawn, minlength=6)
    assert ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum() < 35.9  # scipy.stats.chi2(5)


def test_z_decides_what_is_written():
    """A cluster's own word frequencies give its held-out sentences more than the average ones."""
    words, clusters = _corpus(19950927)
    first, second = slice(0, 16_000), slice(16_000, None)
    counts = np.ones((4, 1000))
    for k in range(4):
        counts[k] += np.bincount(words[first][clusters[first] == k].ravel(), minlength=1000)
    log_p = np.log(counts / counts.sum(1, keepdims=True))
    log_mean = np.log(counts.sum(0) / counts.sum())
    own = log_p[clusters[second][:, None], words[second]].sum(1)
    assert (own - log_mean[words[second]].sum(1)).mean() > 1.0
    assert CENTRES.shape == (4, 2)


def test_the_seed_decides_everything():
    a, b = _corpus(1, 50)[0], _corpus(2, 50)[0]
    assert not np.array_equal(a, b)
    _corpus.cache_clear()
    assert np.array_equal(_corpus(1, 50)[0], a)
    assert a[0].tolist() == [386, 121, 259, 36, 127, 372, 4, 372, 540, 420], "on any machine"


def test_unknown_splits_are_answered():
    with pytest.raises(ValueError, match="unknown 'tests'; did you mean 'test'"):
        lagging_synthetic("tests")
