"""About twenty model/guide pairs, written as Pyro users write them.

They are the contract of everything above traces. Nothing here imports pyrovae. Each builder
returns `(model, guide, args, kwargs)`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

B, D, Z = 6, 5, 2


def data(seed=3, size=B):
    return torch.randn(size, D, generator=torch.Generator().manual_seed(seed))


def nets(seed=0, z=Z):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(D, 7), nn.Tanh(), nn.Linear(7, 2 * z))
    decoder = nn.Sequential(nn.Linear(z, 7), nn.Tanh(), nn.Linear(7, D))
    return encoder, decoder


def normal(h):
    loc, log_scale = h.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def prior(z=Z):
    return dist.Normal(torch.zeros(z), 1.0).to_event(1)


def likelihood(loc):
    return dist.Normal(loc, 0.7).to_event(1)


def with_pyro_module():
    encoder, decoder = nets()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(decoder(z)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(x)))

    return model, guide, (data(),), {}


def with_bare_params():
    def model(x):
        weight = pyro.param("weight", lambda: torch.ones(Z, D))
        noise = pyro.param("noise", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z @ weight, noise).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x), Z))
        scale = pyro.param(
            "scale", lambda: torch.full((len(x), Z), 0.3), constraint=dist.constraints.positive
        )
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide, (data(),), {}


class Model(PyroModule):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder
        self.noise = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=x)


class Guide(PyroModule):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))


def with_pyro_modules():
    torch.manual_seed(0)
    encoder = PyroModule[nn.Linear](D, 2 * Z)
    decoder = PyroModule[nn.Linear](Z, D)
    return Model(decoder), Guide(encoder), (data(),), {}


def with_nets_in_closures():
    encoder, decoder = nets()

    def run_model(net, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(net(z)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(x)))

    return functools.partial(run_model, decoder), guide, (data(),), {}


class Methods:
    """Programs that are methods of a plain object holding its networks."""

    def __init__(self):
        self.encoder, self.decoder = nets()

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(self.decoder(z)), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x)))


def with_methods():
    pair = Methods()
    return pair.model, pair.guide, (data(),), {}


def two_latents():
    encoder, decoder = nets(z=2 * Z)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", prior())
            b = pyro.sample("b", dist.Laplace(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", likelihood(decoder(torch.cat([a, b], -1))), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            h, g = encoder(x).chunk(2, -1)
            # the other way round than in the model, and independent: analytic KL stays right
            pyro.sample("b", dist.Laplace(g[..., :Z], g[..., Z:].exp()).to_event(1))
            pyro.sample("a", normal(h))

    return model, guide, (data(),), {}


def _hierarchical_model(down, decoder):
    def model(x):
        pyro.module("down", down)
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", prior())
            z1 = pyro.sample("z1", normal(down(z2)))
            pyro.sample("x", likelihood(decoder(z1)), obs=x)

    return model


def top_down():
    encoder, decoder = nets()
    down, combine = nn.Linear(Z, 2 * Z), nn.Linear(D + Z, 2 * Z)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("combine", combine)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(encoder(x)))
            both = torch.cat([x.expand(z2.shape[:-1] + (D,)), z2], -1)
            pyro.sample("z1", normal(combine(both)))

    return _hierarchical_model(down, decoder), guide, (data(),), {}


def bottom_up():
    encoder, decoder = nets()
    down, up = nn.Linear(Z, 2 * Z), nn.Linear(Z, 2 * Z)

    def guide(x):
        pyro.module("encoder", encoder)
        pyro.module("up", up)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(encoder(x)))
            pyro.sample("z2", normal(up(z1)))

    return _hierarchical_model(down, decoder), guide, (data(),), {}


def subsampled():
    encoder, decoder = nets()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", 10 * B, subsample_size=len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(decoder(z)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", 10 * B, subsample_size=len(x)):
            pyro.sample("z", normal(encoder(x)))

    return model, guide, (data(),), {}


def subsampled_inside():
    encoder, decoder = nets()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), subsample_size=4) as index:
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(decoder(z)), obs=x[index])

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("z", normal(encoder(x[index])))

    return model, guide, (data(size=12),), {}


def masked():
    encoder, decoder = nets()

    def model(x, mask):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)), poutine.mask(mask=mask.any(-1)):
            z = pyro.sample("z", prior())
            x_dist = dist.Normal(decoder(z), 0.7).mask(mask).to_event(1)
            pyro.sample("x", x_dist, obs=x)

    def guide(x, mask):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)), poutine.mask(mask=mask.any(-1)):
            pyro.sample("z", normal(encoder(x * mask)))

    mask = torch.rand(B, D, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[2] = False
    return model, guide, (data(), mask), {}


def scaled():
    model, guide, args, kwargs = with_pyro_module()
    return poutine.scale(model, 0.25), poutine.scale(guide, 0.25), args, kwargs


def nested_plates():
    encoder, decoder = nets()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", prior())  # [B, 1, Z]
            with pyro.plate("features", D, dim=-1):
                loc = decoder(z.squeeze(-2)) if z.dim() > 1 else decoder(z)
                pyro.sample("x", dist.Normal(loc, 0.7), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", normal(encoder(x).unsqueeze(-2)))

    return model, guide, (data(),), {}


def latents_in_an_inner_plate():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(1, 2), nn.Linear(1, 1)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", D, dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = decoder(z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(loc, 0.7), obs=x.T)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("parts", D, dim=-2):
            h = encoder(x.T.unsqueeze(-1))
            pyro.sample("z", dist.Normal(h[..., 0], h[..., 1].exp()))

    return model, guide, (data(),), {}


def time_loop():
    """A small deep Markov model with sequences of unequal length."""
    torch.manual_seed(0)
    step, emit, encoder = nn.Linear(Z, 2 * Z), nn.Linear(Z, 1), nn.Linear(1 + Z, 2 * Z)

    def model(x, lengths):
        pyro.module("step", step)
        pyro.module("emit", emit)
        with pyro.plate("data", len(x)):
            z = torch.zeros(Z)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", normal(step(z)))
                    pyro.sample(f"x_{t}", dist.Normal(emit(z).squeeze(-1), 0.7), obs=x[:, t])

    def guide(x, lengths):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            z = torch.zeros(Z)
            for t in pyro.markov(range(x.shape[1])):
                with poutine.mask(mask=t < lengths):
                    x_t = x[:, t, None].expand(z.shape[:-2] + (len(x), 1))
                    z = z.expand(x_t.shape[:-1] + (Z,))
                    z = pyro.sample(f"z_{t}", normal(encoder(torch.cat([x_t, z], -1))))

    return model, guide, (data(),), {"lengths": torch.tensor([5, 4, 3, 2, 1, 5])}


def discrete_latent():
    torch.manual_seed(0)
    encoder = nn.Linear(D, 3)
    locs = torch.randn(3, D)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", likelihood(locs[z]), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=encoder(x)), infer={"enumerate": "parallel"})

    return model, guide, (data(),), {}


class Picture(nn.Module):
    """A decoder that cannot broadcast on the left: convolution, fixed reshape."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(Z, 4)
        self.conv = nn.ConvTranspose2d(1, 1, 3)

    def forward(self, z):
        return self.conv(self.linear(z).reshape(-1, 1, 2, 2))


def images():
    torch.manual_seed(0)
    encoder, decoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 2 * Z)), Picture()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(3), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(x)))

    x = torch.randint(2, (B, 1, 4, 4), generator=torch.Generator().manual_seed(0)).double()
    return model, guide, (x,), {}


def global_latent():
    encoder, decoder = nets()

    def model(x):
        pyro.module("decoder", decoder)
        shift = pyro.sample("shift", dist.Normal(torch.zeros(D), 1.0).to_event(1))
        with pyro.plate("data", 10 * B, subsample_size=len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(decoder(z) + shift), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc = pyro.param("shift_loc", lambda: torch.zeros(D))
        pyro.sample("shift", dist.Normal(loc, 0.1).to_event(1))
        with pyro.plate("data", 10 * B, subsample_size=len(x)):
            pyro.sample("z", normal(encoder(x)))

    return model, guide, (data(),), {}


def conditional():
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(D + 3, 2 * Z), nn.Linear(Z + 3, D)

    def with_label(v, label):
        one_hot = torch.eye(3)[label]
        return torch.cat([v, one_hot.expand(v.shape[:-1] + (3,))], -1)

    def model(x, *, label):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(decoder(with_label(z, label))), obs=x)

    def guide(x, *, label):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(with_label(x, label))))

    return model, guide, (data(),), {"label": torch.tensor([0, 1, 2, 0, 1, 2])}


def _positive_model():
    _, decoder = nets()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", likelihood(decoder(z)), obs=x)

    return model


def autoguide():
    model, args = _positive_model(), (data(),)
    guide = AutoNormal(model)
    guide(*args)
    pyro.clear_param_store()
    return model, guide, args, {}


def joint_autoguide():
    def model(x):
        loc = pyro.param("loc", lambda: torch.zeros(D))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    guide = AutoDiagonalNormal(model)
    guide(data())
    pyro.clear_param_store()
    return model, guide, (data(),), {}


def with_factor():
    model, guide, args, kwargs = with_pyro_module()

    def penalized(x):
        model(x)
        weight = pyro.param("weight", lambda: torch.ones(D))
        pyro.factor("penalty", -weight.square().sum())

    return penalized, guide, args, kwargs


def auxiliary_site():
    model, _, args, kwargs = with_pyro_module()
    first = nn.Linear(D, 2 * Z)

    def guide(x):
        pyro.module("first", first)
        with pyro.plate("data", len(x)):
            base = pyro.sample("base", normal(first(x)), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(base + 1, event_dim=1))

    return model, guide, args, kwargs


def two_observed_sites():
    encoder, decoder = nets()
    head = nn.Linear(Z, 1)

    def model(x, y):
        pyro.module("decoder", decoder)
        pyro.module("head", head)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(decoder(z)), obs=x)
            pyro.sample("y", dist.Bernoulli(logits=head(z).squeeze(-1)), obs=y)
            pyro.deterministic("score", z.sum(-1))

    def guide(x, y):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(x)))

    return model, guide, (data(), torch.tensor([0.0, 1, 0, 1, 1, 0])), {}


@dataclass(frozen=True)
class Program:
    build: object
    pathwise: bool = True  # the guide has rsample everywhere
    broadcasts: bool = True  # carries particles on the left
    local: bool = True  # every site in the data plate: multi-sample bounds exist
    analytic: frozenset = field(default_factory=frozenset)  # sites with an analytic KL

    @property
    def name(self):
        return self.build.__name__


def _row(build, *analytic, **flags):
    return Program(build, analytic=frozenset(analytic), **flags)


PROGRAMS = [
    _row(with_pyro_module, "z"),
    _row(with_bare_params, "z"),
    _row(with_pyro_modules, "z"),
    _row(with_nets_in_closures, "z"),
    _row(with_methods, "z"),
    _row(two_latents, "a", "b"),
    _row(top_down, "z1", "z2"),
    _row(bottom_up, "z2"),
    _row(subsampled, "z"),
    _row(subsampled_inside, "z"),
    _row(masked, "z"),
    _row(scaled, "z"),
    _row(nested_plates, "z"),
    _row(latents_in_an_inner_plate, "z"),
    _row(time_loop, *(f"z_{t}" for t in range(D))),
    _row(discrete_latent, "z", pathwise=False),
    _row(images, "z", broadcasts=False),
    _row(global_latent, "z", "shift", local=False),
    _row(conditional, "z"),
    _row(autoguide, "z"),
    _row(joint_autoguide, "scale", local=False),
    _row(with_factor, "z", local=False),
    _row(auxiliary_site, "z"),
    _row(two_observed_sites, "z"),
]
