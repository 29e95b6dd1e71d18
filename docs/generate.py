"""Write the pages of the manual that repeat what the code says: ``python docs/generate.py``.

Each page is made from the code's own words (settings, log lines, metric families, help texts, exit statuses), and
``tests/cli/test_docs.py`` compares the files with what this makes.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from certctrl.agent.counters import POLL_BUCKETS, Duration, Figures
from certctrl.agent.log_lines import Line
from certctrl.errors import ExitStatus
from certctrl.model.certificate import CertFacts
from certctrl.model.config import CONFIG_FILES, AgentConfig
from certctrl.model.plan import OutcomeKind
from certctrl.model.policy import HostPolicy, MaintenanceWindow, NamedCommand, TrustStore
from certctrl.model.records import CertRecord

DOCS = Path(__file__).parent
MADE = "<!-- made by docs/generate.py; edit the code, not this page -->\n\n"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


# --- configuration ------------------------------------------------------------------------------------------------

CONFIGURATION = """\
# Configuration

Everything lies below the directory that `-c DIR` names. `cert-ctrl -c DIR init --server URL` makes it; the files it
writes are almost empty, because every setting has a default.

```
application.json         the agent: where the plane is, how to poll, when to warn
httpclient_config.json   the way to the plane: timeouts, proxy, CA files, client certificate
ioc_config.json          which handlers are active
log_config.json          what is logged, how, and where to
policy.json              what the control plane may write and run on this host
installs.local.json      this host's own install items (optional)
```

- `cert-ctrl -c DIR config show` prints every setting, its value and where it comes from; secrets are masked.
- `cert-ctrl -c DIR config check` checks all files without a daemon. An unknown key, a wrong type or a value out of
  range is one line with file, JSON path and what was expected, and exit status 78.
- SIGHUP (`systemctl reload cert-ctrl`) makes a running daemon read all files again. A mistake in any of them leaves
  the old configuration in force, and the log and `status` say so. `server_url`, `name`, `queue_size`, `metrics_…` and
  everything in `httpclient_config.json` count from the next start.
- Environment variables win over the files. They are read at start and at SIGHUP: text as it is, `true` or `false` for a
  switch, lists as JSON or with commas, mappings as JSON. A variable that nearly has the name of a setting is refused.
- `depends_on` in `installs.local.json` names local rows (`reload` or `local:reload`) or items of the plane's. A name that
  neither has is a mistake for `config check`; a daemon says so and goes on as if it were not written.
- Durations and sizes carry their unit in their name.

"""

VARIABLES = {
    "application": "CERTCTRL_",
    "httpclient": "CERTCTRL_HTTPCLIENT_",
    "ioc": "CERTCTRL_IOC_",
    "log": "CERTCTRL_LOG_",
}

POLICY = """\
## policy.json

What the control plane may do on this host. The file belongs to root; nobody else may write it. Without it nothing
outside `certs/` is written and no command is run. `cert-ctrl -c DIR policy show` says it in words, `policy allow` adds
to it after asking, `plan` and `doctor` show what is refused and the line that would allow it.

"""

POLICY_KEYS: dict[str, str] = {
    "write_roots": "directories below which files may be written, besides `certs/`",
    "commands": "allowed commands by a name of your choice; see below",
    "remote_commands": "`off` refuses every command of the plane's, listed or not",
    "run_as": "users that commands may run as, besides the agent's own",
    "owners": "users and groups that files may be given to, besides root and the agent's own",
    "shell": "allow shell lines (`cmd`); with it the plane can run anything",
    "plaintext_keys": "accept private keys that were not sealed to this device",
    "trust_on_first_use": "pin a listed script without `sha256` at its first run",
    "on_revoked": "a revoked certificate: `remove` it, put a self-signed `placeholder` there, or `keep` it",
    "on_alert": "your alert command; `CERTCTRL_ALERT` names a JSON file with what happened",
    "window": "when new material may be swapped in; it is delivered and staged at once. See below",
    "trust_store": "where CAs are imported to; without `directory`, CA imports are refused",
}
POLICY_PARTS: dict[str, tuple[Any, dict[str, str]]] = {
    "commands.NAME": (NamedCommand, {
        "argv": "absolute path of the program and its arguments, compared word for word",
        "run_as": "the user it runs as; unset: the agent's own",
        "timeout_seconds": "after this it is ended, with everything it started; 1 to 600",
        "sha256": "pin of the program's bytes",
        "env": "names of variables the plane may set for it, besides `CERTCTRL_…`",
    }),
    "window": (MaintenanceWindow, {
        "days": "of the week",
        "from_": "local time HH:MM",
        "to": "local time HH:MM; before `from`: over midnight",
        "timezone": "of `from` and `to`. Where the clocks change: a window within the hour that they skip opens right "
        "after it, for its length; a time that comes twice counts when it comes first",
        "override_when_life_below": "share of the served certificate's life left below which the window is ignored",
    }),
    "trust_store": (TrustStore, {
        "directory": "e.g. `/usr/local/share/ca-certificates` or `/etc/pki/ca-trust/source/anchors`",
        "command": "argv run after a change, e.g. `[\"/usr/sbin/update-ca-certificates\"]`",
    }),
}  # fmt: skip


def configuration() -> str:
    """Return docs/configuration.md."""
    page = CONFIGURATION
    for section in attrs.fields(AgentConfig):
        kind = type(getattr(AgentConfig(), section.name))
        rows = [_setting_row(field) for field in attrs.fields(kind)]
        page += f"## {CONFIG_FILES[section.name]}\n\nEnvironment: `{VARIABLES[section.name]}<KEY IN CAPITALS>`.\n\n"
        page += table(("key", "default", "allowed", "meaning"), rows) + "\n"
    page += POLICY + table(("key", "default", "meaning"), _policy_rows(HostPolicy, POLICY_KEYS))
    for name, (kind, meanings) in POLICY_PARTS.items():
        page += f"\n### {name}\n\n" + table(("key", "default", "meaning"), _policy_rows(kind, meanings))
    return MADE + page


def _setting_row(field: Any) -> tuple[str, ...]:
    meta = field.metadata
    default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
    allowed = ""
    if meta["choices"]:
        allowed = ", ".join(f"`{choice}`" for choice in meta["choices"])
    elif meta["ge"] is not None:
        allowed = f"{_number(meta['ge'])} to {_number(meta['le'])}"
    elif isinstance(default, bool):
        allowed = "`true`, `false`"
    doc = meta["doc"] + (" (secret)" if meta["secret"] else "")
    return f"`{field.name}`", _default(default), allowed, doc


def _policy_rows(kind: Any, meanings: dict[str, str]) -> list[tuple[str, ...]]:
    rows = []
    for field in attrs.fields(kind):
        if field.default is attrs.NOTHING:
            default = "needed"
        elif isinstance(field.default, attrs.Factory):  # type: ignore[arg-type]
            default = "`{}`"
        else:
            default = _default(field.default)
        rows.append((f"`{field.name.rstrip('_')}`", default, meanings[field.name]))
    return rows


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{each}"' for each in value) + "]`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{_number(value)}`" if isinstance(value, int | float) else "`{}`"


def _number(value: float) -> str:
    return "1/3" if abs(value - 1 / 3) < 1e-9 else f"{value}".removesuffix(".0")


# --- logs ---------------------------------------------------------------------------------------------------------

LOGS = """\
# Log lines

```
[2025-10-03 05:46:01] [INFO] [Poll] Response: 200 OK, 2 signals, cursor=1736900123-42
```

`[time in UTC] [LEVEL] [Category] message`, one line per event, whatever a server put into it: control characters are
escaped, tokens and keys are masked. Levels: DEBUG, INFO, WARN, ERROR, CRITICAL. Where lines go is decided by
[`log_config.json`](configuration.md#log_configjson):

- standard error (default); under systemd set `journald` to true, so that the journal knows each line's priority;
- `file`, below `logs/`, mode 0600, rotated by size and by age (`agent.log.1` is the newest of the old ones);
- `"format": "json"` makes each line one JSON object: `time`, `level`, `category`, `message`, for the lines below also
  `key` and the fields that are in braces here.

A disk that cannot be written costs log lines, never the agent: the first line afterwards says how many are missing.
One-shot commands print warnings to standard error; `--debug` shows everything.

"""


def logs() -> str:
    """Return docs/logs.md."""
    page = LOGS
    categories = list(dict.fromkeys(line.category for line in Line))
    for category in categories:
        page += f"## {category}\n\n"
        rows = [
            (f"`{line.key}`", _level(line.level), f"`{line.text}`", line.meaning, line.action)
            for line in Line
            if line.category == category
        ]
        page += table(("key", "level", "message", "what it means", "what to do"), rows) + "\n"
    return MADE + page.rstrip() + "\n"


def _level(number: int) -> str:
    from certctrl.logs.setup import level_name

    return level_name(number)


# --- metrics ------------------------------------------------------------------------------------------------------

METRICS = """\
# Metrics

Off by default. `"metrics_listen": "127.0.0.1:9464"` in `application.json` answers `GET /metrics` (loopback only, unless
`metrics_public` is true); `"metrics_textfile": "/var/lib/node_exporter/textfile/certctrl.prom"` replaces a file every
half minute for the node exporter. Needs `pip install 'certctrl[metrics]'` (prometheus-client).

Switched on, it costs 2 MiB of memory and 60 ms at start (prometheus-client and h11), and per scrape about 15 ms of CPU
with 100 certificates; switched off, prometheus-client is not even imported, which is why the library is used and
no code of our own. The figures themselves are counted always; they are plain integers.

Alert rules and a dashboard lie in `deploy/`. The three expressions that matter most:

```
certctrl_certificate_not_after_timestamp_seconds - time() < 7 * 86400      # a certificate runs out
certctrl_stale == 1 or certctrl_breaker_open == 1                          # the plane is not heard
time() - certctrl_last_poll_timestamp_seconds > 600                        # the agent hangs or is gone
```

The figures that the polling document asks for: polls and success rate by code `certctrl_polls_total`, average latency
`rate(certctrl_poll_duration_seconds_sum[5m]) / rate(certctrl_poll_duration_seconds_count[5m])`, signal processing time
by type `certctrl_signal_duration_seconds`, refresh frequency `certctrl_token_refreshes_total`, error rate by type
`certctrl_errors_total`, queue depth `certctrl_queue_depth`, cursor age `certctrl_cursor_age_seconds`, most recent
Retry-After `certctrl_retry_after_seconds`.

"""


def metrics() -> str:
    """Return docs/metrics.md."""
    rows = []
    for family in sample_families():
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, ", ".join(labels), family.documentation))
    return MADE + METRICS + table(("name", "type", "labels", "meaning"), rows)


def sample_families() -> list[Any]:
    """Return every metric family with at least one sample."""
    from certctrl.agent.metric_families import AgentCollector, View

    figures = Figures()
    for counts in (figures.polls, figures.token_refreshes, figures.errors, figures.alerts, figures.reconciles):
        counts["x"] += 1
    figures.signals["x", "y"] += 1
    figures.signal_seconds["x"] = Duration(POLL_BUCKETS)
    stuck = {"item": "x", "reason": "y", "attempts": 1, "next_try_at": 1.0}
    record = CertRecord(facts=CertFacts(cert_id=1, name="x"), generation="y", last_outcome=OutcomeKind.APPLIED)
    view = View(figures=figures, status={"stuck": [stuck], "now": 1.0}, records=[record])
    return list(AgentCollector(view).collect())


# --- exit statuses and commands -----------------------------------------------------------------------------------

EXITS = """\
# Exit statuses

The same everywhere; the numbers above 64 are those of sysexits.h where it has a word for it.

"""

EXIT_MEANINGS: dict[ExitStatus, tuple[str, str]] = {
    ExitStatus.DONE: ("done", "Nothing. For the daemon: it was asked to stop and stopped in order."),
    ExitStatus.FAILED: ("something failed, or a bug", "Read the line; for a bug run again with `--debug`."),
    ExitStatus.USAGE: ("the command line is wrong", "See `--help` of the command."),
    ExitStatus.NOT_RUNNING: ("`status` only: the daemon does not run (LSB)", "Start it."),
    ExitStatus.UNAVAILABLE: ("the control plane cannot be reached or refused", "`cert-ctrl -c DIR doctor`."),
    ExitStatus.DISK: ("a file operation failed, or a state file is damaged", "The line names the file and the remedy."),
    ExitStatus.BUSY: (
        "another process of ours holds the lock, or is too slow",
        "Try again; the line names the process.",
    ),
    ExitStatus.NOT_REGISTERED: (
        "not registered, revoked, or the refresh token was refused",
        "`cert-ctrl -c DIR register`. The unit lists 77 in RestartPreventExitStatus, so systemd leaves it down.",
    ),
    ExitStatus.CONFIG: (
        "a file of the config directory is wrong",
        "The line names file, JSON path and what is expected.",
    ),
    ExitStatus.INTERRUPTED: ("Ctrl-C", "Nothing."),
}

EXITS_OF_COMMANDS = """\

Commands that say more with theirs:

| command | status |
| --- | --- |
| `status` | 0 healthy, 1 degraded or stale, 3 not running, 77 not registered or revoked |
| `plan` | 0 nothing to do, 2 changes, 1 no changes, but not all items can be read |
| `poll-now` | 0 answered and done, 1 answered but a signal failed, 69 no usable answer |
| `apply`, `rollback` | 0 as it should be, 1 failed or rolled back (the old material serves) |
| `renew --wait` | 0 deployed, 1 not in time |
| `doctor` | 0 nothing needs a person, 1 something does |
| `policy allow` | 0 allowed, 1 nothing was added |
| `sandbox` | 0 only when everything issued was also served |

Errors are two lines on standard error, never a traceback (`--debug` shows one, with secrets masked):

```
cert-ctrl: error: this device is not registered (/etc/cert-ctrl/state holds no tokens)
fix: cert-ctrl -c /etc/cert-ctrl register
```
"""


def exit_statuses() -> str:
    """Return docs/exit-statuses.md."""
    rows = [(f"{int(status)}", *EXIT_MEANINGS[status]) for status in ExitStatus]
    return MADE + EXITS + table(("status", "meaning", "what to do"), rows) + EXITS_OF_COMMANDS


CLI = """\
# Command line

`-c DIR` may stand before or after the command. Results go to standard output, errors and warnings to standard error;
`--json` makes the output of a command one JSON value. `--install-completion` sets up completion for your shell.
A running daemon does the work of `poll-now`, `renew`, `apply`, `rollback` and `plan`; without one, the command does it
itself under the same locks. `status`, `list-certs`, `history` and `config` take no lock. What ends with which status:
[exit statuses](exit-statuses.md). `cert-ctrl plane --help` tells of the reference control plane.

"""


def cli() -> str:
    """Return docs/cli.md: the help of each command, as it is printed 80 columns wide."""
    from certctrl.cli.app import COMMANDS, load

    page = CLI + f"## cert-ctrl\n\n```\n{help_of()}```\n\n"
    for name, entry in COMMANDS.items():
        if name == "plane":
            continue
        page += f"## {name}\n\n```\n{help_of(name)}```\n\n"
        for inner in getattr(load(name, entry), "commands", {}):
            page += f"### {name} {inner}\n\n```\n{help_of(name, inner)}```\n\n"
    return MADE + page.rstrip() + "\n"


def help_of(*words: str) -> str:
    """Return what ``cert-ctrl WORDS --help`` prints."""
    from certctrl.__main__ import main

    out, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(out):
            main([*words, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return out.getvalue()


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "logs.md": logs,
    "metrics.md": metrics,
    "exit-statuses.md": exit_statuses,
    "cli.md": cli,
}


if __name__ == "__main__":
    for file_name, make in PAGES.items():
        (DOCS / file_name).write_text(make(), encoding="utf-8")
        print(f"docs/{file_name}")
