"""Print what `adopt` has found and proposes, as text or JSON."""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from certctrl.cli.adopting import Found, Installation
from certctrl.cli.output import remaining, write_line
from certctrl.install.adopt.in_use import InUse
from certctrl.install.adopt.proposal import Proposal, Takeover
from certctrl.install.adopt.uses import Remark, Service
from certctrl.model.policy import Retirement
from certctrl.text import counted

MOST_NAMES = 5
_BACKUP = "/root/before-cert-ctrl.tar.gz"
_FORM = "  {:<11} {}"


def show(found: Found, place: Installation, proposal: Proposal, now: float) -> None:
    """Print certificates, what takes them over, what cannot be, and the additions."""
    read = [f"{name} ({path})" for name, path in found.read.items()]
    write_line(f"Read: {', '.join(read) or 'no configuration, as none is installed where it usually is'}")
    write_line(f"Certificates in use: {len(found.certificates)}")
    for one in proposal.takeovers:
        write_line()
        _show_certificate(one.found, now)
        _show_takeover(one, place)
    for left in proposal.left:
        write_line()
        _show_certificate(left, now)
        write_line(_FORM.format("left", f"not taken over: {left.fault}"))
        if left.fix:
            write_line(_FORM.format("fix", left.fix))
    if found.remarks:
        write_line()
        write_line("Not read, or to know:")
    for remark in found.remarks:
        write_line(f"  {remark.at}: {remark.what}" + (f"; fix: {remark.fix}" if remark.fix else ""))
    _show_additions(place, proposal)


def _show_certificate(found: InUse, now: float) -> None:
    write_line(_names(found.names) if found.names else "(a certificate that cannot be read)")
    if found.leaf is not None:
        by = "itself" if found.leaf.is_self_signed else found.leaf.issuer
        ends = remaining(found.leaf.not_after - now)
        write_line(_FORM.format("is", f"{found.leaf.key}, issued by {by}, {_left_of(ends)}"))
    for use in found.uses:
        where = f"{use.service.value if use.service is not None else 'given'}: {use.at}"
        write_line(_FORM.format("read by", where + (f" for {_names(use.names)}" if use.names else "")))
    for virtual, path in found.files:
        write_line(_FORM.format("file", f"{path} (as {virtual})"))
    if found.lineage is not None:
        renews = "renewed by certbot" if found.lineage.renews else "of certbot, no longer renewed by it"
        write_line(_FORM.format("certbot", f"{found.lineage.name}, {renews}"))


def _left_of(ends: str) -> str:
    return ends if ends.startswith("expired") else f"ends in {ends}"


def _show_takeover(one: Takeover, place: Installation) -> None:
    if one.is_done:
        by = f"item {', '.join(one.items)}" if one.items else "the agent's own directory"
        write_line(_FORM.format("taken over", f"already, by {by}"))
        return
    if one.known is not None:
        new = f"certificate {one.known.cert_id} ({_names(one.known.domains)}), with the next `apply`"
        write_line(_FORM.format("becomes", new))
    else:
        write_line(_FORM.format("becomes", "a certificate that is not on this host yet; nothing changes before"))
    if one.missing:
        write_line(_FORM.format("loses", f"the names {_names(one.missing)}"))
    for name in one.items:
        item = next((item for item in place.facts.items if item.get("id") == name), None)
        write_line(_FORM.format("item", name if item is None else f"{name} (extended)"))
    for note in one.notes:
        write_line(_FORM.format("note", note))


def _show_additions(place: Installation, proposal: Proposal) -> None:
    if proposal.added:
        write_line()
        write_line(f"{place.layout.local_installs} gets:")
    for item in proposal.added:
        write_line(f"  {json.dumps(item, ensure_ascii=False)}")
    if proposal.commands:
        write_line(f"{place.layout.policy} gets the commands:")
    for name, entry in proposal.commands.items():
        write_line(f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}")


def _names(names: Sequence[str]) -> str:
    more = f" and {counted(len(names) - MOST_NAMES, 'more')}".removesuffix("s") if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


# --- what to do then ----------------------------------------------------------------------------------------------


def following(found: Found, place: Installation, proposal: Proposal, device: str) -> list[str]:
    """Return what the operator does next, one step a line, with commands; nothing of it is done here."""
    new = [one for one in proposal.takeovers if not one.is_done]
    if not new:
        return []
    paths = sorted({path for one in new for _, path in one.found.files})
    steps = [f"keep a copy of the present files: (umask 077; tar -czPf {_BACKUP} {shlex.join(paths)})"]
    steps += [f"at the control plane: {_issue(one, device)}" for one in new if one.known is None]
    directories = " ".join(dict.fromkeys(map(posixpath.dirname, paths)))
    steps.append(
        f"if the agent runs from its unit: systemctl edit cert-ctrl, add [Service] and ReadWritePaths={directories}"
    )
    if place.policy.on_revoked is Retirement.REMOVE:
        steps.append(
            'policy.json has "on_revoked": "remove": a service does not start without its files; consider "placeholder"'
        )
    steps += _without_certbot(found, [one.found for one in new])
    steps.append(
        f"cert-ctrl -c {place.layout.root} plan, then systemctl reload cert-ctrl (or restart it after an edit)"
    )
    return steps


def _issue(one: Takeover, device: str) -> str:
    words = [shlex.quote(name) for name in one.found.names]
    return f"cert-ctrl plane issue {' '.join(words)} --device {shlex.quote(device)}"


def _without_certbot(found: Found, taken: Iterable[InUse]) -> list[str]:
    """Return how certbot stops to renew the lineages that are taken over, and what its hooks did."""
    mine = [one.lineage for one in taken if one.lineage is not None and one.lineage.renews]
    names = {lineage.name for lineage in mine}
    others = [lineage for lineage in found.lineages if lineage.renews and lineage.name not in names]
    steps = []
    if mine and not others:
        steps.append("certbot has no other certificate: systemctl disable --now certbot.timer")
    for lineage in mine if others else ():
        command = ["sed", "-i", r"/^\[renewalparams\]/a autorenew = False", lineage.at.file]
        steps.append(f"certbot must no longer renew {lineage.name}: {shlex.join(command)}")
    for lineage in mine:
        for hook in lineage.hooks:
            steps.append(
                f"certbot ran a command after renewals of {lineage.name}; if it is still needed, add it: {hook}"
            )
    return steps


# --- JSON ---------------------------------------------------------------------------------------------------------


def as_json(found: Found, place: Installation, proposal: Proposal, written: Sequence[str], steps: Sequence[str]) -> Any:
    """Return everything as plain JSON."""
    rows = [_row(one.found) | _taken_over(one) for one in proposal.takeovers]
    rows += [_row(left) | {"state": "left", "why": left.fault, "fix": left.fix} for left in proposal.left]
    return {
        "directory": str(place.layout.root),
        "read": {str(name): path for name, path in found.read.items()},
        "certificates": rows,
        "remarks": [_remark(one) for one in found.remarks],
        "items": list(proposal.added),
        "commands": dict(proposal.commands),
        "written": list(written),
        "next": list(steps),
    }


def _row(found: InUse) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if (leaf := found.leaf) is not None:
        facts["issuer"], facts["key"] = leaf.issuer, leaf.key
        facts["not_after"] = datetime.fromtimestamp(leaf.not_after, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        facts["fingerprint_sha256"], facts["is_self_signed"] = leaf.fingerprint, leaf.is_self_signed
    readers = [
        {
            "service": use.service.value if isinstance(use.service, Service) else None,
            "at": str(use.at),
            "names": list(use.names),
            "endpoint": None if use.endpoint is None else f"{use.endpoint.host}:{use.endpoint.port}",
        }
        for use in found.uses
    ]
    return {
        "names": list(found.names),
        **facts,
        "files": [{"file": virtual, "path": path} for virtual, path in found.files],
        "read_by": readers,
        "certbot": found.lineage.name if found.lineage is not None else None,
    }


def _taken_over(one: Takeover) -> dict[str, Any]:
    return {
        "state": "taken over" if one.is_done else "proposed",
        "items": list(one.items),
        "certificate": one.known.cert_id if one.known is not None else None,
        "missing_names": list(one.missing),
        "notes": list(one.notes),
    }


def _remark(one: Remark) -> dict[str, str]:
    return {"at": str(one.at), "what": one.what, "fix": one.fix}
