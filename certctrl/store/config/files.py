"""Read and write the operator's files: the configuration, the host's policy, the local install items.

A mistake raises ConfigError with the file, the JSON path, what was expected and the kind found; no setting falls back
to its default silently. Environment variables override single settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from certctrl import lean
from certctrl.errors import ConfigError
from certctrl.model.config import CONFIG_FILES, AgentConfig, ApplicationConfig, HttpClientConfig, IocConfig, LogConfig
from certctrl.model.policy import HostPolicy
from certctrl.store.config import rules
from certctrl.store.config.environment import overrides
from certctrl.store.disk.atomic import read_bytes, write_atomic
from certctrl.store.disk.fs import Fs, Handle, RealFs, Stat
from certctrl.store.disk.tree import make_tree
from certctrl.store.layout import PUBLIC_MODE, SECRET_MODE, ConfigDir
from certctrl.store.structure import Mismatch, join, strict_converter, structure
from certctrl.text import kind_of

SIZE_LIMIT = 1024 * 1024
_CLASSES: dict[str, Any] = {
    "application": ApplicationConfig, "httpclient": HttpClientConfig, "ioc": IocConfig, "log": LogConfig,
}  # fmt: skip


@lean.frozen
class LoadedConfig:
    """The configuration and the source of each setting."""

    config: AgentConfig
    sources: Mapping[str, str]
    """``application.poll_interval_ms`` -> ``default``, ``file …/application.json`` or ``environment CERTCTRL_…``."""


def load_config(layout: ConfigDir, environ: Mapping[str, str]) -> LoadedConfig:
    """Return the four files as one value, with defaults and overrides applied. Raises ConfigError."""
    from_environment = overrides(_CLASSES, environ)
    if _read(layout.application) is None and ("application", "server_url") not in from_environment:
        fix = f"cert-ctrl -c {layout.root} init --server URL"
        raise ConfigError("no such file", file=str(layout.application), fix=fix)
    sections, sources = {}, {}
    for section, kind in _CLASSES.items():
        path = layout.root / CONFIG_FILES[section]
        raw = _object(path)
        values = _structured(kind, raw, path)
        for field in attrs.fields(kind):
            sources[f"{section}.{field.name}"] = f"file {path}" if field.name in raw else "default"
            if (override := from_environment.get((section, field.name))) is not None:
                values = attrs.evolve(values, **{field.name: override.value})
                sources[f"{section}.{field.name}"] = f"environment {override.variable}"
        sections[section] = values
    config = AgentConfig(**sections)
    _check(config, layout, sources)
    return LoadedConfig(config, sources)


def _check(config: AgentConfig, layout: ConfigDir, sources: Mapping[str, str]) -> None:
    try:
        rules.check_config(config)
    except Mismatch as mismatch:
        section, _, rest = mismatch.path.partition(".")
        name, dot, key = rest.partition(".")
        source = sources[f"{section}.{name}"]
        if source.startswith("environment "):
            fix = mismatch.fix or "correct or unset the variable"
            raise ConfigError(mismatch.what, file="environment", path=source[12:] + dot + key, fix=fix) from None
        raise _config_error(mismatch, layout.root / CONFIG_FILES[section], rest) from None


def load_policy(layout: ConfigDir) -> HostPolicy:
    """Return the host's policy; without a file, nothing is allowed. See `_refuse_foreign`. Raises ConfigError."""
    policy: HostPolicy = _structured(HostPolicy, _object(layout.policy, _refuse_foreign), layout.policy)
    try:
        rules.check_policy(policy)
    except Mismatch as mismatch:
        raise _config_error(mismatch, layout.policy) from None
    return policy


def save_policy(fs: Fs, layout: ConfigDir, policy: HostPolicy) -> None:
    """Write the host's policy, owned by the current user. Raises ConfigError, DiskError."""
    try:
        rules.check_policy(policy)
    except Mismatch as mismatch:
        raise _config_error(mismatch, layout.policy) from None
    body = _without_nulls(strict_converter().unstructure(policy))
    write_atomic(fs, layout.policy, _pretty(body), mode=PUBLIC_MODE, keep_attributes=True)


def load_local_installs(layout: ConfigDir) -> tuple[dict[str, Any], ...]:
    """Return the raw items of ``installs.local.json``: a list, or an object with the list as ``installs``.

    They may write anywhere and run anything, so the file must be as safe as the policy. Raises ConfigError.
    """
    raw = _read(layout.local_installs, _refuse_foreign)
    path = ""
    if isinstance(raw, dict):
        raw, path = raw.get("installs"), "installs"
    if raw is None and not path:
        return ()
    items: tuple[dict[str, Any], ...] = _structured(tuple[dict[str, Any], ...], raw, layout.local_installs, path)
    return items


def save_local_installs(fs: Fs, layout: ConfigDir, items: Sequence[Mapping[str, Any]]) -> None:
    """Write the items of ``installs.local.json``, in the form and with the mode that the file has. Raises as loading."""
    raw, found = _read(layout.local_installs, _refuse_foreign), fs.lstat(layout.local_installs)
    body = {**raw, "installs": list(items)} if isinstance(raw, dict) else list(items)
    mode = PUBLIC_MODE if found is None else found.mode & PUBLIC_MODE
    write_atomic(fs, layout.local_installs, _pretty(body), mode=mode, keep_attributes=True)


def init_config_dir(
    fs: Fs, layout: ConfigDir, *, server_url: str, ca_pem: bytes | None, name: str | None = None
) -> None:
    """Create a config directory: the tree, four configuration files, a policy that allows nothing.

    Existing files with the same settings are kept; ``ca_files`` and ``name`` are added to a file without. Raises
    ConfigError, before anything is written, if a setting differs.
    """
    try:
        rules.check_server_url(server_url, loopback_http=True)
    except Mismatch as mismatch:
        raise ConfigError(mismatch.what, file="server URL", fix=mismatch.fix) from None
    application: dict[str, Any] = {"server_url": server_url} | (
        {} if server_url.startswith("https") else {"allow_http_loopback": True}
    )
    application |= {} if name is None else {"name": name}
    _structured(ApplicationConfig, application, layout.application)
    httpclient = {} if ca_pem is None else {"ca_files": [layout.plane_ca.name]}
    wanted: dict[Path, tuple[bytes, int]] = {
        layout.application: (_pretty(application), PUBLIC_MODE),
        layout.httpclient: (_pretty(httpclient), SECRET_MODE),  # a proxy URL may include a password
        layout.ioc: (_pretty({}), PUBLIC_MODE),
        layout.log_config: (_pretty({}), PUBLIC_MODE),
    }
    if ca_pem is not None:
        wanted[layout.plane_ca] = (ca_pem, PUBLIC_MODE)
    changed = {path: (_to_write(fs, path, data), mode) for path, (data, mode) in wanted.items()}
    make_tree(fs, layout)
    for path, (body, mode) in changed.items():
        if body is not None:
            write_atomic(fs, path, body, mode=mode, keep_attributes=True)
    if fs.lstat(layout.policy) is None:
        save_policy(fs, layout, HostPolicy())


def add_settings(fs: Fs, layout: ConfigDir, settings: Mapping[str, Any], section: str = "application") -> None:
    """Add settings to the file of a section, if any differs. Raises ConfigError and DiskError."""
    path = layout.root / CONFIG_FILES[section]
    found = read_bytes(fs, path, SIZE_LIMIT)
    former = _parse(found, path) if found is not None else {}
    body = former | dict(settings)
    if body == former:
        return
    _structured(_CLASSES[section], body, path)
    mode = SECRET_MODE if section == "httpclient" else PUBLIC_MODE  # a proxy URL may include a password
    write_atomic(fs, path, _pretty(body), mode=mode, keep_attributes=True)


_ADDED = ("ca_files", "name")
"""Settings that ``init`` adds to an existing file."""


def _to_write(fs: Fs, path: Path, data: bytes) -> bytes | None:
    """Return the bytes to write, None if the file has the settings of ``data``. Raises ConfigError if one differs."""
    found = read_bytes(fs, path, SIZE_LIMIT)
    if found is None:
        return data
    if path.suffix != ".json":
        if found != data:
            fix = f"if the control plane's CA changed on purpose, replace {path} with it and restart the agent"
            raise ConfigError("already contains another CA", file=str(path), fix=fix)
        return None
    existing, wanted = _parse(found, path), json.loads(data)
    if not isinstance(existing, dict) or any(
        existing.get(key) != value for key, value in wanted.items() if existing.get(key) or key not in _ADDED
    ):
        names = ", ".join(wanted) if isinstance(existing, dict) else "it"
        fix = f"edit {names} in {path}, or choose another directory with -c"
        raise ConfigError("already exists with other settings", file=str(path), fix=fix)
    return None if all(existing.get(key) == value for key, value in wanted.items()) else _pretty(existing | wanted)


def _refuse_foreign(handle: Handle, found: Stat) -> None:
    """Refuse a file that allows commands, unless it belongs to root or this user and no one else can write it."""
    file = handle.path
    if found.uid not in (0, RealFs().uid()):
        what = f"belongs to user {found.uid}, expected root or the user that this runs as"
        raise ConfigError(what, file=file, fix=f"review it, then chown root {file}")
    if found.mode & 0o022:
        raise ConfigError("others can write it", file=file, fix=f"chmod go-w {file}")


def _object(path: Path, judge: Callable[[Handle, Stat], None] | None = None) -> dict[str, Any]:
    raw = _read(path, judge)
    if raw is not None and not isinstance(raw, dict):
        raise _config_error(Mismatch("", f"expected an object, found {kind_of(raw)}"), path)
    return raw or {}


def _read(path: Path, judge: Callable[[Handle, Stat], None] | None = None) -> Any:
    data = read_bytes(RealFs(), path, SIZE_LIMIT, judge=judge)
    return None if data is None else _parse(data, path)


def _parse(data: bytes, path: Path) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in found:
            if key in seen:
                raise _config_error(Mismatch(join("", key), "duplicate key"), path)
            seen[key] = value
        return seen

    def constant(name: str) -> Any:
        raise _config_error(Mismatch("", f"{name} is not JSON"), path)

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        what = f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}" if data.strip() else "is empty"
        raise ConfigError(what, file=str(path), fix="correct it; {} means all defaults") from None
    except (ValueError, RecursionError):
        raise _config_error(Mismatch("", "is not JSON in UTF-8"), path) from None


def structured(kind: Any, data: bytes, file: Path) -> Any:
    """Return the value in the bytes of an operator's file. Raises ConfigError."""
    return _structured(kind, _parse(data, file), file)


def _structured(kind: Any, raw: Any, file: Path, path: str = "") -> Any:
    try:
        return structure(kind, raw, path)
    except Mismatch as mismatch:
        raise _config_error(mismatch, file) from None


def _config_error(mismatch: Mismatch, file: Path, path: str | None = None) -> ConfigError:
    fix = mismatch.fix or f"correct it in {file}"
    return ConfigError(mismatch.what, file=str(file), path=mismatch.path if path is None else path, fix=fix)


def _without_nulls(value: Any) -> Any:
    """Return JSON without null keys: those are unset."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _pretty(body: Mapping[str, Any] | Sequence[Any]) -> bytes:
    return (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode()
