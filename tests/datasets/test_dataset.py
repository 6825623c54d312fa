import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyrovae.datasets import Dataset, minibatches

GREY = torch.linspace(0, 1, 11, dtype=torch.float64).expand(4000, 11)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def every(ds):
    return torch.arange(len(ds))


def test_take_gathers_the_rows_of_every_argument():
    x, y, m = torch.randn(9, 2, 3), torch.arange(9), torch.rand(9)
    ds = Dataset((x, y), {"mask": m})
    index = torch.tensor([7, 0, 7])
    args, kwargs = ds.take(index)
    assert torch.equal(args[0], x[[7, 0, 7]])
    assert args[1].tolist() == [7, 0, 7]
    assert torch.equal(kwargs["mask"], m[[7, 0, 7]])
    assert len(ds) == 9
    assert ds.data_shape == (2, 3)


@pytest.mark.parametrize("how", ["take", "fixed", "realize"])
def test_binarization_is_bernoulli_of_the_intensity(how):
    """Means and correlations of 4,000 draws, 5 sigma each: a false alarm in 25,000 seeds."""
    if how == "fixed":
        (x,), _ = Dataset((GREY,), binarize="fixed", seed=3).take(torch.arange(4000))
    elif how == "realize":
        (x,), _ = Dataset((GREY,), binarize="dynamic").realize(3)
    else:
        (x,), _ = Dataset((GREY,), binarize="dynamic").take(torch.arange(4000), generator(3))
    assert x.dtype == GREY.dtype
    assert set(x.unique().tolist()) == {0.0, 1.0}
    p = GREY[0]
    assert ((x.mean(0) - p).abs() <= 5 * (p * (1 - p) / 4000).sqrt()).all()
    covariance = (x[:, 1:-1] - p[1:-1]).T @ (x[:, 1:-1] - p[1:-1]) / 4000
    off = covariance - covariance.diag().diag()
    assert off.abs().max() < 5 * 0.25 / math.sqrt(4000), "pixels must be drawn independently"


def test_dynamic_binarization_is_anew_for_each_take_and_repeats_with_the_generator():
    ds = Dataset((GREY,), binarize="dynamic")
    rolling = generator()
    (first,), _ = ds.take(every(ds), rolling)
    (second,), _ = ds.take(every(ds), rolling)
    (again,), _ = ds.take(every(ds), generator())
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    torch.manual_seed(5)
    (a,), _ = ds.take(every(ds))
    (b,), _ = ds.take(every(ds))
    assert not torch.equal(a, b)
    assert torch.equal(ds.args[0], GREY), "the intensities stay"


def test_fixed_binarization_stays_through_takes_subsets_and_precisions():
    ds = Dataset((GREY,), binarize="fixed", seed=1)
    (x,), _ = ds.take(every(ds))
    (y,), _ = ds.take(every(ds), generator(9))
    assert torch.equal(x, y)
    rows = torch.tensor([5, 3999, 17])
    assert torch.equal(ds.subset(rows).args[0], x[rows])
    assert torch.equal(ds.realize(7)[0][0], x)
    other = Dataset((GREY,), binarize="fixed", seed=2).args[0]
    assert not torch.equal(other, x)
    close = torch.from_numpy(np.random.RandomState(0).random_sample(1000)) + 1e-12  # to the draws
    double = Dataset((close,), binarize="fixed", seed=0).args[0]
    single = Dataset((close.float(),), binarize="fixed", seed=0).args[0]
    assert torch.equal(double, single.double())
    assert single.dtype == torch.float32


def test_fixed_binarization_is_the_same_in_another_process():
    code = (
        "import torch; from pyrovae.datasets import Dataset; torch.manual_seed(99);"
        "x = torch.linspace(0, 1, 11, dtype=torch.float64).expand(4000, 11);"
        "print(Dataset((x,), binarize='fixed', seed=1).describe()['sha256'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = Dataset((GREY,), binarize="fixed", seed=1).describe()
    assert done.stdout.strip() == ours["sha256"]


def test_realize_of_dynamic_is_the_fixed_set_of_that_seed():
    dynamic = Dataset((GREY,), binarize="dynamic")
    assert torch.equal(
        dynamic.realize(4)[0][0], Dataset((GREY,), binarize="fixed", seed=4).args[0]
    )
    assert not torch.equal(dynamic.realize(4)[0][0], dynamic.realize(5)[0][0])


def test_drawing_data_leaves_the_global_streams_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    ds = Dataset((GREY,), binarize="fixed")
    dynamic = Dataset((GREY,), binarize="dynamic")
    dynamic.realize(1)
    dynamic.take(every(ds), generator())
    ds.split(0.25, seed=1)
    list(minibatches(10, 3, generator()))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_split_is_a_partition_fixed_by_the_seed():
    ds = Dataset((torch.arange(100.0),), labels=torch.arange(100))
    train, held = ds.split(0.2, seed=3)
    assert (len(train), len(held)) == (80, 20)
    assert sorted(train.args[0].tolist() + held.args[0].tolist()) == list(range(100))
    assert torch.equal(held.labels.double(), held.args[0])
    assert torch.equal(ds.split(0.2, seed=3)[1].args[0], held.args[0])
    assert not torch.equal(ds.split(0.2, seed=4)[1].args[0], held.args[0])
    for fraction in (0.0, 0.001, 1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match="leaves one side empty"):
            ds.split(fraction)


def test_subset_takes_rows_or_a_mask():
    ds = Dataset((torch.arange(5.0),))
    assert ds.subset([4, 1]).args[0].tolist() == [4, 1]
    assert ds.subset(ds.args[0] > 2).args[0].tolist() == [3, 4]
    with pytest.raises(ValueError, match="subset: no rows; expected at least one of 5"):
        ds.subset(ds.args[0] > 9)


def test_to_moves_everything():
    ds = Dataset((torch.zeros(3, 2),), {"y": torch.zeros(3)}, labels=torch.zeros(3)).to("meta")
    where = {str(x.device) for x in (ds.args[0], ds.kwargs["y"], ds.labels)}
    assert where == {"meta"}
    assert ds.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_draws_the_same_batch_on_the_device():
    ds = Dataset((GREY,), binarize="dynamic")
    there = ds.to("cuda").take(every(ds), generator())[0][0]
    assert there.is_cuda
    assert torch.equal(there.cpu(), ds.take(every(ds), generator())[0][0])


def test_describe_tells_data_apart():
    import json

    base = Dataset((torch.zeros(4, 3),), name="zeros")
    said = base.describe()
    assert json.loads(json.dumps(said)) == said
    assert {k: said[k] for k in ("name", "size", "shape", "dtype", "binarize", "seed")} == {
        "name": "zeros", "size": 4, "shape": [3], "dtype": "float64", "binarize": None, "seed": 0,
    }  # fmt: skip
    changed = torch.zeros(4, 3)
    changed[3, 2] = 1e-300
    hashes = {
        Dataset(args).describe()["sha256"]
        for args in ((torch.zeros(4, 3),), (changed,), (torch.zeros(4, 3), torch.arange(4)))
    }
    assert said["sha256"] in hashes
    assert len(hashes) == 3


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 5), (1, 1)])
def test_minibatches_go_once_through_the_data(n, size):
    batches = list(minibatches(n, size, generator()))
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert [len(b) for b in batches] == [size] * (n // size) + [n % size] * (n % size > 0)
    assert all(b.dtype == torch.int64 for b in batches)
    again = list(minibatches(n, size, generator()))
    assert torch.equal(torch.cat(batches), torch.cat(again))


def test_minibatches_shuffle_anew_or_not_at_all():
    rolling = generator()
    first = torch.cat(list(minibatches(50, 7, rolling)))
    assert not torch.equal(first, torch.cat(list(minibatches(50, 7, rolling))))
    assert torch.cat(list(minibatches(50, 7, shuffle=False))).tolist() == list(range(50))
    assert [len(b) for b in minibatches(10, 4, drop_last=True)] == [4, 4]
    assert [len(b) for b in minibatches(8, 4, drop_last=True)] == [4, 4]
    assert {b.device.type for b in minibatches(8, 4, device="meta")} == {"meta"}


@pytest.mark.parametrize("bad", [(0, 4), (4, 0), (3, 4, True)])
def test_minibatches_refuse_to_yield_nothing(bad):
    n, size, *drop = bad
    with pytest.raises(ValueError, match=f"no batch of {size} in {n} data"):
        minibatches(n, size, drop_last=bool(drop))


BAD = {
    "nothing": (lambda: Dataset(), ValueError, "no data: neither arguments"),
    "no rows": (
        lambda: Dataset((torch.zeros(0, 3),)),
        ValueError,
        r"empty data of shape \(0, 3\)",
    ),
    "no features": (lambda: Dataset((torch.zeros(3, 0),)), ValueError, "empty data"),
    "a number": (lambda: Dataset((torch.tensor(1.0),)), ValueError, r"shape \(\); expected \[N"),
    "an array": (
        lambda: Dataset((np.zeros(3),)),
        TypeError,
        "argument 0: expected a tensor, got n",
    ),
    "unequal": (
        lambda: Dataset((torch.zeros(4, 2), torch.zeros(3)), {"y": torch.zeros(4)}),
        ValueError,
        "unequal numbers of rows: argument 0 has 4, argument 1 has 3, argument 'y' has 4",
    ),
    "labels": (
        lambda: Dataset((torch.zeros(4),), labels=torch.zeros(5)),
        ValueError,
        "argument 0 has 4, labels has 5",
    ),
    "devices": (
        lambda: Dataset((torch.zeros(4), torch.zeros(4, device="meta"))),
        ValueError,
        "mixed devices: argument 0 on cpu, argument 1 on meta",
    ),
    "bytes": (
        lambda: Dataset((torch.tensor([[3, 250]], dtype=torch.uint8),)),
        TypeError,
        r"uint8 images, values 3 to 250.*x\.float\(\) / 255.*binomial",
    ),
    "integer images": (
        lambda: Dataset((torch.full((2, 4, 4), 7),)),
        TypeError,
        r"int64 images, values 7 to 7.*x\.float\(\) / 255",
    ),
    "grey over 1": (
        lambda: Dataset((torch.tensor([[0.5, 0.5], [0.2, 17.0]]),), binarize="dynamic"),
        ValueError,
        r"17 at row 1, feature 1 .*outside.*rescale to \[0.0, 1.0\]",
    ),
    "binarized integers": (
        lambda: Dataset((torch.ones(3, 2).long(),), binarize="fixed"),
        TypeError,
        "must be a floating tensor of intensities",
    ),
    "binarized keywords": (
        lambda: Dataset((), {"x": torch.ones(3, 2)}, binarize="fixed"),
        TypeError,
        "draws from the first positional argument",
    ),
    "a misspelt choice": (
        lambda: Dataset((torch.zeros(3),), binarize="dynamo"),
        ValueError,
        "data: binarize: unknown 'dynamo'; did you mean 'dynamic'",
    ),
    "nan": (
        lambda: Dataset((torch.zeros(3), torch.tensor([0.0, float("nan"), 0.0]))),
        ValueError,
        r"data\[1\]: nan at row 1 \(1 such in 1 of 3 rows\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_at_construction(case):
    make, error, message = BAD[case]
    with pytest.raises(error, match=message):
        make()


def test_integers_that_are_no_images_stay():
    tokens = torch.randint(20, (6, 9))
    labels = torch.arange(6, dtype=torch.uint8)
    args, _ = Dataset((tokens, labels)).take(torch.tensor([2]))
    assert [x.dtype for x in args] == [torch.int64, torch.uint8]
