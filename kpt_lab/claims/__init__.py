"""Claims: figures in prose <-> Trials. `kpt-lab claims` finds those without a record or source; `ledger` sets promises beside Trials."""

from kpt_lab.claims.check import Report, check, say
from kpt_lab.claims.ledger import Claim, Finding, claims, judge, ledger
from kpt_lab.claims.query import Shown, recorded_trials, root_of, trial
from kpt_lab.claims.roles import quoted, recorded, show

__all__ = [
    "Claim", "Finding", "Report", "Shown", "check", "claims", "judge", "ledger", "quoted", "recorded", "recorded_trials", "root_of",
    "say", "show", "trial",
]  # fmt: skip
