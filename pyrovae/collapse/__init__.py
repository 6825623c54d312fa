r"""Is z in use? KL per unit, active units, mutual information; a verdict, and a live warning.

Averaged over data, the KL term of the ELBO splits (Hoffman & Johnson 2016, "ELBO surgery") as

.. math:: E_{x}\,\mathrm{KL}(q(z|x) \,\|\, p(z)) = I_q(x; z) + \mathrm{KL}(q(z) \,\|\, p(z)),
    \qquad q(z) = \frac1N \sum_n q(z | x_n),

what the latents *say about the datum* and how far their whole cloud is from the prior. A unit
whose posterior is the prior for every datum has KL 0 and a posterior mean that does not move: it
has collapsed. A unit is *active* if the variance over data of its posterior mean (unbiased, in two
passes) is at least 0.01 (Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519; He et al. 2019,
arXiv:1901.05534); where the posterior has no mean (Cauchy), its median stands in.

:func:`collapse_report` measures all of it, :class:`CollapseMonitor` does so during training and
speaks up while there is still time, :func:`posterior_means_on_grid` compares the guide with the
true posterior where z has one or two dimensions.
"""

from pyrovae.collapse.grid import PosteriorMeans, posterior_means_on_grid
from pyrovae.collapse.monitor import CollapseMonitor, CollapseWarning
from pyrovae.collapse.report import CollapseReport, collapse_report

__all__ = [
    "CollapseMonitor",
    "CollapseReport",
    "CollapseWarning",
    "PosteriorMeans",
    "collapse_report",
    "posterior_means_on_grid",
]
