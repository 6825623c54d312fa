"""log p(x): how probable a model finds data, with the error of the answer."""

from pyrovae.evidence.importance import log_evidence
from pyrovae.evidence.psis import khat_threshold, psis_khat
from pyrovae.evidence.result import Evidence, Paired

__all__ = ["Evidence", "Paired", "khat_threshold", "log_evidence", "psis_khat"]
