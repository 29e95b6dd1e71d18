"""Codes for the texts of agents that report none, by a table; docs/protocol.md has a row for each of its rows.

Texts are for people, and change; these are of the releases before agents reported codes.
"""

from __future__ import annotations

import re

from certctrl.model.causes import Cause, Reason, Step
from certctrl.model.plan import OutcomeKind

TEXTS: tuple[tuple[str, Step, Reason], ...] = (
    (r"^malformed: ", Step.RECEIVE, Reason.MALFORMED),
    (r"^took longer than \S+ s$", Step.HANDLE, Reason.TIMEOUT),
    (r"^internal error ", Step.HANDLE, Reason.INTERNAL),
    (r"still serves it from memory", Step.WITHDRAW, Reason.STILL_SERVED),
    (r"but kept in use: on_\w+ is keep", Step.WITHDRAW, Reason.KEPT),
    (r"^removed; .* stays: ", Step.WITHDRAW, Reason.FILE_STAYS),
    (r"its atomic batch is switched, because of", Step.SWITCH, Reason.BATCH_REFUSED),
    (r"^staged; .*waits for the window", Step.SWITCH, Reason.WINDOW),
    (r"^staged; ", Step.SWITCH, Reason.HELD),
    (r"the service is not running", Step.RUN, Reason.SERVICE_DOWN),
    (r" serves another certificate", Step.PROBE, Reason.OTHER_CERTIFICATE),
    (r" does not complete a TLS handshake| does not offer TLS", Step.PROBE, Reason.NO_TLS),
    (r" refuses the connection", Step.PROBE, Reason.ENDPOINT_REFUSES),
    (r" does not answer in time", Step.PROBE, Reason.ENDPOINT_SILENT),
    (r" cannot be resolved", Step.PROBE, Reason.ENDPOINT_UNRESOLVED),
    (r" is not an address of this host", Step.PROBE, Reason.ENDPOINT_FOREIGN),
    (r"the check refuses the new certificate:", Step.CHECK, Reason.COMMAND_FAILED),
    (r"its check may not run here", Step.CHECK, Reason.POLICY),
    (r"^item [^:]*: verify (exited with|was killed)", Step.PROBE, Reason.COMMAND_FAILED),
    (r"did not finish within \d+ s", Step.RUN, Reason.COMMAND_TIMEOUT),
    (r" exited with \d+| was killed by ", Step.RUN, Reason.COMMAND_FAILED),
    (r"cannot run |will not run ", Step.RUN, Reason.COMMAND_NOT_RUN),
    (r"No space left on device|Disk quota exceeded", Step.WRITE, Reason.DISK_FULL),
    (r"Read-only file system", Step.WRITE, Reason.DISK_READ_ONLY),
    (r"Permission denied|Operation not permitted", Step.WRITE, Reason.PERMISSION),
    (r"Input/output error", Step.WRITE, Reason.DISK_FAULT),
    (r"policy\.json|root helper refuses", Step.PLAN, Reason.POLICY),
    (r"^item [^:]*: (cannot|will not|may not)", Step.PLAN, Reason.ITEM_REFUSED),
    (r"does not match its hash|the install config has no hash|depend on each other", Step.PLAN, Reason.CONFIG_INVALID),
    (r"which this host already has|no longer has an install config", Step.PLAN, Reason.CONFIG_OLDER),
    (r"the plane announced .* (offers?|offer it)", Step.FETCH, Reason.PLANE_LAGGING),
    (r"offers an older one than is deployed", Step.VERIFY, Reason.OLDER),
    (r"is valid only in ", Step.VERIFY, Reason.NOT_YET_VALID),
    (r"has expired", Step.VERIFY, Reason.EXPIRED),
    (r"private key does not belong|cannot be read$|chain (does not|is longer|contains)", Step.VERIFY, Reason.MATERIAL_INVALID),
    (r"is too weak|are not accepted", Step.VERIFY, Reason.KEY_REFUSED),
    (r"sealed", Step.VERIFY, Reason.UNSEALABLE),
)  # fmt: skip
"""A pattern that the text contains, and the codes; the first row that fits counts."""
_COMPILED = tuple((re.compile(pattern), Cause(step, reason)) for pattern, step, reason in TEXTS)
_UNKNOWN = Cause(Step.OTHER, Reason.OTHER)
_FAILED = (OutcomeKind.FAILED, OutcomeKind.ROLLED_BACK)


def cause_of_report(outcome: OutcomeKind, step: str, reason: str, text: str) -> Cause | None:
    """Return the cause that a device reports, by its codes or else by its text; None if nothing failed or waits.

    Codes that this release does not know become ``other``.
    """
    if step or reason:
        return Cause(_step(step), _reason(reason))
    found = next((cause for pattern, cause in _COMPILED if pattern.search(text)), None) if text else None
    if outcome in _FAILED:
        return found or _UNKNOWN
    return found if found is not None and found.reason in (Reason.WINDOW, Reason.HELD, Reason.KEPT) else None


def _step(code: str) -> Step:
    return Step(code) if code in Step.__members__.values() else Step.OTHER


def _reason(code: str) -> Reason:
    return Reason(code) if code in Reason.__members__.values() else Reason.OTHER
