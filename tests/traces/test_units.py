"""The units of a site add up to it."""

import pytest
import torch

import pyrovae as pv
from tests import programs

WITHOUT_UNITS = {"autoguide", "joint_autoguide", "auxiliary_site"}  # points


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("program", programs.PROGRAMS, ids=lambda p: p.name)
@pytest.mark.filterwarnings("ignore:the programs cannot run with a particle")
def test_units_add_up_to_their_site_in_every_program(program, particles):
    model, guide, args, kwargs = program.build()
    guide(*args, **kwargs)
    terms = pv.terms(model, guide, *args, particles=particles, **kwargs)
    checked = 0
    for latent in terms.latents.values():
        rows = 1 if latent.is_global else terms.plate.size

        def full(value, rows=rows, is_global=latent.is_global):
            return (value[..., None] if is_global else value).expand(particles, rows)

        if latent.prior is None or latent.unit_log_densities is None:
            continue
        log_q, log_p = (full_of.sum(-1) for full_of in latent.unit_log_densities)
        torch.testing.assert_close(log_q.expand(particles, rows), full(latent.log_posterior))
        torch.testing.assert_close(log_p.expand(particles, rows), full(latent.log_prior))
        assert (latent.kl is None) == (latent.unit_kl is None)
        if latent.kl is not None:
            torch.testing.assert_close(
                latent.unit_kl.sum(-1).expand(particles, rows), full(latent.kl)
            )
        checked += 1
    assert bool(checked) == (program.name not in WITHOUT_UNITS)
