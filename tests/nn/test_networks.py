import pytest
import torch
from torch import nn

from pyrovae.nn import MLP, Fold, OnCircle
from pyrovae.nn.networks import linear


@pytest.mark.parametrize("lead", [(), (7,), (5, 7), (2, 5, 7)])
@pytest.mark.parametrize("event", [6, (2, 3)])
def test_leading_dimensions_fold(lead, event):
    net = MLP(event, (11, 4), out=3)
    shape = (event,) if isinstance(event, int) else event
    x = torch.randn(*lead, *shape)
    y = net(x)
    assert y.shape == (*lead, 3)
    rows = net(x.reshape(-1, *shape))
    torch.testing.assert_close(y.reshape(-1, 3), rows)


def test_is_the_formula():
    net = MLP(3, 5, out=2, activation=nn.ReLU, input_scale=0.25)
    first, last = net.layers[0], net.layers[-1]
    x = torch.randn(4, 3)
    h = (x / 4 @ first.weight.T + first.bias).relu()
    torch.testing.assert_close(net(x), h @ last.weight.T + last.bias)
    assert MLP(3, (5, 8)).out_features == 8


def test_initialisations():
    g = linear(300, 200)
    assert g.bias.eq(0).all()
    assert g.weight.abs().max() <= (6 / 500) ** 0.5
    torch.testing.assert_close(g.weight.var(), torch.tensor(2 / 500), rtol=0.05, atol=0)
    n = linear(300, 200, "normal")
    torch.testing.assert_close(n.weight.var(), torch.tensor(0.01), rtol=0.05, atol=0)
    assert n.bias.ne(0).all()
    with pytest.raises(ValueError, match='init must be "glorot" or "normal", got \'xavier\''):
        linear(2, 2, "xavier")


def test_wrong_sizes_are_said():
    with pytest.raises(
        ValueError, match=r"shape \(4, 7\), the network reads trailing dimensions "
    ):
        MLP(6, 3)(torch.zeros(4, 7))
    with pytest.raises(ValueError, match="every width must be at least 1"):
        MLP(6, 0)


def test_fold_gives_a_convolution_particles():
    conv = nn.Conv2d(1, 4, 3)
    x = torch.randn(5, 7, 1, 8, 8)
    y = Fold(conv, 3)(x)
    assert y.shape == (5, 7, 4, 6, 6)
    torch.testing.assert_close(y[2], conv(x[2]))


def test_both_ends_of_the_circle_look_the_same_to_a_network():
    net = nn.Sequential(OnCircle(), MLP(4, 5))
    z = torch.tensor([[torch.pi, 0.3], [-torch.pi, 0.3]], requires_grad=True)
    y = net(z)
    assert y.shape == (2, 5)
    torch.testing.assert_close(y[0], y[1])
    (g,) = torch.autograd.grad(y[1].sum(), z)
    assert (g[1] != 0).all()
