import hashlib
import re

import pytest
import torch

import pyrovae as pv
from pyrovae.datasets import Vocabulary, as_dataset, fetch, load, names, shakespeare

# -- vocabulary -----------------------------------------------------------------------------------


def test_texts_come_back_as_they_were():
    texts = ["a rose is", "a", "rose"]
    letters = Vocabulary.of(texts)
    tokens, lengths = letters.encode(texts)
    assert letters.symbols[0] == "<end>"
    assert tokens.shape == (3, 10)
    assert lengths.tolist() == [10, 2, 5]
    assert (tokens[torch.arange(3), lengths - 1] == 0).all(), "each text is closed"
    assert letters.decode(tokens, lengths) == texts
    assert letters.decode(tokens) == texts, "padding is end symbols"
    assert letters.decode(tokens[0]) == ["a rose is"]
    assert letters.encode(texts, size=20)[0].shape == (3, 20)


def test_words_and_what_is_not_known():
    texts = ["To be, or not to be: that's", "be not"]
    words = Vocabulary.of(texts, "word", least=2)
    assert words.symbols == ("<end>", "<unknown>", "be", "not")
    tokens, lengths = words.encode(texts)
    assert tokens[0].tolist() == [1, 2, 1, 1, 3, 1, 2, 1, 1, 0]
    assert words.decode(tokens[1:], lengths[1:]) == ["be not"]
    every = Vocabulary.of(texts, "word")
    assert "that's" in every.symbols
    assert "<unknown>" not in every.symbols
    assert every.decode(*every.encode(texts))[0] == "To be , or not to be : that's"


def test_without_an_end_symbol_nothing_is_closed():
    letters = Vocabulary.of(["ab"], end=False)
    assert letters.end is None
    tokens, lengths = letters.encode(["ab", "b"])
    assert tokens.tolist() == [[0, 1], [1, 0]]
    assert letters.decode(tokens, lengths) == ["ab", "b"]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["abc"], ValueError, "'c' in 'abc' is not one of the 2 symbols"),
        (["ab", ""], ValueError, "texts of at least one token"),
        ([], ValueError, "texts of at least one token"),
        ("ab", TypeError, r"a list of texts, got one; try \['ab'\]"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_name(texts, error, message):
    with pytest.raises(error, match=message):
        Vocabulary.of(["ab"], end=False).encode(texts)


# -- named texts ----------------------------------------------------------------------------------


def rows(ds):
    return sorted(ds.vocabulary.decode(*ds.args))


def test_names_are_the_file_split_once(data_folder):
    listed = (data_folder / "text" / "names.txt").read_text().split()
    parts = [names(split) for split in ("train", "valid", "test")]
    assert [len(p) for p in parts] == [25_627, 3_203, 3_203]
    assert sorted(listed) == sorted(sum((rows(p) for p in parts), []))
    whole = names("all")
    assert whole.vocabulary.decode(*whole.args) == listed
    assert len(whole.vocabulary) == 27
    for part in parts:
        tokens, lengths = part.args
        assert part.data_shape == (16,)
        assert lengths.max() <= 16
        assert ((tokens == 0).sum(1) == 16 - lengths + 1).all(), "an end symbol, then padding"
    assert rows(names("test"))[:2] == rows(parts[2])[:2], "the split is fixed"


def test_lines_of_shakespeare_keep_their_order(data_folder):
    text = (data_folder / "text" / "tinyshakespeare.txt").read_text()
    lines = [line for line in text.splitlines() if line]
    parts = [shakespeare(split) for split in ("train", "valid", "test")]
    decoded = sum((p.vocabulary.decode(*p.args) for p in parts), [])
    assert decoded == lines
    assert [len(p) for p in parts] == [26_382, 3_236, 3_159]
    assert {p.data_shape for p in parts} == {(64,)}
    assert len({p.vocabulary for p in parts}) == 1
    assert len(parts[0].vocabulary) == 65


def test_windows_of_shakespeare_are_the_text_in_pieces(data_folder):
    text = (data_folder / "text" / "tinyshakespeare.txt").read_text()
    ds = shakespeare("all", window=100)
    assert "".join(ds.vocabulary.decode(*ds.args)) == text[: len(text) // 100 * 100]
    assert ds.vocabulary.end is None
    assert (ds.args[1] == 100).all()


@pytest.mark.parametrize("window", [None, 20])
def test_words_of_shakespeare_are_known_from_training(data_folder, window):
    train, test = (shakespeare(split, "word", window) for split in ("train", "test"))
    assert train.vocabulary == test.vocabulary
    unknown = train.vocabulary.symbols.index("<unknown>")
    shares = [(ds.args[0] == unknown).double().mean().item() for ds in (train, test)]
    assert 0 < shares[0] < shares[1] < 0.2
    words = re.findall(r"\w+", " ".join(test.vocabulary.decode(*test.args)))
    assert {"the", "King", "thee"} <= set(words)


def test_texts_go_through_fit_by_name(data_folder):
    vae = pv.models.SequenceVAE(27, 4, embedding=8, hidden=8, dropout=0.0, end=0)
    assert as_dataset("names").name == "names-train"
    held_out = load("names", split="test").subset(range(50))
    run = pv.fit(
        vae.model, vae.guide, names("valid").subset(range(1000)), valid=held_out, batch_size=50,
        optimizer=pv.adam(1e-2), epochs=1, progress=False,
    )  # fmt: skip
    assert run.history[0]["valid_elbo"] > -7.2 * 3.3  # log 27 = 3.3 a token
    assert run.config["data"]["name"] == "names-valid"
    found = pv.log_evidence(run.model, run.guide, held_out, particles=20)
    assert found.log_px.shape == (50,)


# -- files ----------------------------------------------------------------------------------------


def test_a_relative_folder_is_read(data_folder, monkeypatch):
    monkeypatch.chdir(data_folder.parent)
    monkeypatch.setenv("PYROVAE_DATA", data_folder.name)
    assert len(names("test")) == 3_203


def test_a_plain_file_is_checked_and_kept(monkeypatch, tmp_path):
    import pooch

    raw, asked = b"anna\nava\n", []

    def download(url, output_file, _):
        asked.append(url)
        with open(output_file, "wb") as file:
            file.write(raw)

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: download)
    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    where = ("text/x.txt", ("https://first.test/another_name.txt",))
    digest = hashlib.sha256(raw).hexdigest()
    assert fetch.fetch_bytes(*where, digest) == raw
    assert fetch.fetch_bytes(*where, digest) == raw
    assert asked == ["https://first.test/another_name.txt"]
    with pytest.raises(ValueError, match="x.txt: the bytes have sha256"):
        fetch.fetch_bytes(*where, "0" * 64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: names("tset"), "names: split: unknown 'tset'; did you mean 'test'"),
        (lambda: shakespeare("train", "words"), "level: unknown 'words'; did you mean 'word'"),
        (lambda: shakespeare(window=0), "window must be at least 1 token, got 0"),
    ],
)
def test_unknown_choices_are_answered(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_window_longer_than_the_text_is_refused(data_folder):
    with pytest.raises(ValueError, match="window=9999999 is longer than"):
        shakespeare(window=9_999_999)
