"""The whole error tree: whose fault it was, how to fix it, which exit status it means.

Imports nothing of ours. Foreign exceptions stop at the boundary that calls the foreign code and continue
as one of these. ``str(error)`` is one line for a person and never holds a secret; ``error.fix`` is the
next thing to type.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """What a process of ours ends with; the same everywhere (sysexits.h where it has a word)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CHANGES = 2  # `plan` only
    NOT_RUNNING = 3  # LSB: `status` only
    UNAVAILABLE = 69
    DISK = 74
    BUSY = 75
    NOT_REGISTERED = 77
    CONFIG = 78
    INTERRUPTED = 130


class CertctrlError(Exception):
    """Base of everything we raise on purpose."""

    exit_status: ExitStatus = ExitStatus.FAILED

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return self.what


# --- ours: the operator's input or this host's set-up -------------------------------------------------


class UsageError(CertctrlError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_status = ExitStatus.USAGE


class ConfigError(CertctrlError):
    """A file of the operator's is wrong: names file, JSON path and what was expected."""

    exit_status = ExitStatus.CONFIG

    def __init__(self, what: str, *, file: str = "", path: str = "", fix: str | None = None) -> None:
        where = ": ".join(part for part in (file, path) if part)
        super().__init__(f"{where}: {what}" if where else what, fix=fix)
        self.file = file
        self.path = path


class NotRegisteredError(CertctrlError):
    """The device has no (usable) registration: never registered, refused, or revoked."""

    exit_status = ExitStatus.NOT_REGISTERED


class BusyError(CertctrlError):
    """Another process of ours holds a lock; names the holder."""

    exit_status = ExitStatus.BUSY


# --- transport: the control plane cannot be reached or does not speak our language --------------------


class TransportError(CertctrlError):
    """No answer: DNS, connect, TLS, deadline, broken connection."""

    exit_status = ExitStatus.UNAVAILABLE
    maybe_sent: bool = True
    """False when the request certainly never reached the plane: nothing was spent."""


class TlsError(TransportError):
    """The plane's certificate was refused, or it refused ours."""


class DeadlineError(TransportError):
    """The whole exchange took longer than its deadline."""


class BadAnswerError(TransportError):
    """An answer came, but it is not of the wire contract: HTML, too large, not JSON, wrong schema."""


# --- theirs: the control plane answered with an error ----------------------------------------------------


DEVICE_REVOKED = "DEVICE_REVOKED"


class PlaneError(CertctrlError):
    """The control plane refused a request (api.md §6)."""

    exit_status = ExitStatus.UNAVAILABLE

    def __init__(
        self,
        what: str,
        *,
        status: int,
        key: str = "",
        code: int = 0,
        retry_after: float | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(what, fix=fix)
        self.status = status
        self.key = key
        self.code = code
        self.retry_after = retry_after
        """Seconds, already clamped to [0, 3600]; None when the answer gave none."""
        if status == 403 and key == DEVICE_REVOKED:  # whoever asked, and for whatever
            self.exit_status = ExitStatus.NOT_REGISTERED
            self.fix = fix or "cert-ctrl -c DIR register"


# --- disk -------------------------------------------------------------------------------------------------


class DiskError(CertctrlError):
    """A file operation failed (full, read-only, EIO, …); ``path`` and ``errno`` say where and why."""

    exit_status = ExitStatus.DISK

    def __init__(self, what: str, *, path: str = "", errno: int = 0, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.path = path
        self.errno = errno


class StateCorruptError(DiskError):
    """A state file exists but cannot be understood; it is never taken for "first run"."""


# --- the pipeline -------------------------------------------------------------------------------------------


class MaterialError(CertctrlError):
    """Certificate material that must not be deployed; ``reason`` is a stable word."""

    def __init__(self, what: str, *, reason: str, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.reason = reason


class NotYetValidError(MaterialError):
    """A certificate whose validity starts later: it waits, nothing is wrong with it."""

    def __init__(self, what: str, *, valid_from: float) -> None:
        super().__init__(what, reason="not-yet-valid", fix="wait, or check this host's clock")
        self.valid_from = valid_from
        """Seconds since the epoch."""


class PlanError(CertctrlError):
    """An install config that cannot be run: hash, version, cycle, unknown type; ``reason`` is a stable word."""

    def __init__(self, what: str, *, reason: str, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.reason = reason


class PolicyRefusedError(CertctrlError):
    """The host's policy does not allow this write or command; ``fix`` holds the line to add."""


class CommandError(CertctrlError):
    """A command of the install plan failed, was killed at its deadline, or could not start."""

    def __init__(self, what: str, *, status: int | None = None, output: str = "", fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.status = status
        """Exit status, negative signal number, or None when it never ran."""
        self.output = output
        """Escaped, redacted, bounded tail of what it printed."""


class ProbeError(CertctrlError):
    """The live endpoint does not serve the deployed certificate."""
