import pytest
import torch
from torch.distributions import constraints

from pyrovae.datasets import check_choice, check_support, check_values

NAN, INF = float("nan"), float("inf")


def with_value(shape, where, value):
    x = torch.rand(shape)
    x[where] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (with_value((5, 3), (3, 1), NAN), r"nan at row 3, feature 1 \(1 such in 1 of 5 rows\)"),
        (with_value((5, 4, 4), (2, 0, 3), -INF), r"-inf at row 2, feature \(0, 3\)"),
        (with_value((5,), 4, INF), r"inf at row 4 \("),
        (
            with_value((5, 3), slice(1, 3), NAN),
            r"nan at row 1, feature 0 \(6 such in 2 of 5 rows\)",
        ),
    ],
)
def test_check_values_names_row_and_feature(x, message):
    with pytest.raises(ValueError, match=f"batch: {message}.*finite.*drop such rows.*mask"):
        check_values((x,), where="batch")


def test_check_values_names_the_argument():
    good, bad = torch.zeros(3), with_value((3,), 2, NAN)
    with pytest.raises(ValueError, match=r"data\[1\]: nan"):
        check_values((good, bad))
    with pytest.raises(ValueError, match=r"data\['mask'\]: nan"):
        check_values((good,), {"mask": bad})


def test_check_values_passes_what_cannot_be_bad():
    check_values((torch.zeros(2), torch.arange(2), None, "text"), {"flag": torch.ones(2).bool()})


def test_check_values_remedy_works():
    x = with_value((5, 3, 2), (slice(1, 3), 0, 0), NAN)
    check_values((x[x.isfinite().flatten(1).all(1)],))


@pytest.mark.parametrize(
    ("x", "support", "message"),
    [
        (
            with_value((4, 6), ..., 0.5),
            constraints.boolean,
            r"0.5 at row 0, feature 0 .24 .*binar",
        ),
        (
            with_value((4, 2, 2), ..., 1.0).index_put((torch.tensor(1),) * 3, torch.tensor(0.3)),
            constraints.independent(constraints.boolean, 2),
            r"0.3 at row 1, feature \(1, 1\) \(1 such in 1 of 4 rows\).*Boolean",
        ),
        (
            torch.tensor([[16.0], [17.0]]),
            constraints.integer_interval(0, 16),
            "17 at row 1, feature 0.*counts from 0 to 16",
        ),
        (
            torch.tensor([2.0, -1.0]),
            constraints.positive,
            "-1 at row 1 .*GreaterThan",
        ),
        (torch.tensor([[0.5, 0.75]]), constraints.simplex, r"\[0.5, 0.75\] at row 0 .*Simplex"),
    ],
)
def test_check_support_names_the_value_and_a_remedy(x, support, message):
    with pytest.raises(ValueError, match=message) as error:
        check_support(x, support, "site 'x' (Bernoulli)")
    assert str(error.value).startswith("site 'x' (Bernoulli): ")


@pytest.mark.parametrize(
    ("x", "support"),
    [
        (torch.tensor([[0.0, 1.0]]), constraints.independent(constraints.boolean, 1)),
        (torch.arange(17.0), constraints.integer_interval(0, 16)),
        (torch.randn(3, 3), constraints.real_vector),
        (torch.randn(3), constraints.dependent),
    ],
)
def test_check_support_passes_values_inside(x, support):
    check_support(x, support, "x")


def test_check_choice_names_the_nearest():
    check_choice("here", None, ["a", None])
    with pytest.raises(ValueError, match="here: unknown 'bernouli'; did you mean 'bernoulli'"):
        check_choice("here", "bernouli", ["normal", "bernoulli"])
    with pytest.raises(ValueError, match="unknown 'zzz'. Known: 'normal', 'bernoulli'"):
        check_choice("here", "zzz", ["normal", "bernoulli"])
