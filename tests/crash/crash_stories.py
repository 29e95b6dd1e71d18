"""The interrupted stories: a start, one act, and what must be true after a crash anywhere in it.

Facts of a stage: ``names`` (certificate name → fingerprints that may be live before the act is done: a list, with
None for "none"), ``after`` (name → fingerprint that is live in the end), ``kept`` (name → fingerprints of earlier
generations that stay), ``copies`` (path → certificate name and kind of file), ``signals`` (how many must be acked), ``together`` (whether all
names are switched or none is).
"""

from __future__ import annotations

from typing import Any, ClassVar

from crash_stage import Stage

from certctrl.model.policy import NamedCommand, TrustStore

DOMAIN = "site.example"


class Story:
    """One act of the agent and its start."""

    name = ""
    act = "poll"
    settings: ClassVar[dict[str, Any]] = {}
    policy: ClassVar[dict[str, Any]] = {}

    def arguments(self, stage: Stage) -> dict[str, Any]:
        return {}

    def prepare(self, stage: Stage) -> None:
        """Makes the start, and records the facts."""
        raise NotImplementedError

    # --- tools ----------------------------------------------------------------------------------------------

    def settings_for(self, stage: Stage) -> dict[str, Any]:
        return self.settings

    def begin(self, stage: Stage) -> None:
        """Restore the stage to the start of this story."""
        if not stage.kept(self.name):
            stage.found(self.settings, self.policy | self.commands(stage))
            self.prepare(stage)
            stage.keep(self.name)
        stage.restore(self.name, self.settings)

    def commands(self, stage: Stage) -> dict[str, Any]:
        return {}

    def enrol(self, stage: Stage) -> None:
        token = stage.plane.operate("POST", "/apiv1/users/1/enrolment-tokens")["token"]
        stage.must("enrol", token=token)

    def issue(self, stage: Stage, domain: str = DOMAIN) -> str:
        """Issue and assign a certificate; return its fingerprint."""
        made = stage.plane.operate(
            "POST", "/apiv1/users/1/certificates", {"domain_name": domain, "device_ids": [1], "key_type": "ecdsa-p256"}
        )
        return str(made["fingerprint_sha256"])

    def renew(self, stage: Stage) -> str:
        stage.plane.operate("POST", "/apiv1/users/1/certificates/1/issues", {"action": "renew"})
        return str(stage.plane.operate("GET", "/apiv1/users/1/certificates/1")["fingerprint_sha256"])

    def install(self, stage: Stage, items: list[dict[str, Any]]) -> None:
        stage.plane.operate("PUT", "/apiv1/users/1/devices/1/install-config", {"installs": items})

    def copies(self, stage: Stage) -> list[dict[str, Any]]:
        """Two explicit destinations in two directories."""
        certificate, key = str(stage.out / "a" / "site.crt"), str(stage.out / "b" / "site.key")
        stage.facts["copies"] = {certificate: [DOMAIN, "fullchain.pem"], key: [DOMAIN, "private.key"]}
        copy = {"id": "copy", "type": "copy", "ob_type": "cert", "ob_id": 1, "mode": "0640",
                "from": ["fullchain.pem", "private.key"], "to": [certificate, key]}  # fmt: skip
        return [copy]


class Install(Story):
    name = "install, generations"

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        fingerprint = self.issue(stage)
        stage.facts |= {"names": {DOMAIN: [None, fingerprint]}, "after": {DOMAIN: fingerprint}, "signals": 1}


class InstallCopies(Story):
    name = "install, explicit destinations"

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        fingerprint = self.issue(stage)
        self.install(stage, self.copies(stage))
        stage.facts |= {"names": {DOMAIN: [None, fingerprint]}, "after": {DOMAIN: fingerprint}, "signals": 2}


class Renew(Story):
    """With a command that runs after the switch."""

    name = "renew, generations and reload"

    def commands(self, stage: Stage) -> dict[str, Any]:
        return {"commands": {"reload": NamedCommand(argv=("/usr/bin/touch", str(stage.out / "reloaded")))}}

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        reload = {"id": "reload", "type": "exec", "ob_type": "cert", "ob_id": 1,
                  "cmd_argv": ["/usr/bin/touch", str(stage.out / "reloaded")]}  # fmt: skip
        self.install(stage, [reload])
        stage.must("poll")
        assert (stage.out / "reloaded").exists(), stage.log
        (stage.out / "reloaded").unlink()
        second = self.renew(stage)
        stage.facts |= {"names": {DOMAIN: [first, second]}, "after": {DOMAIN: second}, "kept": {DOMAIN: [first]},
                        "signals": 1, "reloaded": True}  # fmt: skip


class RenewCopies(Story):
    name = "renew, explicit destinations"

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        self.install(stage, self.copies(stage))
        stage.must("poll")
        second = self.renew(stage)
        stage.facts |= {"names": {DOMAIN: [first, second]}, "after": {DOMAIN: second}, "kept": {DOMAIN: [first]},
                        "signals": 1}  # fmt: skip


class RenewTogether(Story):
    """An atomic batch: the copies of the first certificate and the links of both are switched together."""

    name = "renew together"
    second = "second.example"

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = {name: self.issue(stage, name) for name in (DOMAIN, self.second)}
        self.install(stage, self.copies(stage))
        stage.must("poll")
        stage.plane.renew_together([1, 2])
        rows = [stage.plane.operate("GET", f"/apiv1/users/1/certificates/{number}") for number in (1, 2)]
        second = {row["domain_name"]: row["fingerprint_sha256"] for row in rows}
        stage.facts |= {"names": {name: [first[name], second[name]] for name in first}, "after": second,
                        "kept": {name: [first[name]] for name in first}, "signals": 2, "together": True}  # fmt: skip


class Register(Story):
    name = "register"
    act = "enrol"

    def arguments(self, stage: Stage) -> dict[str, Any]:
        return {"token": stage.facts["token"]}

    def prepare(self, stage: Stage) -> None:
        stage.facts["token"] = stage.plane.operate("POST", "/apiv1/users/1/enrolment-tokens")["token"]


class RegisterAgain(Register):
    """Register a registered host again: its session is replaced, its key stays."""

    name = "register again"

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        stage.facts["token"] = stage.plane.operate("POST", "/apiv1/users/1/enrolment-tokens")["token"]
        stage.facts["registered"] = True


class Refresh(Story):
    name = "refresh with rotation"
    act = "refresh"
    settings: ClassVar[dict[str, Any]] = {"rotate_refresh_tokens": True}

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        stage.facts["registered"] = True


class Resync(Story):
    name = "409 and resync"
    settings: ClassVar[dict[str, Any]] = {"stream_length": 2}

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        stage.must("poll")
        for _ in range(4):
            last = self.renew(stage)
        stage.facts |= {"names": {DOMAIN: [first, last]}, "after": {DOMAIN: last}, "kept": {DOMAIN: [first]},
                        "signals": 1}  # fmt: skip


class Withdraw(Story):
    name = "revoked"

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        self.install(stage, self.copies(stage))
        stage.must("poll")
        stage.plane.operate("POST", "/apiv1/users/1/certificates/1/revoke", {"reason": "key lost"})
        stage.facts |= {"names": {DOMAIN: [first, None]}, "after": {DOMAIN: None}, "signals": 1}


class Unassign(Story):
    name = "taken from this host"
    policy: ClassVar[dict[str, Any]] = {"unassign_grace": 0.0}

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        self.install(stage, self.copies(stage))
        stage.must("poll")
        stage.plane.operate("DELETE", "/apiv1/users/1/devices/1/certificates/1")
        stage.facts |= {"names": {DOMAIN: [first, None]}, "after": {DOMAIN: None}, "signals": 1}


class TrustedCa(Story):
    """Import a CA into the trust store, and copy it."""

    name = "CA into the trust store"

    def commands(self, stage: Stage) -> dict[str, Any]:
        return {"trust_store": TrustStore(directory=str(stage.out / "trust"))}

    def prepare(self, stage: Stage) -> None:
        (stage.out / "trust").mkdir()
        self.enrol(stage)
        stage.plane.operate("POST", "/apiv1/users/1/cas", {"name": "inner"})
        stage.plane.operate("POST", "/apiv1/users/1/devices/1/cas", {"ca_id": 1})
        stage.facts |= {"signals": 1, "trusted": 1}


class Replace(Story):
    """Replace a revoked certificate by a placeholder; its key is removed."""

    name = "revoked, placeholder"
    policy: ClassVar[dict[str, Any]] = {"on_revoked": "placeholder"}

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        self.install(stage, self.copies(stage))
        stage.must("poll")
        stage.plane.operate("POST", "/apiv1/users/1/certificates/1/revoke", {"reason": "key lost"})
        stage.facts |= {"names": {DOMAIN: [first, "another"]}, "after": {DOMAIN: "another"}, "known": [first],
                        "signals": 1}  # fmt: skip


class RollBack(Story):
    name = "rollback by hand"
    act = "roll_back"

    def arguments(self, stage: Stage) -> dict[str, Any]:
        return {"domain": DOMAIN, "to": stage.facts["to"]}

    def prepare(self, stage: Stage) -> None:
        self.enrol(stage)
        first = self.issue(stage)
        self.install(stage, self.copies(stage))
        stage.must("poll")
        stage.facts["to"] = stage.layout.live_link(DOMAIN).readlink().name
        second = self.renew(stage)
        stage.must("poll")
        stage.facts |= {"names": {DOMAIN: [first, second]}, "after": {DOMAIN: first}, "kept": {DOMAIN: [second]},
                        "signals": 0}  # fmt: skip


STORIES: tuple[Story, ...] = (
    Install(), InstallCopies(), Renew(), RenewCopies(), RenewTogether(), Register(), RegisterAgain(), Refresh(), Resync(), Withdraw(),
    Unassign(), Replace(), TrustedCa(), RollBack(),
)  # fmt: skip
