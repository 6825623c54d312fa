"""Which latent depends on which: when an analytic KL is right.

For a latent z with prior p(z | parents), replacing E_q[log q(z) - log p(z | parents)] by a
closed-form KL integrates over z with the parents held at their draws. That is right exactly when
no parent of z in the model is drawn *from z* in the guide. Top-down guides satisfy it; bottom-up
guides of hierarchical models do not, and Pyro's ``TraceMeanField_ELBO`` is then a wrong number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro.infer.inspect import get_dependencies

from pyrovae.traces.recorder import Recorder

__all__ = ["is_top_down"]


def is_top_down(
    name: str,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    guided: Recorder,
    modelled: Recorder,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether no model parent of latent `name` descends from it in the guide.

    The order of the sites decides the common case at no cost: everything that precedes `name` in
    the model also precedes it in the guide. Where it does not, the programs are run once more with
    Pyro's provenance tracking; if that cannot be done, the answer is the safe one, False.
    """
    drawn = [n for n, site in guided.sites.items() if not site.is_observed]
    latents = [
        n for n in modelled.sites if n in guided.sites and not modelled.sites[n].is_observed
    ]
    before = set(latents[: latents.index(name)])
    later = before - set(drawn[: drawn.index(name)])
    if not later:
        return True
    try:
        parents = set(_upstream(model, args, kwargs)[name]) - {name}
        upstream = _upstream(guide, args, kwargs)
    except Exception:  # provenance tracking is best effort: any user code may be under it
        return False
    return not any(_descends(parent, name, upstream) for parent in parents & later)


def _upstream(
    program: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    return get_dependencies(program, args, dict(kwargs))["prior_dependencies"]  # type: ignore[return-value]


def _descends(site: str, ancestor: str, upstream: Mapping[str, Any]) -> bool:
    direct = set(upstream.get(site, ())) - {site}
    return ancestor in direct or any(_descends(d, ancestor, upstream) for d in direct)
