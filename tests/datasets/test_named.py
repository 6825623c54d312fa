import gzip
import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pyrovae.datasets import (
    NAMES,
    digits,
    fetch,
    lagging_synthetic,
    load,
    mnist,
    names,
    omniglot,
    shakespeare,
)


def test_digits_are_the_embedded_ones():
    raw, labels = load_digits(return_X_y=True)
    ds = digits("all")
    assert np.array_equal(ds.args[0].flatten(1), raw)
    assert np.array_equal(ds.labels, labels)
    assert (ds.likelihood, ds.likelihood_args) == ("binomial", {"total_count": 16})
    assert set(ds.args[0].unique().tolist()) == set(range(17))


def test_digits_split_is_a_partition_that_no_seed_changes():
    train, test, whole = (digits(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (1437, 360, 1797)

    def rows(ds):
        return sorted(x.numpy().tobytes() for x in ds.args[0])

    assert sorted(rows(train) + rows(test)) == rows(whole)
    assert torch.equal(digits("test", seed=5).args[0], test.args[0])
    counts = torch.bincount(test.labels)
    assert counts.min() >= 20, "every digit is in the test set"
    assert test.describe()["sha256"][:16] == "629e7a29afdd1e04"


def test_digits_come_in_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    assert digits().args[0].dtype == torch.float32


@pytest.mark.parametrize("how", ["dynamic", "fixed"])
def test_binarized_digits_have_their_intensities_as_means(how):
    """One z-score of the total: 5 sigma, a false alarm in a million."""
    ds = digits("all", binarize=how, seed=2)
    (x,), _ = ds.take(torch.arange(1797), torch.Generator().manual_seed(2))
    p = digits("all").args[0] / 16
    z = (x - p).sum() / (p * (1 - p)).sum().sqrt()
    assert z.abs() < 5
    assert (ds.likelihood, ds.likelihood_args) == ("bernoulli", {})
    assert ds.describe()["binarize"] == how


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: digits("tset"), "digits: split: unknown 'tset'; did you mean 'test'"),
        (lambda: mnist("valid"), "mnist: split: unknown 'valid'.*Known: 'train', 'test', 'all'"),
        (lambda: digits(binarize="fix"), "binarize: unknown 'fix'; did you mean 'fixed'"),
        (lambda: load("digit"), "data set: unknown 'digit'; did you mean 'digits'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_registry_is_complete_and_closed():
    texts = {"names": names, "shakespeare": shakespeare, "lagging_synthetic": lagging_synthetic}
    assert dict(NAMES) == {"digits": digits, "mnist": mnist, "omniglot": omniglot, **texts}
    assert load("digits", split="test", binarize="fixed").name == "digits-test"
    with pytest.raises(TypeError):
        NAMES["own"] = digits


def test_mnist_is_lecuns(data_folder):
    raw = gzip.decompress((data_folder / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert hashlib.md5(raw).hexdigest() == "2646ac647ad5339dbf082846283269ea"
    ds = mnist("test", binarize=None)
    assert np.array_equal(ds.args[0].flatten() * 255, np.frombuffer(raw[16:], np.uint8))
    assert ds.data_shape == (28, 28)
    # Counts per class of the test set, as published everywhere.
    known = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert torch.bincount(ds.labels).tolist() == known
    assert ds.likelihood == "normal"


def test_mnist_train_has_its_classes(data_folder):
    torch.set_default_dtype(torch.float32)
    ds = mnist()
    known = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(ds.labels).tolist() == known
    assert (ds.binarize, ds.likelihood, ds.name) == ("dynamic", "bernoulli", "mnist-train")
    assert ds.args[0].mean().item() == pytest.approx(0.1307, abs=5e-5)  # the well-known mean
    (x,), _ = ds.take(torch.arange(100), torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}


def test_mnist_binarized_means_are_the_intensities(data_folder):
    """5 sigma of one total, and of 784 pixels at 6 sigma: below one false alarm in 100,000."""
    torch.set_default_dtype(torch.float32)
    p = mnist("test", binarize=None).args[0]
    x = mnist("test", binarize="fixed", seed=1).args[0]
    variance = p * (1 - p)
    assert ((x - p).sum().double() / variance.sum().sqrt()).abs() < 5
    seen = variance.sum(0) > 20  # where the normal approximation holds
    assert ((x - p).sum(0)[seen] / variance.sum(0)[seen].sqrt()).abs().max() < 6
    assert torch.equal(x[p == 0], torch.zeros(int((p == 0).sum())))


class Mirrors:
    """Stands in for pooch's downloader: what each URL gives, and which were asked."""

    def __init__(self, monkeypatch, tmp_path, served):
        import pooch

        self.served, self.asked = served, []
        monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
        monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: self)
        monkeypatch.delenv("PYROVAE_DATA", raising=False)

    def __call__(self, url, output_file, _):
        self.asked.append(url)
        if url not in self.served:
            raise ConnectionError("no route")
        with open(output_file, "wb") as file:
            file.write(self.served[url])


RAW = b"pixels"
GOOD, OTHER = gzip.compress(RAW, mtime=1), gzip.compress(RAW, compresslevel=1, mtime=2)
SHA256 = hashlib.sha256(RAW).hexdigest()
URLS = ("https://first.test/", "https://second.test/")


def get():
    return fetch.fetch_gzip("mnist/x.gz", URLS, SHA256)


def test_a_download_is_checked_kept_and_not_repeated(monkeypatch, tmp_path):
    mirrors = Mirrors(monkeypatch, tmp_path, {URLS[0] + "x.gz": OTHER})
    assert get() == RAW
    assert get() == RAW
    assert mirrors.asked == [URLS[0] + "x.gz"]
    kept = [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert kept == ["x.gz"]


FAILURES = {
    "no answer": None,
    "another page": b"<html>log in</html>",
    "other bytes": gzip.compress(b"else", mtime=1),
    "cut short": GOOD[:9],
}


@pytest.mark.parametrize("how", FAILURES)
def test_the_second_mirror_serves_where_the_first_fails(monkeypatch, tmp_path, how):
    served = {URLS[1] + "x.gz": GOOD}
    if FAILURES[how]:
        served[URLS[0] + "x.gz"] = FAILURES[how]
    mirrors = Mirrors(monkeypatch, tmp_path, served)
    assert get() == RAW
    assert len(mirrors.asked) == 2


def test_offline_the_error_says_what_to_do(monkeypatch, tmp_path):
    Mirrors(monkeypatch, tmp_path, {URLS[1] + "x.gz": b"<html>log in</html>"})
    with pytest.raises(
        ConnectionError, match=r"no local copy.*first.test/.*second.test/"
    ) as error:
        get()
    assert "PYROVAE_DATA=path/to/data" in str(error.value)
    assert "path/to/data/mnist/x.gz" in str(error.value)
    assert "digits()" in str(error.value)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()], (
        "nothing half-done stays"
    )


def test_the_users_folder_comes_first(monkeypatch, tmp_path):
    mirrors = Mirrors(monkeypatch, tmp_path, {URLS[0] + "x.gz": GOOD})
    own = tmp_path / "own" / "mnist"
    own.mkdir(parents=True)
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "own"))
    (own / "x.gz").write_bytes(OTHER)
    assert get() == RAW
    assert mirrors.asked == []
    (own / "x.gz").write_bytes(gzip.compress(b"changed"))
    with pytest.raises(ValueError, match=f"x.gz: the uncompressed bytes have sha256 .*{SHA256}"):
        get()
    (own / "x.gz").write_bytes(GOOD[:-4])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        get()
    (own / "x.gz").unlink()
    assert get() == RAW
    assert len(mirrors.asked) == 1


def test_an_idx_file_is_read_and_anything_else_refused():
    raw = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(range(6))
    assert fetch.read_idx(raw).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="not an idx file of unsigned bytes"):
        fetch.read_idx(b"\x00\x00\x0d\x01")
