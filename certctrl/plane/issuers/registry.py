"""Issuers: the configured issuers, the rules that choose one, and the objects that issue.

Rows are read for each use, so that a change is seen by every plane on the database; an object is made again only if its
row has changed.
"""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, ConfigError, install_extra
from certctrl.plane.clock import when
from certctrl.plane.errors import bad_request, conflict, not_found
from certctrl.plane.issuers.issuer import BUILTIN, AccountHolder, Issuer, IssuerContext, IssuerError, IssuerKind
from certctrl.plane.issuers.rules import clean_domain, issuer_for
from certctrl.plane.storage.database import Database, Row
from certctrl.plane.storage.keyring import Keyring
from certctrl.text import counted

IMPORT = "import"
WITHOUT_ROW = (BUILTIN, IMPORT)
"""Issuers that always exist; each has the name of its kind."""
MAX_ISSUERS = 100
MAX_RULES = 1000
MAX_SETTINGS_BYTES = 64 * 1024
MAX_SECRETS = 50
MAX_SECRET_BYTES = 64 * 1024
_GROUP = "certctrl.issuers"
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
_SECRET_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")

log = logging.getLogger("certctrl.Orders")


@lean.frozen
class _Known:
    """The row of an issuer."""

    kind: str
    settings: str
    secrets_enc: bytes | None = attrs.field(repr=False)


@lean.frozen(kw_only=True)
class NewIssuer:
    """An issuer as an operator describes it."""

    name: str
    kind: str
    settings: Mapping[str, Any]
    secrets: Mapping[str, bytes] = attrs.field(repr=False, factory=dict)
    replace: bool = False
    """Whether an issuer of this name is replaced; secrets that are not given stay."""


def installed_kinds() -> dict[str, IssuerKind]:
    """Return the kinds of issuers that are installed, by name; one that cannot be loaded is logged and left out."""
    found = {}
    for entry in entry_points(group=_GROUP):
        try:
            found[entry.name] = entry.load()
        except ImportError as error:
            log.warning("issuers of kind %s cannot be used: %s; %s", entry.name, error, install_extra("plane"))
        except Exception as error:  # a bug in another package must not end the plane
            log.error(
                "issuers of kind %s cannot be used: unexpected %s", entry.name, type(error).__name__, exc_info=error
            )
    return found


class Issuers:
    """The tables of issuers and of rules."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        wall_now: Callable[[], float],
        make_context: Callable[[str], IssuerContext],
    ) -> None:
        self._db = database
        self._keyring = keyring
        self._wall_now = wall_now
        self._make_context = make_context
        self._kinds: Mapping[str, IssuerKind] | None = None
        self._made: dict[str, tuple[_Known, Issuer]] = {}

    @property
    def kinds(self) -> Mapping[str, IssuerKind]:
        """The kinds of issuers by name."""
        if self._kinds is None:
            self._kinds = installed_kinds()
        return self._kinds

    def load_kinds(self) -> None:
        """Load all kinds now: later, the installed package may be that of another release, or be missing."""
        self._kinds = installed_kinds()

    async def get(self, name: str) -> Issuer:
        """Return an issuer as it is configured now; ConfigError if it cannot be made."""
        known = _Known(name, "{}", None) if name in WITHOUT_ROW else await self._db.work_long(self._known, name)
        made = self._made.get(name)
        if made is None or made[0] != known:
            made = known, self._make(name, known)
            self._made[name] = made
        return made[1]

    def choose(self, names: Sequence[str], given: str = "") -> str:
        """Return the given issuer, or the one that rules choose, in the caller's unit of work; ErrorResponse 400."""
        chosen = given
        if not given:
            rules = {row["domain"]: row["issuer"] for row in self._db.all("SELECT domain, issuer FROM issuer_rules")}
            chosen = issuer_for(names, rules, BUILTIN)
        if chosen not in WITHOUT_ROW and self._row(chosen) is None:
            raise bad_request(f"There is no issuer {chosen[:100]!r}; see plane issuers list", field="issuer")
        if chosen == IMPORT:
            raise bad_request("Certificates of issuer import are imported, not ordered", field="issuer")
        return chosen

    def put(self, new: NewIssuer) -> dict[str, Any]:
        """Add or replace an issuer, in the caller's unit of work; ErrorResponse 400 and 409."""
        known = self._db.one_locked(
            "SELECT * FROM issuers WHERE name = ?", new.name
        )  # its secrets are read and written
        self._check_new(new, known)
        secrets = dict(new.secrets)
        if known is not None:
            secrets = self._secrets(new.name, known["secrets_enc"]) | secrets
        settings = json.dumps(self._check_settings(new, secrets))
        if len(secrets) > MAX_SECRETS:
            what = (
                f"An issuer has at most {MAX_SECRETS} secrets, including the earlier ones; remove it, then add it again"
            )
            raise bad_request(what, field="secrets")
        sealed = self._sealed(new.name, secrets) if secrets else None
        self._store(new, settings, sealed, is_known=known is not None)
        return self.show(new.name)

    def _store(self, new: NewIssuer, settings: str, sealed: bytes | None, *, is_known: bool) -> None:
        """Store an issuer; an insert that another plane's has overtaken fails, so that its unit of work runs again."""
        now = self._wall_now()
        if is_known:
            self._db.run(
                "UPDATE issuers SET settings = ?, secrets_enc = ?, updated_at = ?, problem = '', fix = '',"
                " problem_at = NULL, blocked_until = 0 WHERE name = ?",
                *(settings, sealed, now, new.name),
            )
        else:
            self._db.run(
                "INSERT INTO issuers (name, kind, settings, secrets_enc, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
                *(new.name, new.kind, settings, sealed, now, now),
            )

    def _check_settings(self, new: NewIssuer, secrets: dict[str, bytes]) -> dict[str, Any]:
        """Return the settings in full; earlier secrets that they do not use are removed. ErrorResponse 400."""
        while True:
            try:
                return self.kinds[new.kind].check_settings(new.settings, secrets)
            except ConfigError as error:
                if error.path in secrets and error.path not in new.secrets:
                    del secrets[error.path]
                    continue
                raise bad_request(f"{error}; {error.fix}" if error.fix else str(error), field=error.path) from None

    def _check_new(self, new: NewIssuer, known: Row | None) -> None:
        if not _NAME.fullmatch(new.name) or new.name in WITHOUT_ROW:
            what = "An issuer's name has up to 64 lower-case letters, digits, '-', '_' and '.', and is not builtin or import"
            raise bad_request(what, field="name")
        if new.kind not in self.kinds or new.kind in WITHOUT_ROW:
            kinds = ", ".join(sorted(set(self.kinds) - set(WITHOUT_ROW)))
            raise bad_request(f"The kind of an issuer is one of {kinds}", field="kind")
        if known is not None and (not new.replace or known["kind"] != new.kind):
            kind = known["kind"]
            fix = "change it with --replace" if kind == new.kind else "choose another name"
            raise conflict(f"There is an issuer {new.name} of kind {kind}; {fix}", "EXISTS")
        if len(json.dumps(dict(new.settings))) > MAX_SETTINGS_BYTES:
            raise bad_request(f"The settings have more than {MAX_SETTINGS_BYTES} bytes", field="settings")
        if len(new.secrets) > MAX_SECRETS or any(len(value) > MAX_SECRET_BYTES for value in new.secrets.values()):
            what = f"At most {MAX_SECRETS} secrets of {MAX_SECRET_BYTES} bytes each"
            raise bad_request(what, field="secrets")
        for name in new.secrets:
            if not _SECRET_NAME.fullmatch(name):
                raise bad_request(f"{name[:100]!r} is not a name of a secret", field="secrets")
        if known is None and len(self._db.all("SELECT name FROM issuers")) >= MAX_ISSUERS:
            raise conflict(f"There are {MAX_ISSUERS} issuers already", "LIMIT")

    def remove(self, name: str) -> None:
        """Remove an issuer with its secrets; ErrorResponse 404, and 409 while certificates, revocations or rules use it."""
        self._require(name)
        used = self._db.one(
            "SELECT count(*) AS n FROM certificates WHERE issuer = ? AND status = 'active'"
            " AND (not_after > ? OR serial_number = '')",
            name,
            self._wall_now(),
        )
        if used is not None and used["n"]:
            what = f"Issuer {name} renews {counted(used['n'], 'certificate')}: choose another issuer for them first"
            raise conflict(what, "IN_USE")
        rule = self._db.one("SELECT domain FROM issuer_rules WHERE issuer = ?", name)
        if rule is not None:
            raise conflict(f"The rule for {rule['domain']} names issuer {name}; remove it first", "IN_USE")
        pending = self._db.one(
            "SELECT count(*) AS n FROM revocations WHERE issuer = ? AND state IN ('waiting', 'due') AND not_after > ?",
            *(name, self._wall_now()),
        )
        if pending is not None and pending["n"]:
            left = counted(pending["n"], "certificate")
            what = f"Issuer {name} still has to revoke {left}; wait, or confirm what you revoked there"
            raise conflict(what, "IN_USE")
        self._db.run("DELETE FROM issuer_items WHERE issuer = ?", name)
        self._db.run("DELETE FROM issuers WHERE name = ?", name)

    def show_all(self) -> list[dict[str, Any]]:
        """Return all issuers by name, the plane's own CA first."""
        rows = self._db.all("SELECT * FROM issuers ORDER BY name")
        return [self._shown(None, BUILTIN), *(self._shown(row, row["name"]) for row in rows)]

    def show(self, name: str) -> dict[str, Any]:
        """Return one issuer, without its secrets; ErrorResponse 404."""
        return self._shown(None if name in WITHOUT_ROW else self._require(name), name)

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules by domain."""
        rows = self._db.all("SELECT domain, issuer FROM issuer_rules ORDER BY domain")
        return [{"domain": row["domain"], "issuer": row["issuer"]} for row in rows]

    def put_rule(self, domain: str, issuer: str) -> dict[str, Any]:
        """Assign an issuer to a domain; ErrorResponse 400, and 409 beyond the limit."""
        domain = clean_domain(domain)
        self.choose((domain,), issuer)
        if len(self._db.all("SELECT domain FROM issuer_rules WHERE domain != ?", domain)) >= MAX_RULES:
            raise conflict(f"There are {MAX_RULES} rules already", "LIMIT")
        sql = "INSERT INTO issuer_rules VALUES (?, ?) ON CONFLICT (domain) DO UPDATE SET issuer = excluded.issuer"
        self._db.run(sql, domain, issuer)
        return {"domain": domain, "issuer": issuer}

    def remove_rule(self, domain: str) -> None:
        """Remove the rule for a domain; ErrorResponse 404."""
        if not self._db.run("DELETE FROM issuer_rules WHERE domain = ?", clean_domain(domain)):
            raise not_found("There is no rule for this domain")

    async def check(self, name: str) -> dict[str, Any]:
        """Return an issuer with ``ok`` and the facts that it reports, such as the remaining limits; ErrorResponse 404."""
        shown = await self._db.work(self.show, name)
        failure: CertctrlError
        try:
            facts = await (await self.get(name)).check()
        except CertctrlError as error:
            failure = error
        except Exception as error:  # a bug in an issuer must not hide the others
            log.error("issuer %s: unexpected %s", name, type(error).__name__, exc_info=error)
            failure = IssuerError(f"unexpected {type(error).__name__} in issuer {name}", fix="report it")
        else:
            return await self._checked(name, facts)
        await self._db.work(self.note_failure, name, str(failure), failure.fix or "")
        return shown | {"ok": False, "facts": {}, "problem": str(failure), "fix": failure.fix or ""}

    async def _checked(self, name: str, facts: Mapping[str, str]) -> dict[str, Any]:
        await self._db.work(self.note_success, name)
        shown = await self._db.work(self.show, name)
        return shown | {"ok": True, "facts": facts}

    async def change_account(self, name: str, change: Callable[[AccountHolder], Awaitable[None]]) -> dict[str, Any]:
        """Change an issuer's account at its CA; return the issuer with ``ok``; ErrorResponse 404, and 409 without account."""
        holder, shown = await self._account_holder(name), await self._db.work(self.show, name)
        try:
            await change(holder)
        except CertctrlError as error:
            return shown | {"ok": False, "problem": str(error), "fix": error.fix or ""}
        return shown | {"ok": True}

    async def _account_holder(self, name: str) -> AccountHolder:
        shown = await self._db.work(self.show, name)
        issuer = await self.get(name)
        if not isinstance(issuer, AccountHolder):
            raise conflict(f"Issuers of kind {shown['kind']} have no account", "NO_ACCOUNT")
        return issuer

    def note_success(self, name: str, *, used: bool = False) -> None:
        """Record that an issuer works, and when it was used, in the caller's unit of work."""
        self._db.run(
            "UPDATE issuers SET problem = '', fix = '', problem_at = NULL WHERE name = ? AND problem != ''", name
        )
        if used:
            self._db.run("UPDATE issuers SET used_at = ? WHERE name = ?", self._wall_now(), name)

    def note_failure(self, name: str, problem: str, fix: str) -> None:
        """Record why an issuer has failed, in the caller's unit of work."""
        sql = "UPDATE issuers SET problem = ?, fix = ?, problem_at = ? WHERE name = ?"
        self._db.run(sql, problem, fix, self._wall_now(), name)

    def _make(self, name: str, known: _Known) -> Issuer:
        kind = self.kinds.get(known.kind)
        if kind is None:
            what = f"issuer {name} is of kind {known.kind}, which is not installed here"
            raise ConfigError(what, fix="install the package that provides it, or remove the issuer")
        settings = json.loads(known.settings)
        secrets = self._secrets(name, known.secrets_enc)
        try:
            return kind.make(settings, secrets, self._make_context(name))
        except CertctrlError:
            raise
        except Exception as error:  # a bug in a kind must end neither the plane nor other orders
            what = f"issuer {name} cannot be made: unexpected {type(error).__name__} in kind {known.kind}"
            raise ConfigError(what, fix="report it to the author of the kind, or add the issuer again") from error

    def _known(self, name: str) -> _Known:
        row = self._row(name)
        if row is None:
            raise IssuerError(
                f"issuer {name} was removed", fix="give the certificate another issuer", is_permanent=True
            )
        return _Known(row["kind"], row["settings"], None if row["secrets_enc"] is None else bytes(row["secrets_enc"]))

    def _require(self, name: str) -> Row:
        row = self._row(name)
        if row is None:
            raise not_found(f"There is no issuer {name[:100]!r}; see plane issuers list")
        return row

    def _row(self, name: str) -> Row | None:
        return self._db.one("SELECT * FROM issuers WHERE name = ?", name)

    def _shown(self, row: Row | None, name: str) -> dict[str, Any]:
        if row is None:
            empty: dict[str, Any] = {
                "name": name,
                "kind": name,
                "settings": {},
                "secrets": [],
                "problem": "",
                "fix": "",
            }
            return empty | dict.fromkeys(("created_at", "updated_at", "used_at", "problem_at"))
        return {
            "name": row["name"],
            "kind": row["kind"],
            "settings": json.loads(row["settings"]),
            "secrets": sorted(self._secrets(row["name"], row["secrets_enc"])),
            "problem": row["problem"],
            "fix": row["fix"],
            **{moment: when(row[moment]) for moment in ("created_at", "updated_at", "used_at", "problem_at")},
        }

    def _sealed(self, name: str, secrets: Mapping[str, bytes]) -> bytes:
        plain = json.dumps({key: base64.b64encode(value).decode() for key, value in secrets.items()})
        return self._keyring.seal(f"issuer {name}", plain.encode())

    def _secrets(self, name: str, sealed: bytes | None) -> dict[str, bytes]:
        if sealed is None:
            return {}
        plain = json.loads(self._keyring.unseal(f"issuer {name}", bytes(sealed)))
        return {key: base64.b64decode(value) for key, value in plain.items()}
