"""What is said when two programs do not fit: where, what was expected, what came, what to try."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import torch

from pyrovae.traces.recorder import Recorder, Site

__all__ = [
    "check_per_datum",
    "check_sites",
    "no_data_plate",
    "no_units",
    "not_a_plate",
    "not_reparameterized",
    "unexpected_dims",
]


def check_sites(guided: Recorder, modelled: Recorder) -> None:
    """Raise unless model and guide have the same latent sites, in plates and shapes that fit."""
    drawn = {n: s for n, s in guided.sites.items() if not s.is_observed}
    latents = {n: s for n, s in modelled.sites.items() if not s.is_observed}
    given = [n for n, s in guided.sites.items() if s.is_observed]
    missing = [n for n in latents if n not in drawn]
    extra = [n for n, s in drawn.items() if n not in modelled.sites and not s.is_auxiliary]
    observed = [n for n in drawn if n in modelled.sites and modelled.sites[n].is_observed]
    if given:
        raise ValueError(
            f"guide: site '{given[0]}' is observed (obs=, or pyro.factor). Expected: a guide that "
            f"only draws, so that its density is log q(z|x). Try: a factor in the model; a "
            f"poutine.block around the statement."
        )
    if missing:
        site = latents[missing[0]]
        discrete = getattr(site.fn, "has_enumerate_support", False)
        enumerated = site.infer.get("enumerate") or discrete
        hint = (
            " A discrete latent may be summed out instead: train with pyro.infer.TraceEnum_ELBO "
            'and mark the site infer={"enumerate": "parallel"}.'
            if enumerated
            else ""
        )
        raise ValueError(
            f"guide: latent site '{missing[0]}' of the model is missing. "
            f"Expected: a sample statement for each of {sorted(latents)}; "
            f"the guide has {sorted(drawn)}.{_near(missing[0], drawn)} "
            f"Try: add pyro.sample('{missing[0]}', ...) to the guide, rename its site, "
            f"or observe the model's site.{hint}"
        )
    if extra:
        raise ValueError(
            f"guide: site '{extra[0]}' has no counterpart in the model. "
            f"Expected: only the model's latent sites {sorted(latents)}; "
            f"the guide has {sorted(drawn)}.{_near(extra[0], latents)} "
            f"Try: rename it, remove it, add it to the model, "
            f"or mark it infer={{'is_auxiliary': True}} if it has none by design."
        )
    if observed:
        raise ValueError(
            f"guide: site '{observed[0]}' is observed in the model. "
            f"Expected: the guide draws latent sites only. Try: remove it from the guide, "
            f"or remove obs= from the model's statement."
        )
    for name, prior in latents.items():
        _check_pair(drawn[name], prior)


def _check_pair(guide: Site, model: Site) -> None:
    if guide.fn.event_shape != model.fn.event_shape:
        raise ValueError(
            f"site '{guide.name}': the guide's event shape is {tuple(guide.fn.event_shape)} "
            f"(batch {tuple(guide.fn.batch_shape)}), the model's is {tuple(model.fn.event_shape)} "
            f"(batch {tuple(model.fn.batch_shape)}). Expected: the same event shape. "
            f"Try: the same .to_event(n) in both programs, or the same latent size, "
            f"or a prior expanded to it."
        )
    guide_plates = {frame.name: frame for frame in guide.plates}
    model_plates = {frame.name: frame for frame in model.plates}
    if set(guide_plates) != set(model_plates):
        raise ValueError(
            f"site '{guide.name}': the guide draws it inside plates {sorted(guide_plates)}, "
            f"the model inside {sorted(model_plates)}. Expected: the same plates. "
            f"Try: with pyro.plate(...) of the same name and size around the statement "
            f"in both programs."
        )
    for name, frame in guide_plates.items():
        other = model_plates[name]
        if (frame.dim, frame.size) != (other.dim, other.size):
            raise ValueError(
                f"site '{guide.name}': plate '{name}' has dim {frame.dim} and size {frame.size} "
                f"in the guide, dim {other.dim} and size {other.size} in the model. "
                f"Expected: the same. Try: give both plates the same size and, "
                f"where several are nested, the same dim=."
            )


def no_data_plate(sites: Sequence[Site]) -> ValueError:
    """No plate holds all the data."""
    if not sites:
        return ValueError(
            "model: no observed site. "
            "Expected: at least one pyro.sample(..., obs=x) inside a plate over data. "
            "Try: pass obs=, or condition the model on its data."
        )
    names = [site.name for site in sites]
    sequential = [f.name for site in sites for f in site.frames if not f.vectorized]
    what = (
        f"the plate '{sequential[0]}' is a Python loop"
        if sequential
        else f"the observed site(s) {names} share no pyro.plate"
    )
    return ValueError(
        f"model: no data plate: {what}. Expected: a vectorized plate around every observed site, "
        f"so that each datum has a log p(x) of its own. "
        f"Try: \"with pyro.plate('data', len(x)):\" around the sample statements of one datum "
        f"in both programs; data_plate=NAME if the plate is not the outermost; "
        f"Pyro's own SVI with Trace_ELBO if the model has no independent data."
    )


def not_a_plate(wanted: str, sites: Sequence[Site]) -> ValueError:
    """The plate named by the caller is not there."""
    names = sorted({frame.name for site in sites for frame in site.plates})
    return ValueError(
        f"data_plate='{wanted}': no observed site stands in a plate of that name. "
        f"Expected: one of {names}.{_near(wanted, names)} "
        f"Try: the name given to pyro.plate in the model."
    )


def unexpected_dims(site: Site, shape: torch.Size, dim: int) -> ValueError:
    """A batch dimension that no plate declares."""
    plates = {frame.name: (frame.dim, frame.size) for frame in site.plates}
    return ValueError(
        f"site '{site.name}': its log-density has shape {tuple(shape)}, and dimension {dim} "
        f"belongs to no plate. "
        f"Expected: one dimension a plate, plates as name: (dim, size) being {plates}. "
        f"Try: .to_event(1) (for an image .to_event(2) or (3)) if the dimension is part of one "
        f"datum; with pyro.plate(...) around the site if its elements are independent; "
        f"a reshape if it is left over."
    )


def not_reparameterized(name: str, fn: object, objective: str) -> NotImplementedError:
    """A pathwise gradient was asked of a site that has none."""
    return NotImplementedError(
        f"{objective}: latent site '{name}' ({type(fn).__name__}) has no rsample, "
        f"so there is no pathwise gradient. Expected: a reparameterizable posterior. "
        f"Try: pyro.infer.TraceEnum_ELBO with infer={{'enumerate': 'parallel'}} "
        f"if the site is discrete and small, pyro.infer.TraceGraph_ELBO (score function) "
        f"otherwise, or a relaxed posterior; both losses work in fit. "
        f"Without gradients (evaluation) this site is fine."
    )


def no_units(name: str, posterior: object, prior: object) -> ValueError:
    """A KL by unit was asked of a site that does not factorize."""
    return ValueError(
        f"ELBO: free bits per unit, but site '{name}' does not factorize over units (posterior "
        f"{posterior}, prior {prior}), so that no unit has a KL of its own. Expected: a posterior "
        f'and a prior with .to_event(). Try: free_bits=NATS, or FreeBits(NATS, per="site").'
    )


def check_per_datum(terms: Any, who: str) -> None:
    """Raise unless every site belongs to one datum and no inner plate is subsampled."""
    outside = terms.global_latents + [s for s in terms.observed.values() if s.is_global]
    if outside:
        raise ValueError(
            f"{who}: site '{outside[0].name}' stands outside the data plate "
            f"'{terms.plate.name}', so there is no bound on log p(x) of one datum. "
            f"Expected: every site in the data plate. "
            f"Try: pv.ELBO, or move the site into the plate, or make it a parameter (pyro.param)."
        )
    if terms.subsampled:
        raise ValueError(
            f"{who}: plate '{terms.subsampled}' inside the data plate '{terms.plate.name}' "
            f"is subsampled; its scale would stand inside the log-sum-exp, "
            f"and the result would not be a bound. Expected: full inner plates. "
            f"Try: no subsample_size there, or pv.ELBO."
        )


def _near(name: str, known: object) -> str:
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)  # type: ignore[attr-defined]
    return f" Did you mean '{close[0]}'?" if close else ""
