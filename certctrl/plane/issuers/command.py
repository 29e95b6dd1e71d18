"""Issuers of the kind ``command``: a program on the plane's host that talks to the CA.

The program is run with one of three actions after its own arguments (docs/issuers.md):

- ``issue``: a CSR in PEM on standard input, the certificate and its chain in PEM on standard output, in any order;
- ``revoke``: the certificate and its chain in PEM on standard input;
- ``check``: reports in one line whether it could issue.

Exit statuses: 0 success; 75 not yet; 64 unknown action; 65, 77 or 78 a failure that no retry can fix. Any other status,
a signal and the time limit count as temporary failures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certctrl import lean
from certctrl.errors import CertctrlError, ConfigError, MaterialError
from certctrl.plane.ca.domains import is_address
from certctrl.plane.certificates.chains import certificates_of, chain_of, key_bytes
from certctrl.plane.commands import Finished, check_program, check_secret_name, run_program
from certctrl.plane.issuers.issuer import CertificateRequest, IssuedChain, IssuerContext, IssuerError, RenewalWindow
from certctrl.plane.setting_hooks import SettingsClass, Unfit, to_store, whole
from certctrl.text import kind_of, one_line

NOT_YET = 75
"""Exit status: not ready, retry later; the output becomes the memo of the next attempt."""
UNKNOWN_ACTION = 64
"""Exit status: the program does not implement the action."""
BAD_REQUEST = 65
"""Exit status: the signing request is refused."""
FINAL = frozenset({UNKNOWN_ACTION, BAD_REQUEST, 77, 78})
"""Exit statuses of permanent failures: usage, bad data, no permission, bad configuration."""
DEFAULT_SECONDS = 300
MAX_SECONDS = 3600
CHECK_SECONDS = 30.0
MAX_MEMO = 4096
MAX_ARGUMENTS = 50
MAX_ARGUMENT = 1000
MAX_SECRETS = 20
MAX_SECRET_BYTES = 64 * 1024


@lean.frozen
class CommandIssuer:
    """One program with its arguments."""

    _argv: tuple[str, ...]
    _seconds: float
    _secrets: Mapping[str, bytes]
    _context: IssuerContext

    def __repr__(self) -> str:
        return f"CommandIssuer({self._argv[0]})"

    async def issue(self, request: CertificateRequest) -> IssuedChain:
        """Return the chain that the program prints for a CSR."""
        csr = x509.load_der_x509_csr(request.csr_der)
        environment = {
            "CERTCTRL_NAMES": " ".join(request.names),
            "CERTCTRL_DNS_NAMES": " ".join(name for name in request.names if not is_address(name)),
            "CERTCTRL_IP_ADDRESSES": " ".join(name for name in request.names if is_address(name)),
            "CERTCTRL_PROFILE": request.profile,
            "CERTCTRL_VALIDITY_SECONDS": str(request.validity_seconds),
            "CERTCTRL_MUST_STAPLE": str(int(request.must_staple)),
            "CERTCTRL_MEMO": request.memo,
        }
        done = await self._run("issue", csr.public_bytes(Encoding.PEM), environment, self._seconds)
        if done.status == NOT_YET and not done.timed_out:
            await request.remember(self._memo(done.output) or request.memo)
        self._require_success(done, "issue")
        return self._chain(done.output, csr)

    async def revoke(self, certificate_pem: str, chain_pem: str, reason: str) -> None:
        """Revoke a certificate through the program."""
        serial = x509.load_pem_x509_certificate(certificate_pem.encode()).serial_number
        environment = {"CERTCTRL_REASON": reason, "CERTCTRL_SERIAL": f"{serial:x}"}
        done = await self._run("revoke", (certificate_pem + chain_pem).encode(), environment, self._seconds)
        if done.status == UNKNOWN_ACTION:
            what = f"{self._argv[0]} cannot revoke certificates"
            raise IssuerError(what, fix="revoke it at the CA", is_permanent=True)
        self._require_success(done, "revoke")

    async def renewal_window(self, certificate_pem: str, chain_pem: str) -> RenewalWindow | None:
        """Return None: programs suggest no window."""
        return None

    async def check(self) -> dict[str, str]:
        """Return the program, and the facts that its ``check`` prints."""
        done = await self._run("check", b"", {}, min(self._seconds, CHECK_SECONDS))
        shown = {"program": self._argv[0]}
        if done.status == UNKNOWN_ACTION:
            return shown
        self._require_success(done, "check")
        says = one_line(" ".join(done.output[:MAX_MEMO].decode("utf-8", "replace").split()))
        return shown | ({"says": says} if says else {})

    async def _run(self, action: str, stdin: bytes, environment: Mapping[str, str], seconds: float) -> Finished:
        try:
            return await run_program(
                [*self._argv, action],
                seconds=seconds,
                stdin=stdin,
                environment={"CERTCTRL_ISSUER": self._context.name, "CERTCTRL_ACTION": action, **environment},
                secrets=self._secrets,
            )
        except CertctrlError as error:
            raise IssuerError(error.what, fix=error.fix) from None

    def _require_success(self, done: Finished, action: str) -> None:
        if done.status == 0 and not done.timed_out and not done.overflowed:
            return
        what = f"{self._argv[0]} {action} {done.ending}"
        if done.timed_out:
            raise IssuerError(what, fix=f"raise timeout_seconds of the issuer, now {self._seconds:.0f}")
        if done.status == NOT_YET:
            raise IssuerError(what, fix="wait: it is asked again")
        fix = f"run it by hand on the control plane's host: {self._argv[0]} check"
        is_permanent, about_request = done.status in FINAL, done.status == BAD_REQUEST
        raise IssuerError(what, fix=fix, is_permanent=is_permanent, about_request=about_request)

    def _memo(self, output: bytes) -> str:
        """Return the memo that a program prints: one line of text."""
        return one_line(" ".join(output[:MAX_MEMO].decode("utf-8", "replace").split()), MAX_MEMO)

    def _chain(self, output: bytes, csr: x509.CertificateSigningRequest) -> IssuedChain:
        """Return the certificate for the CSR's key and its chain, in order."""
        wanted = key_bytes(csr.public_key())
        try:
            found = certificates_of(output.decode("utf-8", "replace"))
            leaf = next((one for one in found if key_bytes(one.public_key()) == wanted), None)
            if leaf is None:
                others = "no certificate" if not found else "only certificates for other keys"
                raise MaterialError(f"there is {others} in its output", reason="certificate")
            chain = chain_of(leaf, found, now=self._context.wall_now())
        except MaterialError as error:
            what = f"{self._argv[0]} issue printed an unusable chain: {error}"
            raise IssuerError(what, fix=error.fix or "print the certificate, then its CA, in PEM") from None
        return IssuedChain(certificate_pem=chain.certificate_pem, chain_pem=chain.chain_pem)


@lean.frozen(kw_only=True)
class _Settings:
    command: tuple[str, ...] = ()
    timeout_seconds: int = DEFAULT_SECONDS


class CommandKind:
    """The entry point ``command``."""

    def check_settings(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes]) -> dict[str, Any]:
        """Return ``command`` and ``timeout_seconds``; ConfigError for anything else."""
        found = _SETTINGS.given(settings)
        if not found.command:
            raise ConfigError("is not set", path="command", fix=_COMMAND)
        try:
            check_program(found.command[0])
        except ConfigError as error:
            raise ConfigError(error.reason, path="command", fix=error.fix) from None
        _check_secrets(secrets)
        return to_store(found)

    def make(self, settings: Mapping[str, Any], secrets: Mapping[str, bytes], context: IssuerContext) -> CommandIssuer:
        """Return the issuer."""
        found = _SETTINGS.stored(settings)
        return CommandIssuer(found.command, float(found.timeout_seconds), dict(secrets), context)


def _argv(value: Any, _: Any = None) -> tuple[str, ...]:
    """Return a program and its arguments: a list of texts, or one text with spaces in between."""
    argv = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    fits = all(isinstance(one, str) and 0 < len(one) <= MAX_ARGUMENT and one.isprintable() for one in argv)
    if not 0 < len(argv) <= MAX_ARGUMENTS or not fits:
        given = kind_of(value) if not isinstance(value, list) else "a list"
        raise Unfit(f"{given} is not a command", _COMMAND)
    return tuple(argv)


def _seconds(value: Any, _: Any = None) -> int:
    """Return seconds, which may be digits in a text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:9])
    return int(whole(1, MAX_SECONDS)(value, int))


_COMMAND = f"give the absolute path of the program and its arguments: 1 to {MAX_ARGUMENTS} texts"
_SETTINGS = SettingsClass(
    _Settings, {"command": _argv, "timeout_seconds": _seconds}, unknown="is not a setting of this kind"
)


def _check_secrets(secrets: Mapping[str, bytes]) -> None:
    if len(secrets) > MAX_SECRETS:
        raise ConfigError(f"there are more than {MAX_SECRETS} secrets", fix="use fewer")
    for name, value in secrets.items():
        check_secret_name(name)
        if not 0 < len(value) <= MAX_SECRET_BYTES:
            fix = f"use a file of 1 to {MAX_SECRET_BYTES} bytes"
            raise ConfigError("has an impossible length", path=name, fix=fix)


KIND = CommandKind()
