from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyrovae.datasets import Dataset, as_dataset, digits, from_file


def test_what_users_have_becomes_a_dataset():
    x, y = torch.randn(6, 3), torch.arange(6)
    ds = Dataset((x,))
    assert as_dataset(ds) is ds
    assert as_dataset(x).args[0] is x
    assert [a is b for a, b in zip(as_dataset((x, y)).args, (x, y), strict=True)] == [True, True]
    assert as_dataset([x, y]).args[1] is y
    assert as_dataset({"x": x, "y": y}).kwargs["y"] is y
    assert as_dataset({"x": x}).args == ()
    assert as_dataset(TensorDataset(x, y)).args[1] is y
    assert as_dataset("digits").describe() == digits().describe()


def test_floating_arrays_get_the_default_dtype_and_tensors_keep_theirs():
    torch.set_default_dtype(torch.float32)
    assert as_dataset(np.ones((3, 2))).args[0].dtype == torch.float32
    assert as_dataset(np.ones((3, 2), ">f8")).args[0].dtype == torch.float32
    assert as_dataset(np.arange(3)).args[0].dtype == torch.int64
    assert as_dataset(torch.ones(3, dtype=torch.float64)).args[0].dtype == torch.float64


def test_the_data_are_a_copy_of_the_array():
    x = np.ones((3, 2))
    ds = as_dataset(x)
    x[:] = 7
    assert ds.args[0].unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("mnits", ValueError, "unknown 'mnits'; did you mean 'mnist'"),
        ("nowhere/x.npz", FileNotFoundError, "no file nowhere.x.npz"),
        (Path("nowhere/x.npy"), FileNotFoundError, "no file"),
        (DataLoader(torch.zeros(3)), TypeError, "DataLoader.*pass it to pyrovae.fit as it is"),
        (3.0, TypeError, "cannot read a float"),
        ([1.0, 2.0], TypeError, r"data\[0\]: expected a tensor or a numpy array, got float"),
        (np.array([[1], [2, 3]], dtype=object), TypeError, "dtype object. Expected numbers"),
        (np.array(["a", "b"]), TypeError, "Expected numbers"),
        ({"x": np.array([None])}, TypeError, r"data\['x'\]: an array of dtype object"),
        (np.zeros((2, 3), np.uint8), TypeError, r"uint8 images.*x\.float\(\) / 255"),
        ((torch.zeros(3), torch.zeros(2)), ValueError, "unequal numbers of rows"),
        (torch.zeros(0), ValueError, "empty data"),
        ((), ValueError, "no data"),
    ],
    ids=lambda v: None if isinstance(v, str) else type(v).__name__,
)
def test_the_rest_is_refused_with_the_fix(data, error, message):
    with pytest.raises(error, match=message):
        as_dataset(data)


def test_files_hold_what_was_saved(tmp_path):
    x, y = np.random.RandomState(0).rand(5, 3), np.arange(5)
    np.save(tmp_path / "one.npy", x)
    np.savez(tmp_path / "solo.npz", x=x)
    np.savez_compressed(tmp_path / "two.npz", x=x, y=y)
    assert np.array_equal(as_dataset(str(tmp_path / "one.npy")).args[0], x)
    assert np.array_equal(as_dataset(tmp_path / "solo.npz").args[0], x)
    assert as_dataset(tmp_path / "one.npy").name == "one"
    both = from_file(tmp_path / "two.npz", key=("y", "x"))
    assert np.array_equal(both.args[0], y)
    assert np.array_equal(both.args[1], x)
    assert np.array_equal(from_file(tmp_path / "two.npz", key="x").args[0], x)
    with pytest.raises(ValueError, match=r"which array\? It holds 2: 'x', 'y'.*key="):
        from_file(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="two.npz: key: unknown 'images'. Known: 'x', 'y'"):
        from_file(tmp_path / "two.npz", key="images")


def test_files_that_are_something_else_are_refused(tmp_path):
    def path(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(ValueError, match="arrays of objects are pickled and are not read"):
            from_file(tmp_path / name)
    for name in ("text.npy", "text.npz", "empty.npy"):
        content = b"" if name.startswith("empty") else b"hello, this is text"
        with pytest.raises(ValueError, match=f"{name}: cannot be read as"):
            from_file(path(name, content))
    with pytest.raises(ValueError, match=r"a \.csv file. Expected .npy or .npz"):
        from_file(path("x.csv", b"1,2"))
    np.save(tmp_path / "bad.npy", np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="nan at row 0, feature 1"):
        from_file(tmp_path / "bad.npy")
