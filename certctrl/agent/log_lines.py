"""The catalogue of log lines: level, category, text, meaning, action (spec, "Logging").

``docs/logs.md`` is generated from it. Tasks call ``log_line(log, Line.POLL_REQUEST, cursor=…, wait=…, limit=…)``.
Texts are ``str.format`` templates; fields that a text does not name appear in JSON logs only. ``{count:signal}`` prints
as ``1 signal`` or ``2 signals``. A missing field prints as ``?``, so that no log line breaks the daemon;
``tests/agent/test_log_lines.py`` finds it instead.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from functools import cache
from logging import CRITICAL, DEBUG, ERROR, INFO, WARNING
from string import Formatter
from typing import Any

from certctrl.text import counted

_NOTHING = "Nothing."
_PLANE = "If it lasts, check the control plane and the network; `cert-ctrl doctor` shows which."
_REGISTER = "Run `cert-ctrl -c DIR register` once this host may have certificates again."


# fmt: off
class Line(Enum):
    """One kind of log line; its ``key`` in JSON logs is the member's name in lower case, with dashes."""

    # --- daemon ---
    AGENT_STARTED = INFO, "Agent", "Started: version={version}, pid={pid}, device={device}, server={server}", \
        "The daemon starts; it needs no network for that.", _NOTHING
    AGENT_READY = INFO, "Agent", "Ready: poll mode {mode}, every {interval}", \
        "Recovery is complete, the control socket answers, polling starts.", _NOTHING
    AGENT_STOPPING = INFO, "Agent", "Stopping: {reason}; running work gets up to {grace} s", \
        "Polling stops; running deployments finish, outcomes are sent.", _NOTHING
    AGENT_STOP_NOW = WARNING, "Agent", "Second stop request: cancelling running work", \
        "Running deployments are interrupted; the next start finishes or undoes them.", "Start the daemon again."
    PACKAGE_CHANGED = WARNING, "Agent", "{what}: restarting", \
        "Its files were replaced while the daemon ran, and it needed one of them. Running deployments finish; exit status 75, " \
        "after which systemd starts the new release.", "Restart the daemon right after an upgrade; packages do that."
    AGENT_STOPPED = INFO, "Agent", "Stopped: {reason}", "The last line of a run.", _NOTHING
    DEVICE_REVOKED = CRITICAL, "Agent", "Device revoked by the control plane: {what}; polling stops permanently", \
        "The plane answered 403 DEVICE_REVOKED. Certificates on disk stay unchanged; exit status 77.", _REGISTER
    BUG = ERROR, "Agent", "Unexpected {kind} in {where}: {why}", \
        "A bug in certctrl; the task is retried.", "Report this line and the output of `cert-ctrl --version`."
    OS_SIGNAL = INFO, "Agent", "OS signal {name} received", "An operator or systemd sent it.", _NOTHING
    HEALTH_CHANGED = WARNING, "Health", "Health is {health} (was {was}): {problems}", \
        "The health in `cert-ctrl status` became worse.", "Apply the fix that `cert-ctrl status` shows."
    HEALTH_BACK = INFO, "Health", "Health restored (was {was})", "All problems are resolved.", _NOTHING
    ALERT = CRITICAL, "Alert", "{what}", \
        "An operator is needed; also in `status`, in the metrics, and passed to `on_alert`.", \
        "`cert-ctrl status` shows the fix."

    # --- configuration ---
    CONFIG_LOADED = INFO, "Config", "Configuration: {settings}", \
        "Settings that differ from their defaults; secrets are masked.", _NOTHING
    CONFIG_RELOADED = INFO, "Config", "Configuration reloaded: {changed}", \
        "The files were read again after SIGHUP.", _NOTHING
    CONFIG_REFUSED = ERROR, "Config", "Configuration rejected, keeping the old one: {why}", \
        "A file was invalid at SIGHUP; nothing changed.", "Correct it, run `cert-ctrl config check`, send SIGHUP again."
    CONFIG_NEEDS_RESTART = WARNING, "Config", "Changed settings take effect only at the next start: {names}", \
        "SIGHUP cannot change these settings.", "Restart the daemon."
    LOCAL_INSTALLS_WRONG = ERROR, "Config", "Invalid local install items: {what}", \
        "The active items stay; a name in `depends_on` that no item has is ignored, and a command with no other waits.", \
        "Correct `installs.local.json`, run `cert-ctrl config check`, send SIGHUP."
    MODES_REPAIRED = WARNING, "Config", "Permissions repaired: {path} was {was}, is {now}", \
        "A file or directory was accessible to others.", \
        "Find out what changed it; rotate secrets that were readable."
    POLICY_REFUSED = WARNING, "Policy", "Refused by this host's policy: {what}; to allow it: {fix}", \
        "The plane requested a write or command that policy.json does not allow; it was not executed.", \
        "Run the printed line to allow it, or change the install config on the plane."

    # --- polling ---
    POLL_REQUEST = INFO, "Poll", "Request: cursor={cursor}, wait={wait}, limit={limit}", "A poll was sent.", _NOTHING
    POLL_NO_UPDATES = INFO, "Poll", "Response: 204 No Content, cursor={cursor}", "Nothing has changed.", _NOTHING
    POLL_UPDATES = INFO, "Poll", "Response: 200 OK, {count:signal}, cursor={cursor}", "Something changed.", _NOTHING
    POLL_REFUSED = WARNING, "Poll", "Response: {status} {reason}, key={key}, code={code}: {what}", \
        "The plane answered with an error; it counts as a failure unless the next line says otherwise.", _PLANE
    POLL_UNUSABLE = WARNING, "Poll", "Response unusable: {why}", \
        "The answer does not follow the protocol: a captive portal, a proxy's page, truncated, too large.", \
        "Check what is between this host and the plane; nothing was changed."
    POLL_FAILED = WARNING, "Poll", "No response: {why}; {failures:consecutive failure}, next poll in {delay} s", \
        "The plane is unreachable. Certificates on disk stay in service.", _PLANE
    POLL_RECOVERED = INFO, "Poll", "Control plane reachable again after {failures:failure}", "Resolved.", _NOTHING
    POLL_SLOW_DOWN = DEBUG, "Poll", "Server requested slow-down (Retry-After={seconds}s); deferring next poll", \
        "One longer pause, then the usual interval.", _NOTHING
    POLL_SUMMARY = INFO, "Poll", "In the last {minutes} minutes: {polls} polls, {updates} with updates, {failed} failed", \
        "Written once an hour with `log_polls`: `changes`, instead of each routine poll.", _NOTHING
    POLL_NOW = INFO, "Poll", "Immediate poll requested by {who}", "`poll-now` or SIGUSR1.", _NOTHING
    POLL_PAUSED = WARNING, "Poll", "Polling paused: queue full at {depth:signal}", \
        "No signal is lost.", "If it lasts, check `cert-ctrl status` for a stuck item."
    POLL_AHEAD = INFO, "Poll", "Took {count:urgent signal} from behind a full queue", \
        "They are handled now; the cursor reaches them later.", _NOTHING
    POLL_RESUMED = INFO, "Poll", "Polling resumed: queue at {depth:signal}", "Resolved.", _NOTHING
    BREAKER_OPENED = CRITICAL, "Poll", "Circuit breaker open after {failures:consecutive failure}; {recovery}", \
        "Polling has stopped. Certificates on disk stay in service, but no renewal arrives.", \
        "Fix plane connectivity, then run `cert-ctrl poll-now`, which also closes the breaker."
    BREAKER_CLOSED = INFO, "Poll", "Circuit breaker closed after {seconds} s", "Polling is back to normal.", _NOTHING

    # --- push ---
    PUSH_OPENED = INFO, "Push", "Receiving signals on a socket", "Push works; the agent does not poll.", _NOTHING
    PUSH_ENDED = INFO, "Push", "Push socket ended: {why}", \
        "The agent opens another one, at a random moment if it was cut.", "If it repeats, check what is between this host and the plane."
    PUSH_FAILED = INFO, "Push", "Cannot open a push socket: {why}; polling instead", \
        "The plane answers polls, but something refuses or ends the socket; it is tried again.", \
        "Let proxies and load balancers pass WebSocket upgrades to `/apiv1/devices/self/stream`."
    PUSH_FALLBACK = WARNING, "Push", "No push for a minute: {why}; using long-poll, next try in {minutes} min", \
        "Signals arrive by long-polls, as in `poll_mode` `long-poll`.", \
        "Let proxies and load balancers pass WebSocket upgrades, or set `poll_mode` to `long-poll`."
    PUSH_NOT_OFFERED = INFO, "Push", "The control plane does not offer push: using long-poll", \
        "`poll_mode` is `push`, but the plane is older, or a proxy hides it.", "Update the control plane."
    QUESTION_ANSWERED = INFO, "Push", "Answered the control plane's question: {question}", \
        "An operator asked this agent through the plane (`plane ask`); nothing was changed.", _NOTHING
    QUESTION_REFUSED = WARNING, "Push", "Did not answer the control plane's question: {question}: {key}: {why}", \
        "The policy forbids it, the question is unknown, or its answer is too long or too late.", _NOTHING

    # --- cursor and reconcile ---
    CURSOR_RESET = WARNING, "Cursor", "Cursor reset (409 {key}): {cursor} is no longer known; full resync", \
        "This host was offline for longer than the plane keeps signals.", _NOTHING
    RESYNC_STARTED = INFO, "Resync", "Comparing this host with the plane: {why}", \
        "At start, after a 409, or periodically.", _NOTHING
    RESYNC_DONE = INFO, "Resync", "Compared with the plane: {certificates:certificate}, {changed:difference}", \
        "Without differences, this host matches the plane; otherwise they are handled next.", _NOTHING
    RESYNC_FAILED = WARNING, "Resync", "Comparison failed: {why}; next try in {delay} s", \
        "The current certificates stay in service.", _PLANE
    SERVER_BEHIND = WARNING, "Resync", "The plane is behind this host: {what}", \
        "The plane was restored from a backup, or old answers are replayed. Older versions are not installed.", \
        "After a restore, issue the newer versions again on the plane."

    # --- tokens ---
    TOKEN_EXPIRING = WARNING, "Token", "Access token expires in {seconds} seconds", \
        "Normal if a refresh follows; otherwise the refresh is late.", _NOTHING
    TOKEN_REJECTED = INFO, "Token", "Access token rejected (401 {key}): refreshing", \
        "The agent refreshes the token and retries once.", _NOTHING
    TOKEN_REFRESHED = INFO, "Token", "Token refresh successful, expires in {expires_in}s", \
        "A new access token is in use.", _NOTHING
    TOKEN_ROTATED = INFO, "Token", "Refresh token rotated and stored", "The plane rotates refresh tokens.", _NOTHING
    KEY_ROTATED = INFO, "Token", "The device has a new key, as the control plane wanted", \
        "Private keys are sealed to it from now on.", _NOTHING
    KEY_NOT_ROTATED = WARNING, "Token", "The device keeps its key for now: {why}", \
        "The control plane wants another key; the next token refresh tries again.", _PLANE
    TOKEN_REFRESH_FAILED = WARNING, "Token", "Token refresh failed: {why}; next try in {delay} s", \
        "Temporary; the tokens are kept.", _PLANE
    TOKEN_REFRESH_REFUSED = CRITICAL, "Token", "Refresh token refused: {what}; the session ends", \
        "The plane ended the registration; exit status 77. Certificates stay.", _REGISTER
    TOKEN_DISK = ERROR, "Token", "Token refresh postponed, the new token could not be stored: {why}", \
        "A refresh token is sent only if its successor can be stored.", "Free disk space or repair the disk."
    TOKEN_UNSAVED = CRITICAL, "Token", "New tokens are in memory only: {why}", \
        "The disk failed after the refresh; a restart now would lose the registration.", \
        "Repair the disk immediately; the write is retried automatically."
    PLANE_ANCHOR_STORED = INFO, "Token", "Stored the control plane's next CA: sha256={sha256}", \
        "The plane is going to use it for its own certificate; until then, both are trusted.", _NOTHING
    PLANE_ANCHOR_REPLACED = INFO, "Token", "The control plane uses its new CA; only this one is trusted now: sha256={sha256}", \
        "A connection was verified by the new CA alone; it is in state/plane-ca.pem.", _NOTHING
    PLANE_ANCHOR_REFUSED = WARNING, "Token", "Cannot take over the control plane's next CA: {why}", \
        "This host will not reach the plane after `plane tls switch`, which lists it.", \
        "Correct the reason; it is retried with each token refresh."
    CLOCK_SKEW = WARNING, "Clock", "This host's clock is {seconds} s away from the control plane's", \
        "Validity and expiry are checked against a wrong clock.", "Set the clock (chrony, systemd-timesyncd)."
    CLOCK_SET = INFO, "Clock", "This host's clock changed by {seconds} s: it was set, or the host was suspended", \
        "Expiry, windows and the times of retries are computed again; no retry waits longer because of it.", _NOTHING
    DEVICE_COPIED = ERROR, "Agent", "Another agent polls as this device", \
        "A copy of this config directory is in use; each of the two receives only some of the signals.", \
        "Stop one. To keep both, run `rm -r keys state` and `cert-ctrl register` on the copy."

    # --- challenges ---
    CHALLENGE_STARTED = INFO, "Challenge", "Answering a {kind} challenge for {name} at {where}", \
        "A certificate authority is about to check that this host serves the name.", _NOTHING
    CHALLENGE_ENDED = INFO, "Challenge", "No longer answering the {kind} challenge for {name}: {why}", \
        "The answer was withdrawn.", _NOTHING
    CHALLENGE_TROUBLE = ERROR, "Challenge", "Cannot publish or withdraw an answer to a challenge: {why}", \
        "It is retried every minute; no certificate in use is affected.", "Apply the fix that `cert-ctrl status` shows."

    # --- signals ---
    SIGNAL_PROCESSING = INFO, "Signal", "Processing: type={type}, ts={ts}", "The handler of a signal starts.", _NOTHING
    SIGNAL_DONE = INFO, "Signal", "Done: type={type}, ts={ts}, outcome={outcome}, took {ms} ms", \
        "The signal ended.", _NOTHING
    SIGNAL_FAILED = ERROR, "Signal", "Failed: type={type}, ts={ts}, attempt {attempts}: {why}; next try in {delay} s", \
        "Live files are unchanged; other signals continue.", "Fix the reason; it is retried until it succeeds."
    SIGNAL_TIMEOUT = ERROR, "Signal", "Timed out after {seconds} s: type={type}, ts={ts}", \
        "Usually a command or the plane hangs; it is retried.", "Check the command, or raise signal_timeouts."
    SIGNAL_UNKNOWN = INFO, "Signal", "Ignored: unknown type={type}, ts={ts}", \
        "The plane is newer than this agent.", "Update certctrl if you need this type."
    SIGNAL_DISABLED = INFO, "Signal", "Ignored: handler disabled, type={type}, ts={ts}", \
        "ioc_config.json disables this type.", _NOTHING
    SIGNAL_MALFORMED = WARNING, "Signal", "Malformed: type={type}, ts={ts}: {why}", \
        "It is reported as failed; other signals continue.", "Report it to the operator of the plane."
    SIGNAL_SUPERSEDED = DEBUG, "Signal", "Superseded by a newer signal: type={type}, ts={ts}", \
        "Reported as superseded.", _NOTHING
    SIGNAL_QUARANTINED = ERROR, "Signal", "Quarantined after {attempts} attempts: type={type}, ts={ts}: {why}; next try in {delay} s", \
        "Retried as rarely as the host is compared with the plane; sooner for a new version or on request.", "Remove the cause, then run `cert-ctrl apply --now`."
    INSTALL_FETCHING = INFO, "Signal", "Fetching install config: config_id={config_id}, version={version}", \
        "The install config of this host may have changed.", _NOTHING
    INSTALL_APPLIED = INFO, "Signal", "Install config applied successfully: version={version}, {changed} changed", \
        "The install config is active.", _NOTHING
    INSTALL_UNCHANGED = INFO, "Signal", "Install config unchanged: version={version}", "No change.", _NOTHING
    INSTALL_REFUSED = ERROR, "Signal", "Install config refused ({reason}): {what}; version {version} stays", \
        "Its hash, version or contents are invalid; the old one stays active.", "Correct it on the plane."
    CERT_UPDATED = INFO, "Signal", "Certificate {cert_id} updated: {name}, serial={serial}", \
        "Deployed, and verified at the endpoints.", _NOTHING
    CERT_UNCHANGED = INFO, "Signal", "Certificate {cert_id} unchanged: {name}", \
        "This certificate is already deployed.", _NOTHING
    CERT_STAGED = INFO, "Signal", "Certificate {cert_id} staged: {name} {what}", \
        "Checked and on disk; switched in the window, by `cert-ctrl apply --now`, or once a hold is released.", _NOTHING
    CERT_REFUSED = ERROR, "Signal", "Certificate {cert_id} refused ({reason}): {what}", \
        "The material failed the checks; the old certificate stays.", "Issue it again on the plane."
    CERT_PENDING = INFO, "Signal", "Certificate {cert_id} is not ready: {what}; valid in {delay} s", \
        "The plane is still encrypting it, or its validity starts later.", _NOTHING
    BATCH_INCOMPLETE = ERROR, "Signal", "Certificate {cert_id} is ready and {why}", \
        "The previous ones of the batch stay in use; all are switched once the missing ones are ready.", \
        "Fix the reason, or renew the certificates together again on the plane."
    CERT_REVOKED = CRITICAL, "Signal", "Certificate {cert_id} revoked: {name}; {done}", \
        "Confirmed by the plane; handled according to `on_revoked` in policy.json.", "Issue a new one on the plane."
    CERT_REVOCATION_UNCONFIRMED = WARNING, "Signal", "Certificate {cert_id}: revocation not confirmed, kept: {why}", \
        "A revocation takes effect only if the plane confirms it.", "Check the certificate's status on the plane."
    CERT_UNASSIGNING = WARNING, "Signal", "Certificate {cert_id} unassigned: {name}; taken out of use in {delay} s", \
        "The plane confirmed that it no longer assigns it; `unassign_grace` in policy.json runs.", \
        "To keep it, assign it again on the plane."
    CERT_UNASSIGNED = INFO, "Signal", "Certificate {cert_id} unassigned: {name}; {done}", \
        "The plane no longer assigns it; handled according to `on_unassigned` in policy.json.", _NOTHING
    CERT_FORGOTTEN = WARNING, "Signal", "Certificate {cert_id} forgotten: {name}; {done}", \
        "By `cert-ctrl forget`.", _NOTHING
    CSR_SENT = INFO, "Signal", "Certificate {cert_id}: made a key for {name}, sent the signing request of order {order_id}", \
        "The key stays on this host; the certificate arrives once its issuer has signed it.", _NOTHING
    HOST_KEY_LOST = WARNING, "Signal", "Certificate {cert_id}: {why}; requested a new certificate with a new key", \
        "A key that was made here was deleted or damaged; the previous certificate stays in service.", \
        "Find out what removed files below keys/staged or certs/."
    HOST_KEY_REMOVED = INFO, "Signal", "Removed the key of order {order_id} for {name} (certificate {cert_id})", \
        "The order ended without a certificate, or was replaced by a newer one.", _NOTHING
    CA_FORGOTTEN = WARNING, "Signal", "CA {ca_id} forgotten: {done}", "By `cert-ctrl forget`.", _NOTHING
    PLANE_CHANGED = WARNING, "Resync", "Another control plane or device: {count:certificate} not from {server}", \
        "They stay in use; those that the plane lists under the same id and name are its again.", \
        "Assign them there, or run `cert-ctrl forget --domain D`."
    CA_IMPORTED = INFO, "Signal", "CA {ca_id} imported into the trust store: {name}", \
        "The plane assigned it to this device.", _NOTHING
    CA_REMOVED = INFO, "Signal", "CA {ca_id} removed from the trust store: {name}", \
        "The plane no longer assigns it to this device.", _NOTHING

    CERTS_LOST = ERROR, "Resync", "Deployed, but not on disk, or changed there: {names}", \
        "Files below certs/ were deleted or changed; they are fetched again.", "Find out what changed them."
    NAMES_RESTORED = WARNING, "Resync", "Restored public names that did not lead to their certificates: {names}", \
        "Links below certs/ were deleted or replaced.", "Find out what changed them."

    # --- deployment ---
    ROLLED_BACK = ERROR, "Install", "Rolled back {name}: {why}; next try in {delay} s", \
        "The new certificate failed its reload or probe; the previous one is in service again.", "Fix the reason."
    STILL_FAILS = WARNING, "Install", "{name} still fails: {why}; next try in {delay} s", \
        "An install item failed again; the certificate itself is unchanged.", \
        "Fix the reason; then run `cert-ctrl apply`, or wait for the next try."
    ROLLED_BACK_BY_HAND = WARNING, "Install", "{name} rolled back to {generation} and held there", \
        "By `cert-ctrl rollback`; renewals are only staged.", "`cert-ctrl rollback --domain D --release` ends it."
    TRUST_RESET = WARNING, "Install", "Forgot versions of {configs} install configs and pins of {scripts} scripts", \
        "By `cert-ctrl trust reset`; the next version or script is accepted as the first.", _NOTHING
    RELEASED = INFO, "Install", "{name} is no longer held", "Renewals are switched again.", _NOTHING
    DISK_FAILED = ERROR, "Disk", "Cannot write {path}: {why}", \
        "Polling continues; work that needs the disk waits.", "Free space, or repair or remount the disk."
    DISK_RECOVERED = INFO, "Disk", "Disk writes succeed again", "Resolved.", _NOTHING

    # --- acks, expiry, control, metrics ---
    ACKS_SENT = DEBUG, "Ack", "{count:outcome} reported", "The plane accepted them.", _NOTHING
    ACKS_FAILED = WARNING, "Ack", "{count:outcome} not reported: {why}", "Kept on disk, sent later.", _PLANE
    ACKS_UNSUPPORTED = INFO, "Ack", "This control plane does not accept acks ({status}); none are sent", \
        "The plane is older. Logged once per run.", _NOTHING
    ACKS_DROPPED = WARNING, "Ack", "{count:oldest outcome} dropped: the queue is full", \
        "The plane has not accepted acks for a long time.", _PLANE
    SERVING_WRONG = WARNING, "Serving", "Certificate {cert_id} ({name}) is not served: {what}", \
        "An endpoint was looked at between deployments, twice, and did not serve the deployed certificate.", \
        "Check the service and which file it reads; restart it."
    SERVING_RIGHT = INFO, "Serving", "Certificate {cert_id} ({name}) is served again", \
        "Its endpoints serve the deployed certificate.", _NOTHING
    EXPIRY_WARNING = WARNING, "Expiry", "Certificate {cert_id} ({name}) expires in {left}", \
        "Less than the configured share of its lifetime is left.", "Check whether the plane renews it."
    EXPIRY_RENEWAL_ASKED = INFO, "Expiry", "Certificate {cert_id} ({name}): renewal requested", \
        "The agent asked the plane to renew it.", _NOTHING
    EXPIRY_RENEWAL_FAILED = WARNING, "Expiry", "Certificate {cert_id} ({name}): renewal request failed: {why}", \
        "Requested again later.", _PLANE
    EXPIRED = CRITICAL, "Expiry", "Certificate {cert_id} ({name}) has expired", \
        "Clients reject it.", "Request a renewal: `cert-ctrl renew --domain D`."
    CONTROL_REFUSED = WARNING, "Control", "Request refused from uid={uid}, pid={pid}: {why}", \
        "Only root and the agent's user may use the control socket.", "Find out which process sent it."
    METRICS_LISTENING = INFO, "Metrics", "Metrics at http://{address}/metrics", "metrics_listen is set.", _NOTHING
    METRICS_FAILED = WARNING, "Metrics", "Metrics disabled: {why}", \
        "The address or file cannot be used; everything else continues.", \
        "Correct the setting, then restart the daemon."

    def __init__(self, level: int, category: str, text: str, meaning: str, action: str) -> None:
        self.level = level
        self.category = category
        self.text = text
        self.meaning = meaning
        self.action = action

    @property
    def key(self) -> str:
        """The stable name of the line in JSON logs and ``docs/logs.md``."""
        return self.name.lower().replace("_", "-")

    def fields(self) -> tuple[str, ...]:
        """Return the names of the fields in the text, in order."""
        return tuple(name for _, name, _, _ in Formatter().parse(self.text) if name)
# fmt: on


@cache
def _parts(text: str) -> tuple[tuple[str, str | None, str], ...]:
    """Return a text in parts: literal text, the name of the field after it, and its format."""
    return tuple((literal, name, form or "") for literal, name, form, _ in Formatter().parse(text))


def filled(text: str, fields: Mapping[str, Any]) -> str:
    """Return a text with its fields; a format of several letters is the noun of a number."""
    words: list[str] = []
    for literal, name, form in _parts(text):
        words.append(literal)
        if name is not None:
            value = fields.get(name, "?")
            is_noun = len(form) > 1 and form[0].isalpha()
            words.append(counted(value, form) if is_noun else format(value, form))
    return "".join(words)


def log_line(log: logging.Logger, line: Line, /, routine: bool = False, **fields: Any) -> None:
    """Write one line to the child of ``log`` that is named after the line's category.

    ``routine``: at level DEBUG instead of the line's level.

    ``log`` is the logger ``certctrl`` or that of the category (``certctrl.Poll``). The formatter escapes values and
    masks secrets; still, never pass a secret.
    """
    logger = log if log.name.rpartition(".")[2] == line.category else log.getChild(line.category)
    level = DEBUG if routine else line.level
    if logger.isEnabledFor(level):  # the record is made here, because `Logger.log` looks up the file of its caller
        extra = {"line_key": line.key, "line_fields": fields}
        logger.handle(logger.makeRecord(logger.name, level, "", 0, filled(line.text, fields), (), None, extra=extra))
