r"""Differentiable special functions that torch lacks; imports torch only.

* incomplete gamma: `gammainc`, `gammaincc`, `log_gammainc`, `log_gammaincc`, inverses
  `gammaincinv`, `gammainccinv`; `sample_log_gamma` draws in log space;
* incomplete beta: `betainc`, `betaincc`, `log_betainc`, `log_betaincc`, `betaincinv`,
  `betainccinv`;
* Student's t: `stdtr`, `stdtrc`, `log_stdtr`, `log_stdtrc`, `stdtrit`, `stdtritc`;
* densities without cancellation, in y = log z, logit x and t: `log_gamma_density`,
  `log_beta_density`, `log_student_density`;
* pathwise derivatives of draws at a fixed cdf: `log_gamma_slope`, `logit_beta_slope(s)`,
  `student_slope`;
* Stirling remainders and differences: `stirling`, `lgamma_difference`, `lbeta`, ... (float64).

All are elementwise and broadcast, have derivatives of first and second order in every argument
and run a fixed number of steps, on any device with float64. Only draws look at values, to repeat
what was rejected, and not inside a graph. Float32 arguments are computed in float64 and rounded
once, but for slopes and densities that :mod:`.surfaces` fits in float32.

Modules with names of their own: `bessel` and `von_mises` (ratios of Bessel functions, the cdf on
the circle and its slope), `polar` (the polar angle on spheres of any dimension), `quadrature`.
"""

from pyrovae.distributions.special.incomplete_beta import (
    betainc,
    betaincc,
    betainccinv,
    betaincinv,
    log_beta_density,
    log_betainc,
    log_betaincc,
    logit_beta_slope,
    logit_beta_slopes,
    sample_logit_beta,
)
from pyrovae.distributions.special.incomplete_gamma import (
    gammainc,
    gammaincc,
    gammainccinv,
    gammaincinv,
    log_gamma_density,
    log_gamma_slope,
    log_gammainc,
    log_gammaincc,
    sample_log_gamma,
)
from pyrovae.distributions.special.stirling import (
    digamma_difference,
    half_step,
    half_step_slope,
    lbeta,
    lgamma_difference,
    log1p_minus,
    log_gamma_ratio,
    stirling,
    stirling_slope,
)
from pyrovae.distributions.special.student import (
    log_stdtr,
    log_stdtrc,
    log_student_density,
    stdtr,
    stdtrc,
    stdtrit,
    stdtritc,
    student_slope,
)

__all__ = [
    "betainc",
    "betaincc",
    "betainccinv",
    "betaincinv",
    "digamma_difference",
    "gammainc",
    "gammaincc",
    "gammainccinv",
    "gammaincinv",
    "half_step",
    "half_step_slope",
    "lbeta",
    "lgamma_difference",
    "log1p_minus",
    "log_beta_density",
    "log_betainc",
    "log_betaincc",
    "log_gamma_density",
    "log_gamma_ratio",
    "log_gamma_slope",
    "log_gammainc",
    "log_gammaincc",
    "log_stdtr",
    "log_stdtrc",
    "log_student_density",
    "logit_beta_slope",
    "logit_beta_slopes",
    "sample_log_gamma",
    "sample_logit_beta",
    "stdtr",
    "stdtrc",
    "stdtrit",
    "stdtritc",
    "stirling",
    "stirling_slope",
    "student_slope",
]
