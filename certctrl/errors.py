"""The error tree, with a fix and an exit status for each error.

Imports no other module of the project. Code that calls a library or the operating system converts its exceptions
to these. ``str(error)`` is one line without secrets; ``error.fix`` is the next command or action to try.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class ExitStatus(IntEnum):
    """Exit statuses of all commands; the numbers of sysexits.h where one fits (docs/exit-statuses.md)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CHANGES = 2  # `plan` only
    NOT_RUNNING = 3  # `status` only (LSB)
    UNAVAILABLE = 69
    DISK = 74
    BUSY = 75
    NOT_REGISTERED = 77
    CONFIG = 78
    INTERRUPTED = 130


class CertctrlError(Exception):
    """Base class of all errors that the project raises on purpose."""

    exit_status: ExitStatus = ExitStatus.FAILED

    def __init__(self, what: str, *, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return self.what


PACKAGED = "/usr/lib/cert-ctrl/"
"""Where the distribution packages have the program and its libraries."""


def install_extra(extra: str, program: str = __file__) -> str:
    """Return how to install the libraries of an extra, as a fix: for packages, all others are in cert-ctrl itself."""
    return "install the package cert-ctrl-plane" if program.startswith(PACKAGED) else f"pip install 'certctrl[{extra}]'"


# --- this host: the operator's input or the set-up ----------------------------------------------------


class UsageError(CertctrlError):
    """An invalid command line: unknown, missing or conflicting arguments."""

    exit_status = ExitStatus.USAGE


class ConfigError(CertctrlError):
    """An invalid file of the operator; the message names the file, the JSON path and the expected value."""

    exit_status = ExitStatus.CONFIG

    def __init__(self, what: str, *, file: str = "", path: str = "", fix: str | None = None) -> None:
        where = ": ".join(part for part in (file, path) if part)
        super().__init__(f"{where}: {what}" if where else what, fix=fix)
        self.file = file
        self.path = path
        self.reason = what


class NotRegisteredError(CertctrlError):
    """The device is not registered, or its registration was refused or revoked."""

    exit_status = ExitStatus.NOT_REGISTERED


class BusyError(CertctrlError):
    """Another process of certctrl holds a lock, or the daemon does not answer in time."""

    exit_status = ExitStatus.BUSY


# --- transport: the control plane cannot be reached or violates the wire contract ---------------------


class TransportError(CertctrlError):
    """No answer from the control plane: DNS, connection, TLS or deadline failed."""

    exit_status = ExitStatus.UNAVAILABLE
    maybe_sent: bool = True
    """False if the request certainly did not reach the plane, so that a one-time token is still unused."""


class TlsError(TransportError):
    """The plane's certificate was rejected, or the plane rejected the client certificate."""


class DeadlineError(TransportError):
    """The exchange exceeded its deadline."""


class BadAnswerError(TransportError):
    """An answer that violates the wire contract: HTML, too large, not JSON, wrong schema."""


# --- the control plane answered with an error -------------------------------------------------------------


DEVICE_REVOKED = "DEVICE_REVOKED"


class PlaneError(CertctrlError):
    """An error response of the control plane (docs/protocol.md)."""

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
        """Seconds, clamped to [0, 3600]; None if the response has no Retry-After."""
        if status == 403 and key == DEVICE_REVOKED:  # any request may learn of the revocation
            self.exit_status = ExitStatus.NOT_REGISTERED
            self.fix = fix or "cert-ctrl -c DIR register"


class LaggingError(CertctrlError):
    """The answers of the plane do not yet show what a signal announced."""

    exit_status = ExitStatus.UNAVAILABLE


class GraceError(CertctrlError):
    """A confirmed unassignment that is not carried out yet."""

    def __init__(self, what: str, *, seconds: float) -> None:
        super().__init__(what)
        self.seconds = seconds
        """Until it is tried again."""


# --- disk -------------------------------------------------------------------------------------------------


class DiskError(CertctrlError):
    """A failed file operation: disk full, read-only file system, I/O error, …"""

    exit_status = ExitStatus.DISK

    def __init__(self, what: str, *, path: str = "", errno: int = 0, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.path = path
        self.errno = errno


class StateCorruptError(DiskError):
    """A state file exists but is damaged; it is never treated as a first run."""


class LaterStateError(StateCorruptError):
    """A state file is intact, but of a later release that uses a format unknown to this one."""

    exit_status = ExitStatus.CONFIG


# --- the pipeline -------------------------------------------------------------------------------------------


class MaterialError(CertctrlError):
    """Certificate material that must not be deployed; ``reason`` is a stable identifier."""

    def __init__(self, what: str, *, reason: str, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.reason = reason


class NotYetValidError(MaterialError):
    """A certificate whose validity starts later; it is deployed then."""

    def __init__(self, what: str, *, valid_from: float) -> None:
        super().__init__(what, reason="not-yet-valid", fix="wait, or check this host's clock")
        self.valid_from = valid_from
        """Seconds since the epoch."""


class OlderMaterialError(MaterialError):
    """A certificate that is older than the deployed one: a replay, a restored plane, or a replica that lags."""

    def __init__(self, what: str) -> None:
        super().__init__(what, reason="server-behind", fix="renew it at the plane")


class HostKeyMissingError(MaterialError):
    """A certificate for a key of this host that is not here: deleted, damaged, or of an earlier registration."""

    def __init__(self, what: str) -> None:
        super().__init__(what, reason="host-key-missing", fix="renew it at the plane, which then asks for a new key")


class WrongNamesError(MaterialError):
    """A certificate that is not for the assigned names; the assignment may have changed."""

    def __init__(self, what: str) -> None:
        super().__init__(what, reason="san", fix="issue it with the names it is assigned for")


class PlanError(CertctrlError):
    """An install config that cannot be executed: hash, version, cycle, unknown type.

    ``reason`` is a stable identifier.
    """

    def __init__(self, what: str, *, reason: str, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.reason = reason


class VersionRollbackError(PlanError):
    """An install config older than one that this host already has."""

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(what, reason="version-rollback", fix=fix)


class PolicyRefusedError(CertctrlError):
    """A write or command that the host's policy does not allow; ``fix`` is the line to add."""


class BatchRefusedError(CertctrlError):
    """A certificate of an atomic batch cannot be deployed, so none of the batch is."""

    def __init__(self, cert_id: int, why: object) -> None:
        super().__init__(f"nothing of its atomic batch is switched, because of certificate {cert_id}: {why}")
        self.cert_id = cert_id
        self.why = why
        """The error or reason of that certificate."""


class CommandError(CertctrlError):
    """A command of the install plan failed, exceeded its deadline or could not start."""

    def __init__(
        self,
        what: str,
        *,
        status: int | None = None,
        timed_out: bool = False,
        output: str = "",
        fix: str | None = None,
    ) -> None:
        super().__init__(what, fix=fix)
        self.status = status
        self.timed_out = timed_out
        """Exit status, negative signal number, or None if it did not start."""
        self.output = output
        """The end of its output: escaped, redacted, bounded."""


class ProbeFault(StrEnum):
    """The class of a failed probe, in words about the endpoint that quote nothing of its answers."""

    OTHER = "serves another certificate"
    NO_TLS = "does not complete a TLS handshake"
    NO_STARTTLS = "does not offer TLS"
    REFUSED = "refuses the connection"
    NO_ANSWER = "does not answer in time"
    UNRESOLVED = "cannot be resolved"
    NOT_OURS = "is not an address of this host"


class ProbeError(CertctrlError):
    """The live endpoint does not serve the deployed certificate."""

    def __init__(self, what: str, *, fault: ProbeFault = ProbeFault.OTHER, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.fault = fault
