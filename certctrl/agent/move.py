"""Move this host to another control plane, at which another config directory has registered it.

Nothing changes until the new plane has a certificate for all names of each one in use here, and items if there are
some here. Then, under the locks of both directories:

    marker │ CA → configuration → identity and session → state of the former plane removed │ marker removed → source voided

Each step can be repeated, and the source is complete until the marker is gone: repeating the command finishes a move that
was interrupted, and the agent does not start before. Certificates, items and records stay as they are. The agent finds
another plane at its next start (`standing.py`): it keeps what is in use until the new plane's own certificates for the
same names are deployed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from certctrl import lean
from certctrl.agent.install_config import plane_items
from certctrl.agent.setup import Seams, open_agent
from certctrl.agent.standing import shares_name
from certctrl.errors import ConfigError, DiskError, NotRegisteredError, PlaneError, UsageError
from certctrl.install.installer import in_use
from certctrl.install.material.domains import plain_domain
from certctrl.model.certificate import CertificateSummary
from certctrl.model.records import CertRecord
from certctrl.net.tls import PlaneCa
from certctrl.store.config.files import SIZE_LIMIT, add_settings, load_config
from certctrl.store.disk.atomic import read_bytes, remove_file, write_atomic
from certctrl.store.disk.fs import Fs
from certctrl.store.disk.lock import lock_daemon
from certctrl.store.layout import PUBLIC_MODE, ConfigDir
from certctrl.store.state.installed import InstalledState
from certctrl.store.state.moves import begin_move, begun_move, end_move, refuse_unfinished_move
from certctrl.store.state.session import SessionState

_TAKEN_OVER = ("server_url", "approval_host", "allow_http_loopback")
"""Settings of ``application.json`` that belong to a control plane."""


@lean.frozen(kw_only=True)
class Findings:
    """What the new plane has for this host."""

    server: str
    device_id: int | None
    covered: tuple[str, ...]
    """Certificates in use here for all of whose names the new plane has one."""
    missing: tuple[str, ...]
    """Those for which it has none."""
    clashing: tuple[str, ...]
    """Those whose id the new plane uses for other names, so that it could not deliver these."""
    items: int
    """Install items of the new plane for this host."""
    lacks_items: bool
    """Whether there are items of a plane here, and none there."""

    @property
    def ready(self) -> bool:
        """Whether a move takes nothing out of use."""
        return not (self.missing or self.clashing or self.lacks_items)

    def as_json(self, *, moved: bool) -> dict[str, Any]:
        """Return the findings for the command line."""
        return {**attrs.asdict(self), "ready": self.ready, "moved": moved}


async def move(layout: ConfigDir, source: ConfigDir, *, dry_run: bool, seams: Seams | None = None) -> dict[str, Any]:
    """Check whether this host can move to the plane of ``source``, and move it unless ``dry_run``.

    Raises UsageError, ConfigError, NotRegisteredError (``source`` is not registered), BusyError (an agent runs),
    PlaneError, TransportError, DiskError.
    """
    seams = seams or Seams()
    fs, session = seams.fs, SessionState(source, seams.fs)
    if source.root == layout.root:
        raise UsageError("the directory of the new control plane is this one", fix="give another directory")
    here = load_config(layout, seams.environ)
    origin = here.sources["application.server_url"]
    if origin.startswith("environment"):
        raise ConfigError("names the control plane of this host", file=origin, fix="unset it, and move again")
    _ca_files(load_config(source, seams.environ).config.httpclient.ca_files, source)
    if (found := _done(layout, source, seams, dry_run=dry_run)) is not None:
        return found
    if session.load_tokens() is None:
        raise NotRegisteredError(f"{source.root} is not registered", fix=f"cert-ctrl -c {source.root} register")
    findings = await _findings(layout, source, seams)
    if dry_run or not findings.ready:
        return findings.as_json(moved=False)
    with lock_daemon(layout, fs), lock_daemon(source, fs):
        _switch(layout, source, seams)
    return findings.as_json(moved=True)


def _done(layout: ConfigDir, source: ConfigDir, seams: Seams, *, dry_run: bool) -> dict[str, Any] | None:
    """Return the result if the move from ``source`` was done, or is finished now; None if it was not begun.

    Raises ConfigError if ``dry_run`` and it is not finished.
    """
    begun = begun_move(layout, seams.fs)
    if begun is not None and begun != str(source.root):
        fix = f"finish it first: cert-ctrl -c {layout.root} move {begun}"
        raise ConfigError("another move was interrupted", file=str(layout.move), fix=fix)
    server, there = (_server(one, seams) for one in (layout, source))
    mine, theirs = (SessionState(one, seams.fs) for one in (layout, source))
    same = server == there and mine.load_device_id() == theirs.load_device_id() is not None
    if begun is None and not same:
        return None
    usable = seams.fs.lstat(source.refresh_token) is not None  # the first file that `_void` removes
    if begun is None and usable and mine.load_device_secret() != theirs.load_device_secret():
        what = f"is registered there as the same device as {layout.root}, with another key"
        raise ConfigError(what, file=str(source.root), fix="remove the directory whose key the plane does not have")
    result = {"server": there, "moved": True, "ready": True, "finished": begun is not None}
    if dry_run:
        refuse_unfinished_move(layout, seams.fs)
        return result
    with lock_daemon(layout, seams.fs), lock_daemon(source, seams.fs):
        if begun is not None:
            _switch(layout, source, seams)
        else:
            _void(source, seams.fs)
    return result


def _server(layout: ConfigDir, seams: Seams) -> str:
    return load_config(layout, seams.environ).config.application.server_url.rstrip("/")


# --- what the new plane has -------------------------------------------------------------------------------------------


async def _findings(layout: ConfigDir, source: ConfigDir, seams: Seams) -> Findings:
    installed = InstalledState(layout, seams.fs)
    async with open_agent(source.root, seams) as new:
        user_id, device_id = await new.tokens.identity()
        listed = await new.authorized(new.plane.fetch_certificates)

        async def fetch(token: str) -> tuple[str, dict[str, Any]] | None:
            return await new.plane.fetch_install_config(token, user_id, device_id, None)

        try:
            answer = await new.authorized(fetch)
        except PlaneError as error:
            if error.status != 404:
                raise
            answer = None
        server = new.config.application.server_url
    items = answer[1].get("installs") if answer is not None else None
    count = len(items) if isinstance(items, list) else 0
    covered, missing, clashing = _compare(listed, installed.load_certificates())
    return Findings(
        server=server,
        device_id=device_id,
        covered=covered,
        missing=missing,
        clashing=clashing,
        items=count,
        lacks_items=not count and bool(plane_items(installed)),
    )


def _compare(
    listed: Sequence[CertificateSummary], records: Mapping[int, CertRecord]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the names of the certificates in use that the new plane covers, lacks, and has other ids for."""
    usable = [one for one in listed if one.status != "revoked" and (one.serial_number or one.order is not None)]
    offered = [{plain_domain(name) for name in (one.domain_name, *one.sans) if name} for one in usable]
    by_id = {one.id: one for one in listed}
    covered, missing, clashing = list[str](), list[str](), list[str]()
    for record in sorted((one for one in records.values() if in_use(one)), key=lambda one: one.cert_id):
        names, other = {plain_domain(name) for name in record.facts.domains}, by_id.get(record.cert_id)
        if other is not None and not shares_name(other, record):
            clashing.append(f"{other.domain_name} (certificate {other.id})")
        (covered if any(names <= there for there in offered) else missing).append(record.name)
    return tuple(covered), tuple(missing), tuple(clashing)


# --- the switch -------------------------------------------------------------------------------------------------------


def _switch(layout: ConfigDir, source: ConfigDir, seams: Seams) -> None:
    """Take over configuration, CA and session of ``source``; idempotent. Raises DiskError."""
    fs = seams.fs
    resumed = begun_move(layout, fs) is not None
    begin_move(layout, fs, source)
    before = _configuration(layout, fs)
    try:
        _take_configuration(layout, source, seams)
    except (ConfigError, DiskError):
        if not resumed and _configuration(layout, fs) == before:
            end_move(layout, fs)  # the agent can start: nothing has changed yet
        raise
    mine, theirs = SessionState(layout, fs), SessionState(source, fs)
    keys, device_id, tokens = theirs.load_device_keys(), theirs.load_device_id(), theirs.load_tokens()
    if keys is None or device_id is None or tokens is None:
        fix = f"cert-ctrl -c {source.root} register, then move again"
        raise NotRegisteredError(f"{source.root} is no longer registered", fix=fix)
    mine.save_rotated_secret(theirs.load_rotated_secret())  # the new plane may have this one already
    mine.save_device_keys(keys)
    mine.save_device_id(device_id)
    mine.save_tokens(tokens)
    mine.save_recommended(theirs.load_recommended())
    for path in (layout.last_cursor, layout.inbox, layout.pending_acks, layout.certificate_list):
        remove_file(fs, path)
    InstalledState(layout, fs).forget_versions()
    end_move(layout, fs)
    _void(source, fs)


def _configuration(layout: ConfigDir, fs: Fs) -> list[bytes | None]:
    """Return the files that `_take_configuration` changes."""
    files = (layout.application, layout.httpclient, layout.plane_ca, layout.taken_plane_ca, layout.next_plane_ca)
    return [read_bytes(fs, path, SIZE_LIMIT) for path in files]


def _take_configuration(layout: ConfigDir, source: ConfigDir, seams: Seams) -> None:
    theirs = load_config(source, seams.environ).config
    settings = {name: getattr(theirs.application, name) for name in _TAKEN_OVER}
    ca = read_bytes(seams.fs, PlaneCa.below(source.root).in_use()[0], SIZE_LIMIT)
    if ca is not None:
        write_atomic(seams.fs, layout.plane_ca, ca, mode=PUBLIC_MODE, keep_attributes=True)
        for path in (layout.taken_plane_ca, layout.next_plane_ca):
            remove_file(seams.fs, path)
    add_settings(seams.fs, layout, {"ca_files": list(_ca_files(theirs.httpclient.ca_files, source))}, "httpclient")
    add_settings(seams.fs, layout, settings)


def _ca_files(files: Sequence[str], source: ConfigDir) -> list[str]:
    """Return the CA files of the source as they are found from another directory.

    Raises ConfigError if one is in the source, which may be removed after the move.
    """
    own, found = source.plane_ca.name, list[str]()
    for one in files:
        path = source.root / one
        if path == source.plane_ca:
            found.append(own)
        elif source.root in Path(os.path.normpath(path)).parents:
            fix = f"put it elsewhere, for example at /etc/ssl/{path.name}, and name that path"
            raise ConfigError(f"{one} is in {source.root}", file=str(source.httpclient), path="ca_files", fix=fix)
        else:
            found.append(str(path))
    return found


def _void(source: ConfigDir, fs: Fs) -> None:
    """Remove session and keys of the source, so that no second agent can use them."""
    tokens = (source.refresh_token, source.access_token)
    keys = (source.rotated_secret_key, source.next_secret_key, source.device_secret_key, source.device_public_key)
    for path in (*tokens, *keys):
        remove_file(fs, path)
