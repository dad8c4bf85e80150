"""Every error that secure_fed raises on purpose, with the exit code that its door answers with.

Exit codes: 1 the verdict is negative, 2 usage or bad input, 3 refused by policy, 4 aborted.
"""

from __future__ import annotations


class SecureFedError(Exception):
    """Base of all errors meant for a person: the text names the thing, its value and the way out."""

    exit_code = 2


class ConfigError(SecureFedError):
    """A configuration value, key or override is wrong."""


class DataError(SecureFedError):
    """A data file or folder is missing, empty, malformed or of another format."""


class AccountingError(SecureFedError):
    """A mechanism cannot be accounted, or no noise reaches the epsilon asked for."""


class PolicyRefusal(SecureFedError):
    """The site owner's policy does not allow what was asked."""

    exit_code = 3


class BudgetExhausted(PolicyRefusal):
    """The next charge would pass the site's budget; nothing was charged."""


class LedgerError(SecureFedError):
    """A ledger cannot be read, written or trusted."""

    exit_code = 1


class PrivacyError(SecureFedError):
    """A model, loss or option would break the DP guarantee."""


class SecAggError(SecureFedError):
    """The secure aggregation cannot go on. `code` is fixed text, safe to send to a peer."""

    exit_code = 4

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class RunAborted(SecureFedError):
    """A run cannot continue; ledgers and the last checkpoint are intact."""

    exit_code = 4
