"""Search a host for certificates in use, collect what a proposal depends on, and write the proposal.

The search has the operator's rights. Everything in the config directory is read and written afterwards, as its owner.
"""

from __future__ import annotations

import os
import posixpath
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import attrs

from certctrl import lean
from certctrl.errors import CertctrlError, DiskError, UsageError
from certctrl.install.adopt.apache import read_apache
from certctrl.install.adopt.certbot import Lineage, read_certbot
from certctrl.install.adopt.dovecot import read_dovecot
from certctrl.install.adopt.given import read_given
from certctrl.install.adopt.haproxy import read_haproxy
from certctrl.install.adopt.host_files import RealHostFiles
from certctrl.install.adopt.in_use import InUse, certificates_in_use
from certctrl.install.adopt.nginx import read_nginx
from certctrl.install.adopt.pem import read_pem
from certctrl.install.adopt.postfix import read_postfix
from certctrl.install.adopt.proposal import HostFacts, Known, Proposal, Target
from certctrl.install.adopt.sources import Kind, Sources
from certctrl.install.adopt.uses import Remark, Service
from certctrl.install.deploy.observe import helped_destination
from certctrl.install.plan.policy import AgentIdentity, refuse_path
from certctrl.install.process.programs import find_program
from certctrl.model.plan import CopyAction, InstallItem
from certctrl.model.policy import HostPolicy, NamedCommand
from certctrl.model.records import Standing
from certctrl.protocol.wire.install_config import install_config_from_wire, items_from_local
from certctrl.store.config.files import load_local_installs, load_policy, save_local_installs, save_policy
from certctrl.store.disk.fs import FileKind, RealFs
from certctrl.store.disk.helper import FileRule, rule_for
from certctrl.store.disk.safe_path import destination_facts
from certctrl.store.state import read_only
from certctrl.store.state.installed import InstalledState

if TYPE_CHECKING:
    from certctrl.store.layout import ConfigDir

CERTBOT = "certbot"
HELPERS = "/usr/local/lib/cert-ctrl"
"""Where docs/services/README.md installs the helpers of the recipes."""
_READERS = {
    Service.NGINX: read_nginx,
    Service.APACHE: read_apache,
    Service.HAPROXY: read_haproxy,
    Service.POSTFIX: read_postfix,
    Service.DOVECOT: read_dovecot,
}
_DEFAULTS: dict[str, tuple[str, ...]] = {
    Service.NGINX: ("/etc/nginx/nginx.conf", "/usr/local/nginx/conf/nginx.conf"),
    Service.APACHE: ("/etc/apache2/apache2.conf", "/etc/httpd/conf/httpd.conf"),
    Service.HAPROXY: ("/etc/haproxy/haproxy.cfg",),
    Service.POSTFIX: ("/etc/postfix/main.cf",),
    Service.DOVECOT: ("/etc/dovecot/dovecot.conf",),
    CERTBOT: ("/etc/letsencrypt",),
}
CHECKS = {
    Service.NGINX: "check-nginx",
    Service.APACHE: "check-pair",
    Service.HAPROXY: "check-haproxy",
    Service.POSTFIX: "check-pair",
    Service.DOVECOT: "check-pair",
}
_RED_HATS_APACHE = "/etc/httpd/conf/httpd.conf"


@lean.frozen(kw_only=True)
class Found:
    """The result of a search."""

    read: Mapping[str, str]
    """Service, or certbot -> its configuration."""
    certificates: tuple[InUse, ...]
    lineages: tuple[Lineage, ...]
    remarks: tuple[Remark, ...]


def search(paths: Sequence[str], configs: Mapping[str, str]) -> Found:
    """Return the certificates in use; ``configs``: service, or certbot -> configuration; empty: the usual ones here."""
    files = RealHostFiles()
    sources = Sources(files)
    read = dict(configs) or {
        name: path
        for name, usual in _DEFAULTS.items()
        if (path := next((one for one in usual if files.kind(one) is not Kind.MISSING), ""))
    }
    uses = []
    for service, reader in _READERS.items():
        if service in read:
            uses += reader(sources, read[service])
    lineages = tuple(read_certbot(sources, read[CERTBOT])) if CERTBOT in read else ()
    uses += read_given(sources, paths)
    certificates = certificates_in_use(files, uses, lineages)
    return Found(read=read, certificates=tuple(certificates), lineages=lineages, remarks=tuple(sources.remarks))


def configs_of(options: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--config SERVICE=PATH``. Raises UsageError."""
    found: dict[str, str] = {}
    for option in options:
        name, path = _split(option, "--config", (*Service, CERTBOT), "--config nginx=/opt/nginx/conf/nginx.conf")
        if not os.path.lexists(path):
            raise UsageError(f"--config {option}: there is no such file", fix="give the path of the configuration")
        found[name] = os.path.abspath(path)
    return found


def reloads_of(options: Sequence[str]) -> dict[Service, list[str]]:
    """Return the values of ``--reload SERVICE=COMMAND``. Raises UsageError."""
    example = "--reload 'nginx=/usr/sbin/nginx -s reload'"
    found: dict[Service, list[str]] = {}
    for option in options:
        name, text = _split(option, "--reload", (*Service,), example)
        try:
            argv = shlex.split(text)
        except ValueError:
            argv = []
        if not argv or not argv[0].startswith("/"):
            raise UsageError(f"--reload {option}: expected the absolute path of a program", fix=f"write {example}")
        found[Service(name)] = argv
    return found


def _split(option: str, name: str, known: Sequence[str], example: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not equals or key not in known or not value:
        raise UsageError(f"{name} {option}: expected one of {', '.join(known)}, =, and a value", fix=f"write {example}")
    return key, value


# --- what is there -----------------------------------------------------------------------------------------------


@lean.frozen(kw_only=True)
class Installation:
    """The config directory, read as its owner."""

    layout: ConfigDir
    policy: HostPolicy
    facts: HostFacts
    planes: tuple[str, ...]
    """Ids of the control plane's items."""


def installation(layout: ConfigDir, found: Found, reloads: Mapping[Service, Sequence[str]]) -> Installation:
    """Return what a proposal for this host depends on. Raises ConfigError, DiskError, StateCorruptError."""
    policy, rows = load_policy(layout), load_local_installs(layout)
    items = items_from_local(rows, strict=True)
    stored = InstalledState(layout, RealFs()).load_install_config()
    planes = install_config_from_wire(stored.raw).items if stored is not None else ()
    identity = AgentIdentity(config_dir=str(layout.root))
    helped = _helped(layout)
    facts = HostFacts(
        config_dir=str(layout.root),
        items=rows,
        taken=_taken((*planes, *items)),
        commands={name: command.argv for name, command in policy.commands.items()},
        known=_known(layout),
        reloads={service: reloads.get(service) or _reload(service, found) for service in Service},
        checks=_checks(),
        target=lambda path: _target(policy, path, identity, helped),
    )
    return Installation(layout=layout, policy=policy, facts=facts, planes=tuple(item.id for item in planes))


def _taken(items: Sequence[InstallItem]) -> dict[str, str]:
    """Return path -> item that writes it; a disabled one counts, because the operator knows it."""
    return {
        path: item.id if item.enabled else f"{item.id} (disabled)"
        for item in items
        if isinstance(item, CopyAction)
        for path in item.targets
    }


def _known(layout: ConfigDir) -> tuple[Known, ...]:
    """Return the certificates that the control plane has delivered."""
    files = RealHostFiles()
    found = []
    for row in read_only.read_certificates(layout.root) or ():
        is_outgoing = row.get("revoked") or row.get("standing") in (Standing.UNASSIGNED, Standing.FOREIGN)
        if row.get("generation") and not is_outgoing:
            leaf = read_pem(files, layout.public_paths(row["name"])[0]).leaf
            key = leaf.key if leaf is not None else ""
            found.append(Known(cert_id=row["cert_id"], domains=tuple(row.get("domains", ())), key=key))
    return tuple(found)


def _reload(service: Service, found: Found) -> list[str]:
    is_red_hat = found.read.get(service) == _RED_HATS_APACHE
    systemctl = find_program("systemctl") or "/usr/bin/systemctl"
    return reload_argv(service, is_root=os.geteuid() == 0, is_red_hat=is_red_hat, systemctl=systemctl)


def reload_argv(service: Service, *, is_root: bool, is_red_hat: bool, systemctl: str) -> list[str]:
    """Return the command that reloads a service; an unprivileged agent starts a unit that does it, as in the recipes."""
    unit = ("httpd" if is_red_hat else "apache2") if service is Service.APACHE else service.value
    if is_root:
        return [systemctl, "reload", f"{unit}.service"]
    return [systemctl, "start", f"cert-ctrl-reload@{unit}.service"]


def _checks() -> dict[Service, list[str]]:
    paths = {service: f"{HELPERS}/{name}" for service, name in CHECKS.items()}
    return {service: [path, "{staged}"] for service, path in paths.items() if os.access(path, os.X_OK)}


def _helped(layout: ConfigDir) -> Callable[[str], Target | None]:
    """Return what finds a file as the root helper would write it; None if its policy does not name the file."""
    from certctrl.agent.setup import root_helper
    from certctrl.store.config.files import load_config

    helper, rules = root_helper(load_config(layout, os.environ).config), tuple[FileRule, ...]()
    with suppress(CertctrlError):  # `doctor` says why it does not answer
        rules = helper.rules() if helper is not None else ()

    def target(path: str) -> Target | None:
        rule = rule_for(rules, path)
        if helper is None or rule is None:
            return None
        fault = helped_destination(helper, path, ("/",), rule).refusal
        return Target(mode=rule.mode, fault=fault, fix="correct that, or give the service files of its own")

    return target


def _target(policy: HostPolicy, path: str, identity: AgentIdentity, helped: Callable[[str], Target | None]) -> Target:
    """Return a file as the agent would find it: this process has the agent's rights now."""
    if refusal := refuse_path(policy, path, identity, local=True):
        return Target(fault=f"{path}: {refusal.why}", fix="give the service files of its own")
    if (target := helped(path)) is not None:
        return target
    try:
        found = destination_facts(path, ("/",))
        in_place = found.refusal is not None and destination_facts(path, ("/",), in_place=True).refusal is None
    except DiskError as error:
        return _not_writable(f"the agent, which runs as {_own_name()}, {error}")
    if found.refusal is not None and not in_place:
        return Target(fault=found.refusal, fix="correct that, or give the service files of its own")
    directory = posixpath.dirname(path)
    if not os.access(path if in_place else directory, os.W_OK, effective_ids=True):
        return _not_writable(f"the agent, which runs as {_own_name()}, cannot write in {directory}")
    if os.geteuid() not in (0, found.uid) and found.kind is FileKind.FILE and not in_place:
        return _not_writable(f"{path} belongs to user {found.uid}, and the agent runs as {_own_name()}")
    return Target(mode=found.mode if found.mode is not None else 0o600, in_place=in_place)


def _not_writable(why: str) -> Target:
    fix = (
        "let the root helper write it (docs/root-helper.md), run the agent as root (deploy/cert-ctrl-root.service), "
        "or have the service read the files in certs/ (recipes)"
    )
    return Target(fault=why, fix=fix)


def _own_name() -> str:
    from certctrl.cli.owner import name_of

    return name_of(os.geteuid())


def device_name(layout: ConfigDir) -> str:
    """Return the name under which this host is registered."""
    from certctrl.store.config.files import load_config

    return load_config(layout, os.environ).config.application.name or socket.gethostname()


# --- writing ------------------------------------------------------------------------------------------------------


def checked_policy(place: Installation, proposal: Proposal) -> HostPolicy:
    """Return the policy with the new commands, after checks of all items as `config check` does. Raises ConfigError."""
    from certctrl.protocol.wire.install_config import check_local_dependencies

    check_local_dependencies(items_from_local(proposal.items, strict=True), place.planes)
    commands = dict(place.policy.commands)
    for name, entry in proposal.commands.items():
        commands[name] = NamedCommand(**{**entry, "argv": tuple(entry["argv"])})
    return attrs.evolve(place.policy, commands=commands) if proposal.commands else place.policy


def write(place: Installation, proposal: Proposal) -> list[str]:
    """Write the files that change, the policy first: its commands alone do nothing. Return their paths."""
    policy, written = checked_policy(place, proposal), []
    if policy != place.policy:
        save_policy(RealFs(), place.layout, policy)
        written.append(str(place.layout.policy))
    if proposal.added:
        save_local_installs(RealFs(), place.layout, proposal.items)
        written.append(str(place.layout.local_installs))
    return written
