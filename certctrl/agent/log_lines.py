"""Every line the agent logs: level, category, text, what it means, what to do.

The one catalogue behind the log (spec, "Logging") and behind ``docs/logs.md``. Tasks write with
``log_line(log, Line.POLL_REQUEST, cursor=…, wait=…, limit=…)``. Texts are ``str.format`` templates; fields that a
text does not name are kept for the JSON form of the log. A missing field prints as ``?``: a log line
must never be the thing that breaks the daemon (``tests/agent/test_log_lines.py`` finds it instead).
"""

from __future__ import annotations

import logging
from enum import Enum
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING
from string import Formatter
from typing import Any

_NOTHING = "Nothing."
_PLANE = "Look at the control plane and the network if it lasts; `cert-ctrl doctor` tells which."
_REGISTER = "Run `cert-ctrl -c DIR register` when this host may have certificates again."


# fmt: off
class Line(Enum):
    """One kind of log line; the member's name in lower case with dashes is its ``key`` in JSON logs."""

    # --- the daemon's life ---
    AGENT_STARTED = INFO, "Agent", "Started: version={version}, pid={pid}, device={device}, server={server}", \
        "The daemon begins; it needs no network for that.", _NOTHING
    AGENT_READY = INFO, "Agent", "Ready: poll mode {mode}, every {interval}", \
        "Recovery is done, the control socket answers, polling begins.", _NOTHING
    AGENT_STOPPING = INFO, "Agent", "Stopping: {reason}; running work gets up to {grace} s", \
        "No new poll is made; running deployments finish, acks are flushed.", _NOTHING
    AGENT_STOP_NOW = WARNING, "Agent", "Second stop request: cancelling what still runs", \
        "Running deployments are cut short; the next start finishes or undoes them.", "Start the daemon again."
    AGENT_STOPPED = INFO, "Agent", "Stopped: {reason}", "The last line of a run.", _NOTHING
    DEVICE_REVOKED = CRITICAL, "Agent", "Device revoked by the control plane: {what}; polling stops for good", \
        "The plane answered 403 DEVICE_REVOKED. Certificates on disk stay as they are; exit status 77.", _REGISTER
    BUG = ERROR, "Agent", "Unexpected {kind} in {where}: {why}", \
        "A fault in certctrl itself; the task is tried again.", "Report it with the line and `cert-ctrl --version`."
    OS_SIGNAL = INFO, "Agent", "OS signal {name} received", "Somebody or systemd sent it.", _NOTHING
    HEALTH_CHANGED = WARNING, "Health", "Health is {health} (was {was}): {problems}", \
        "What `status` says has changed for the worse.", "Follow the fix that `cert-ctrl status` prints."
    HEALTH_BACK = INFO, "Health", "Health is healthy again (was {was})", "Every problem is gone.", _NOTHING
    ALERT = CRITICAL, "Alert", "{what}", \
        "Something needs a person; also in `status`, in the metrics, and given to `on_alert`.", \
        "What the text says; `cert-ctrl status` shows the fix."

    # --- configuration ---
    CONFIG_LOADED = INFO, "Config", "Configuration: {settings}", \
        "Settings that differ from their defaults; secrets are masked.", _NOTHING
    CONFIG_RELOADED = INFO, "Config", "Configuration reloaded: {changed}", "SIGHUP was obeyed.", _NOTHING
    CONFIG_REFUSED = ERROR, "Config", "New configuration refused, the old one stays: {why}", \
        "A file was wrong at SIGHUP; nothing changed.", "Correct it, run `config check`, send SIGHUP again."
    CONFIG_NEEDS_RESTART = WARNING, "Config", "Changed settings take effect at the next start only: {names}", \
        "SIGHUP cannot change these while running.", "Restart the daemon when it suits you."
    LOCAL_INSTALLS_WRONG = ERROR, "Config", "Wrong in this host's own install items: {what}", \
        "What is in force stays; a name in `depends_on` that nobody has counts as not written.", \
        "Correct `installs.local.json`, run `config check`, send SIGHUP."
    MODES_REPAIRED = WARNING, "Config", "Permissions repaired: {path} was {was}, is {now}", \
        "A file or directory was open to others.", "Find out who opened it; rotate what was readable."
    POLICY_REFUSED = WARNING, "Policy", "Refused by this host's policy: {what}; to allow it: {fix}", \
        "The plane asked for a write or command that policy.json does not list; it was not done.", \
        "Run the printed line if you agree; otherwise change the install config at the plane."

    # --- polling ---
    POLL_REQUEST = INFO, "Poll", "Request: cursor={cursor}, wait={wait}, limit={limit}", "A poll goes out.", _NOTHING
    POLL_NO_UPDATES = INFO, "Poll", "Response: 204 No Content, cursor={cursor}", "Nothing has changed.", _NOTHING
    POLL_UPDATES = INFO, "Poll", "Response: 200 OK, {count} signals, cursor={cursor}", "Something changed.", _NOTHING
    POLL_REFUSED = WARNING, "Poll", "Response: {status} {reason}, key={key}, code={code}: {what}", \
        "The plane answered with an error; it counts as a failure unless the next line says otherwise.", _PLANE
    POLL_UNUSABLE = WARNING, "Poll", "Response unusable: {why}", \
        "An answer that is not of the contract: a captive portal, a proxy's page, cut off, too large.", \
        "See what sits between this host and the plane; nothing was changed."
    POLL_FAILED = WARNING, "Poll", "No response: {why}; failure {failures} in a row, next poll in {delay} s", \
        "The plane could not be reached. Certificates on disk keep serving.", _PLANE
    POLL_RECOVERED = INFO, "Poll", "The control plane answers again after {failures} failures", "Over.", _NOTHING
    POLL_SLOW_DOWN = DEBUG, "Poll", "Server requested slow-down (Retry-After={seconds}s); deferring next poll", \
        "One longer pause, then the usual interval.", _NOTHING
    POLL_NOW = INFO, "Poll", "Immediate poll asked for by {who}", "`poll-now` or SIGUSR1.", _NOTHING
    POLL_PAUSED = WARNING, "Poll", "Queue full ({depth} signals): polling pauses until some are done", \
        "Backpressure: nothing is lost.", "If it stays, look for a stuck item in `cert-ctrl status`."
    POLL_RESUMED = INFO, "Poll", "Queue has room again ({depth} signals): polling goes on", "Over.", _NOTHING
    BREAKER_OPENED = CRITICAL, "Poll", "Circuit breaker open after {failures} failures in a row; {recovery}", \
        "Polling has stopped. Certificates on disk keep serving but no renewal arrives.", \
        "Repair the way to the plane, then `cert-ctrl poll-now`, which also closes the breaker."
    BREAKER_CLOSED = INFO, "Poll", "Circuit breaker closed after {seconds} s", "Polling as usual.", _NOTHING

    # --- cursor and reconcile ---
    CURSOR_RESET = WARNING, "Cursor", "Cursor reset (409 {key}): {cursor} is no longer known; full resync", \
        "This host was away for longer than the plane keeps signals.", _NOTHING
    RESYNC_STARTED = INFO, "Resync", "Comparing this host with the plane: {why}", "Start, 409, or by time.", _NOTHING
    RESYNC_DONE = INFO, "Resync", "In step with the plane: {certificates} certificates, {changed} changed", \
        "What the plane says is what this host has.", _NOTHING
    RESYNC_FAILED = WARNING, "Resync", "Comparison failed: {why}; next try in {delay} s", \
        "The old state keeps serving.", _PLANE
    SERVER_BEHIND = WARNING, "Resync", "The plane is behind this host: {what}", \
        "It was restored from a backup, or somebody replays old answers. Nothing older is taken.", \
        "If the restore was yours: let the plane catch up, or issue the version again."

    # --- tokens ---
    TOKEN_EXPIRING = WARNING, "Token", "Access token expires in {seconds} seconds", \
        "The refresh that follows is routine; alone, it says that refreshing is late.", _NOTHING
    TOKEN_REJECTED = INFO, "Token", "Access token rejected (401 {key}): refreshing", "One refresh, one retry.", _NOTHING
    TOKEN_REFRESHED = INFO, "Token", "Token refresh successful, expires in {expires_in}s", "Good.", _NOTHING
    TOKEN_ROTATED = INFO, "Token", "The server replaced the refresh token; stored", "It rotates them.", _NOTHING
    TOKEN_REFRESH_FAILED = WARNING, "Token", "Token refresh failed: {why}; next try in {delay} s", \
        "Not final; the tokens are kept.", _PLANE
    TOKEN_REFRESH_REFUSED = CRITICAL, "Token", "Refresh token refused: {what}; the session ends", \
        "The registration is over at the plane; exit status 77. Certificates stay.", _REGISTER
    TOKEN_DISK = ERROR, "Token", "Token refresh put off, the new token could not be kept: {why}", \
        "A refresh token is not spent unless its successor is sure to be stored.", "Free space or repair the disk."
    TOKEN_UNSAVED = CRITICAL, "Token", "New tokens are held in memory only: {why}", \
        "The disk failed after the refresh; a restart now would lose the registration.", \
        "Repair the disk before anything else; the write is retried by itself."
    CLOCK_SKEW = WARNING, "Clock", "This host's clock is {seconds} s away from the control plane's", \
        "Validity and expiry are judged with a wrong clock.", "Set the clock (chrony, systemd-timesyncd)."
    DEVICE_COPIED = ERROR, "Agent", "Another agent polls as this device", \
        "A copy of this config directory is in use; each of the two acts, and sees only part of what happens.", \
        "Stop one. To keep both: on the copy, `rm -r keys state` and `cert-ctrl register`."

    # --- signals ---
    SIGNAL_PROCESSING = INFO, "Signal", "Processing: type={type}, ts={ts}", "A signal's work begins.", _NOTHING
    SIGNAL_DONE = INFO, "Signal", "Done: type={type}, ts={ts}, outcome={outcome}, took {ms} ms", "Its end.", _NOTHING
    SIGNAL_FAILED = ERROR, "Signal", "Failed: type={type}, ts={ts}, attempt {attempts}: {why}; next try in {delay} s", \
        "The live files are as before; others go on.", "What the reason says; retried until it sticks."
    SIGNAL_TIMEOUT = ERROR, "Signal", "Took longer than {seconds} s and was stopped: type={type}, ts={ts}", \
        "Mostly a hanging command or plane; it is tried again.", "Look at the command, or raise signal_timeouts."
    SIGNAL_UNKNOWN = INFO, "Signal", "Ignored: unknown type={type}, ts={ts}", \
        "The plane is newer than this agent.", "Update certctrl if you need what that type does."
    SIGNAL_DISABLED = INFO, "Signal", "Ignored: handler disabled, type={type}, ts={ts}", \
        "ioc_config.json switches this type off.", _NOTHING
    SIGNAL_MALFORMED = WARNING, "Signal", "Malformed: type={type}, ts={ts}: {why}", \
        "It is acked as failed and does not stop the others.", "Report it to the operator of the plane."
    SIGNAL_SUPERSEDED = DEBUG, "Signal", "Superseded by a newer one: type={type}, ts={ts}", "Acked so.", _NOTHING
    SIGNAL_QUARANTINED = ERROR, "Signal", "Quarantined after {attempts} attempts: type={type}, ts={ts}: {why}", \
        "No more tries until a new version, a resync, or your hand.", "Remove the cause, then `cert-ctrl apply --now`."
    INSTALL_FETCHING = INFO, "Signal", "Fetching install config: config_id={config_id}, version={version}", \
        "The plan of this host changed.", _NOTHING
    INSTALL_APPLIED = INFO, "Signal", "Install config applied successfully: version={version}, {changed} changed", \
        "The plan is in force.", _NOTHING
    INSTALL_UNCHANGED = INFO, "Signal", "Install config unchanged: version={version}", "Nothing to do.", _NOTHING
    INSTALL_REFUSED = ERROR, "Signal", "Install config refused ({reason}): {what}; version {version} stays", \
        "Hash, version or contents are wrong; the old plan stays in force.", "Correct it at the plane."
    CERT_UPDATED = INFO, "Signal", "Certificate {cert_id} updated: {name}, serial={serial}", \
        "Deployed, and served where that is verified.", _NOTHING
    CERT_UNCHANGED = INFO, "Signal", "Certificate {cert_id} unchanged: {name}", "Already here.", _NOTHING
    CERT_STAGED = INFO, "Signal", "Certificate {cert_id} staged: {name} waits for {what}", \
        "Verified and on disk; live at the window, or with `cert-ctrl apply --now`.", _NOTHING
    CERT_REFUSED = ERROR, "Signal", "Certificate {cert_id} refused ({reason}): {what}", \
        "The material did not pass the checks; the old one stays.", "Issue it again at the plane."
    CERT_PENDING = INFO, "Signal", "Certificate {cert_id} is not ready: {what}; next try in {delay} s", \
        "The plane is still sealing it, or its validity starts later.", _NOTHING
    CERT_REVOKED = CRITICAL, "Signal", "Certificate {cert_id} revoked: {name}; {done}", \
        "Confirmed by the plane; done as `on_revoked` of policy.json says.", "Have a new one issued."
    CERT_REVOCATION_UNCONFIRMED = WARNING, "Signal", "Certificate {cert_id}: revocation not confirmed, kept: {why}", \
        "A revocation is believed only after asking the plane.", "See the certificate's status at the plane."
    CERT_UNASSIGNED = INFO, "Signal", "Certificate {cert_id} unassigned and removed: {name}", "Asked for.", _NOTHING
    CA_IMPORTED = INFO, "Signal", "CA {ca_id} imported into the trust store: {name}", "Asked for.", _NOTHING
    CA_REMOVED = INFO, "Signal", "CA {ca_id} removed from the trust store: {name}", "Asked for.", _NOTHING

    # --- deployment ---
    ROLLED_BACK = ERROR, "Install", "Rolled back {name}: {why}; next try in {delay} s", \
        "The new material failed its reload or probe; the previous one serves again.", "What the reason says."
    STILL_FAILS = WARNING, "Install", "{name} still fails: {why}; next try in {delay} s", \
        "Something that an install item asks for has failed again; the certificate itself is as it was.", \
        "What the reason says; then `cert-ctrl apply`, or wait for the next try."
    ROLLED_BACK_BY_HAND = WARNING, "Install", "{name} is back at {generation} and held there", \
        "`cert-ctrl rollback`; renewals are staged, not switched.", "`cert-ctrl rollback --domain D --release`."
    TRUST_RESET = WARNING, "Install", "Forgotten: the versions of {configs} install configs, the pins of {scripts} scripts", \
        "`cert-ctrl trust reset`; what comes next is taken for the first.", _NOTHING
    RELEASED = INFO, "Install", "{name} is no longer held", "Renewals go live again.", _NOTHING
    DISK_FAILED = ERROR, "Disk", "Cannot write {path}: {why}", \
        "Polling goes on; what needs the disk waits.", "Free space, or repair or remount the disk."
    DISK_RECOVERED = INFO, "Disk", "Writing works again", "Over.", _NOTHING

    # --- acks, expiry, control, metrics ---
    ACKS_SENT = DEBUG, "Ack", "{count} outcomes reported", "The plane knows.", _NOTHING
    ACKS_FAILED = WARNING, "Ack", "{count} outcomes not reported: {why}", "Kept on disk, sent later.", _PLANE
    ACKS_UNSUPPORTED = INFO, "Ack", "This control plane takes no acks ({status}); none are sent", \
        "An older plane. Said once.", _NOTHING
    ACKS_DROPPED = WARNING, "Ack", "{count} oldest outcomes dropped: the queue is full", \
        "The plane has not taken acks for long.", _PLANE
    EXPIRY_WARNING = WARNING, "Expiry", "Certificate {cert_id} ({name}) expires in {left}", \
        "Less than the configured share of its life is left.", "See whether the plane renews it."
    EXPIRY_RENEWAL_ASKED = INFO, "Expiry", "Certificate {cert_id} ({name}): renewal asked for", \
        "The plane was asked to renew.", _NOTHING
    EXPIRY_RENEWAL_FAILED = WARNING, "Expiry", "Certificate {cert_id} ({name}): renewal refused: {why}", \
        "Asked again later.", _PLANE
    EXPIRED = CRITICAL, "Expiry", "Certificate {cert_id} ({name}) has expired", \
        "Clients refuse it now.", "Renew at the plane: `cert-ctrl renew --domain D`."
    CONTROL_REFUSED = WARNING, "Control", "Request refused from uid={uid}, pid={pid}: {why}", \
        "Only root and the agent's own user may ask.", "Find out who it was."
    METRICS_LISTENING = INFO, "Metrics", "Metrics at http://{address}/metrics", "metrics_listen is set.", _NOTHING
    METRICS_FAILED = WARNING, "Metrics", "Metrics are off: {why}", \
        "The address or the file cannot be used; everything else goes on.", "Correct the setting, then SIGHUP."

    def __init__(self, level: int, category: str, text: str, meaning: str, action: str) -> None:
        self.level = level
        self.category = category
        self.text = text
        self.meaning = meaning
        self.action = action

    @property
    def key(self) -> str:
        """Return the stable word that JSON logs and ``docs/logs.md`` name the line by."""
        return self.name.lower().replace("_", "-")

    def fields(self) -> tuple[str, ...]:
        """Return the names that the text needs, in order."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.text) if name)
# fmt: on


class _Gaps(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return "?"


def log_line(log: logging.Logger, line: Line, /, **fields: Any) -> None:
    """Write one line of the catalogue to the child of ``log`` that is named by the line's category.

    ``log`` may be the root of ours (``certctrl``) or the category's own logger (``certctrl.Poll``). Values are
    escaped and secrets masked by the formatter; still, never pass one.
    """
    logger = log if log.name.rpartition(".")[2] == line.category else log.getChild(line.category)
    if logger.isEnabledFor(line.level):
        text = line.text.format_map(_Gaps(fields))
        logger.log(line.level, "%s", text, extra={"line_key": line.key, "line_fields": fields}, stacklevel=2)
