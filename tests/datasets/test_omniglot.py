import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from pyrovae.datasets import build_omniglot, load, omniglot

# the module, which its function of the same name hides
from pyrovae.datasets.named import omniglot as function

module = __import__("sys").modules[function.__module__]
ALPHABETS = {"images_background": ["Greek", "Angelic"], "images_evaluation": ["Avesta"]}


def drawing(alphabet, character, drawer):
    """105x105, ink black on white: a rectangle whose place tells where it belongs."""
    image = np.full((105, 105), 255, np.uint8)
    start = 3 * character + drawer
    image[start : start + 15, 30:60] = 0
    image[:4, : 8 * len(alphabet)] = 0
    return image


def write_archive(path, name, drawers=20):
    numbers = {"Angelic": 965, "Greek": 394, "Avesta": 1128}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"__MACOSX/{name}/._x.png", b"no image")
        for alphabet in ALPHABETS[name]:
            for character in (2, 1):  # not in order
                for drawer in range(drawers, 0, -1):
                    file = io.BytesIO()
                    image = Image.fromarray(drawing(alphabet, character, drawer))
                    image.convert("1").save(file, "png")
                    number = numbers[alphabet] + character - 1
                    archive.writestr(
                        f"{name}/{alphabet}/character{character:02d}/{number:04d}_{drawer:02d}.png",
                        file.getvalue(),
                    )


@pytest.fixture
def archives(tmp_path):
    for name in ALPHABETS:
        write_archive(tmp_path / f"{name}.zip", name)
    return [tmp_path / f"{name}.zip" for name in ALPHABETS]


def test_built_from_archives_in_order_of_alphabet_character_and_drawer(archives, tmp_path):
    out = build_omniglot(*archives, tmp_path / "new" / "file.npz")
    with np.load(out, allow_pickle=False) as file:
        images, number, drawer, background = (
            file[k] for k in ("images", "char_id", "drawer", "background")
        )
    assert images.shape == (120, 28, 28)
    assert images.dtype == np.uint8
    assert drawer.tolist() == list(range(1, 21)) * 6
    assert number[::20].tolist() == [965, 966, 1128, 1129, 394, 395]
    assert background[::20].tolist() == [True, True, False, False, True, True]
    order = [(name, number) for name in ("Angelic", "Avesta", "Greek") for number in (1, 2)]
    for i in (0, 25, 70, 119):
        alphabet, character = order[i // 20]
        ink = (255 - drawing(alphabet, character, int(drawer[i]))) / 255
        # an output pixel averages the 3 or 4 rows and columns whose middles lie in its area
        edges = np.arange(29) * 105 / 28
        inside = np.array(
            [
                (np.arange(105) + 0.5 > a) & (np.arange(105) + 0.5 <= b)
                for a, b in zip(edges[:-1], edges[1:], strict=True)
            ],
            float,
        )
        inside /= inside.sum(1, keepdims=True)
        assert np.abs(images[i] / 255 - inside @ ink @ inside.T).max() < 1.01 / 255
    assert not list(out.parent.glob(".*"))


def test_a_folder_with_both_archives_is_enough(archives, tmp_path, monkeypatch):
    import pooch

    own = tmp_path / "own" / "omniglot"
    own.mkdir(parents=True)
    sums = {}
    for archive in archives:
        archive.rename(own / archive.name)
        sums[archive.name] = hashlib.md5((own / archive.name).read_bytes()).hexdigest()
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    with pytest.raises(ValueError, match=r"images_background.zip: md5 .*expected 68d2efa1"):
        omniglot()
    monkeypatch.setattr(module, "_ZIPS", sums)
    with pytest.warns(UserWarning, match="the pixels have sha256"):
        train = omniglot(binarize=None)
    assert len(train) == 90
    assert (tmp_path / "cache" / "pyrovae" / "omniglot" / "omniglot_28_box.npz").is_file()
    monkeypatch.setattr(module, "build_omniglot", None)  # not built a second time
    with pytest.warns(UserWarning, match="the pixels have sha256"):
        test = load("omniglot", split="test")
    assert (len(test), test.binarize, test.name) == (30, "dynamic", "omniglot-test")


def test_a_local_copy_with_other_pixels_is_refused(archives, tmp_path, monkeypatch):
    build_omniglot(*archives, tmp_path / "own" / "omniglot" / "omniglot_28_box.npz")
    monkeypatch.setenv("PYROVAE_DATA", str(tmp_path / "own"))
    with pytest.raises(ValueError, match="the pixels have sha256 .*, expected d76a1451"):
        omniglot()


def test_offline_the_error_says_how_to_build_it(tmp_path, monkeypatch):
    import pooch

    def no_route(url, output_file, _):
        raise ConnectionError("no route")

    monkeypatch.delenv("PYROVAE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr(pooch, "HTTPDownloader", lambda **_: no_route)
    with pytest.raises(ConnectionError, match="no local copy") as error:
        omniglot()
    text = str(error.value)
    assert (
        "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip" in text
    )
    assert "build_omniglot(background, evaluation" in text
    assert "PYROVAE_DATA=path/to/data" in text


def test_other_archives_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"<html>log in</html>")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("readme.txt", "no drawings")
    for name, says in [("a.zip", "not a zip file"), ("b.zip", "holds no .png")]:
        with pytest.raises(ValueError, match=f"{name}: not the archive.*{says}"):
            build_omniglot(tmp_path / name, tmp_path / name, tmp_path / "out.npz")
    assert not (tmp_path / "out.npz").exists()


def test_unknown_split():
    with pytest.raises(ValueError, match="omniglot: split: unknown 'valid'"):
        omniglot("valid")


def test_the_real_one(data_folder):
    if not (data_folder / "omniglot" / "omniglot_28_box.npz").is_file():
        pytest.skip("PYROVAE_DATA holds no omniglot/omniglot_28_box.npz")
    torch.set_default_dtype(torch.float32)
    train, test, whole = (omniglot(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(whole)) == (24345, 8115, 32460)
    assert train.data_shape == (28, 28)
    assert torch.equal(torch.bincount(train.labels), torch.full((1623,), 15))
    assert torch.equal(torch.bincount(test.labels), torch.full((1623,), 5))
    (x,), _ = train.take(torch.arange(100), torch.Generator().manual_seed(0))
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert omniglot("test", binarize=None).likelihood == "normal"
    assert 0.05 < train.args[0].mean() < 0.15  # ink is high
