"""The plane's tables. Times are seconds since the epoch; ``*_enc`` columns are sealed by the keyring."""

from __future__ import annotations

import re

from certctrl.errors import ConfigError
from certctrl.plane.storage.first_scripts import FIRST_SCRIPTS

SCHEMA = (
    *FIRST_SCRIPTS,
    """
CREATE TABLE sockets (
  device_id INTEGER PRIMARY KEY REFERENCES devices(id), name TEXT NOT NULL, plane TEXT NOT NULL,
  plane_started_at REAL NOT NULL, opened_at REAL NOT NULL
);
CREATE TABLE questions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL REFERENCES devices(id), question TEXT NOT NULL,
  asked_by TEXT NOT NULL, asked_at REAL NOT NULL, expires_at REAL NOT NULL, result TEXT NOT NULL DEFAULT '',
  answer TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', ended_at REAL
);
CREATE INDEX questions_device ON questions(device_id, id);
CREATE INDEX questions_open ON questions(expires_at) WHERE result = '';
""",
    """
ALTER TABLE orders ADD COLUMN batch TEXT NOT NULL DEFAULT '';
ALTER TABLE orders ADD COLUMN issued_enc BLOB;
ALTER TABLE orders ADD COLUMN issued_key_enc BLOB;
CREATE INDEX orders_batch ON orders(batch) WHERE batch != '';
ALTER TABLE certificates ADD COLUMN together TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN batch TEXT NOT NULL DEFAULT '';
""",
    """
CREATE TABLE profiles (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id), name TEXT NOT NULL,
  version INTEGER NOT NULL, UNIQUE (user_id, name)
);
CREATE TABLE profile_versions (
  profile_id INTEGER NOT NULL REFERENCES profiles(id), version INTEGER NOT NULL, devices TEXT NOT NULL,
  position INTEGER NOT NULL, items_json TEXT NOT NULL, note TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL,
  PRIMARY KEY (profile_id, version)
) WITHOUT ROWID;
CREATE TABLE profile_pins (
  profile_id INTEGER NOT NULL REFERENCES profiles(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  version INTEGER NOT NULL, PRIMARY KEY (profile_id, device_id)
) WITHOUT ROWID;
ALTER TABLE install_configs ADD COLUMN own_json TEXT NOT NULL DEFAULT '';
ALTER TABLE install_configs ADD COLUMN merged_hash_b64 TEXT NOT NULL DEFAULT '';
ALTER TABLE install_configs ADD COLUMN problem TEXT NOT NULL DEFAULT '';
ALTER TABLE install_configs ADD COLUMN due INTEGER NOT NULL DEFAULT 0;
CREATE INDEX install_configs_due ON install_configs(device_id) WHERE due != 0;
CREATE TABLE rollouts (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  profile_id INTEGER NOT NULL REFERENCES profiles(id), version INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'halted', 'done', 'aborted')),
  rules TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', waits TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, updated_at REAL NOT NULL, finished_at REAL
);
CREATE UNIQUE INDEX rollouts_open ON rollouts(profile_id) WHERE state IN ('running', 'paused', 'halted');
CREATE INDEX rollouts_user ON rollouts(user_id, id);
CREATE TABLE rollout_devices (
  rollout_id INTEGER NOT NULL REFERENCES rollouts(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  wave INTEGER NOT NULL, serial_group TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL CHECK (state IN ('held', 'skipped', 'released', 'proven', 'failed', 'accepted')),
  config_version INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '', released_at REAL,
  settled_at REAL NOT NULL DEFAULT 0, PRIMARY KEY (rollout_id, device_id)
) WITHOUT ROWID;
CREATE INDEX rollout_devices_device ON rollout_devices(device_id);
""",
    """
CREATE TABLE operators (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, role TEXT NOT NULL, subject TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, disabled_at REAL, deleted_at REAL
);
CREATE UNIQUE INDEX operators_name ON operators(name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX operators_subject ON operators(subject) WHERE deleted_at IS NULL AND subject != '';
CREATE TABLE operator_tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, operator_id INTEGER NOT NULL REFERENCES operators(id), name TEXT NOT NULL,
  role TEXT NOT NULL, token_hash TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, expires_at REAL NOT NULL,
  revoked_at REAL, last_used_at REAL, last_address TEXT NOT NULL DEFAULT ''
);
CREATE INDEX operator_tokens_operator ON operator_tokens(operator_id);
CREATE TABLE operator_sessions (
  id_hash TEXT PRIMARY KEY, operator_id INTEGER NOT NULL REFERENCES operators(id),
  token_id INTEGER REFERENCES operator_tokens(id), expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, via TEXT NOT NULL DEFAULT '',
  address TEXT NOT NULL DEFAULT '', action TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX audit_age ON audit(at);
CREATE TABLE audit_objects (
  id INTEGER PRIMARY KEY AUTOINCREMENT, audit_id INTEGER NOT NULL REFERENCES audit(id), kind TEXT NOT NULL,
  object_id TEXT NOT NULL, name TEXT NOT NULL DEFAULT '', before_json TEXT NOT NULL, after_json TEXT NOT NULL
);
CREATE INDEX audit_objects_entry ON audit_objects(audit_id);
CREATE INDEX audit_objects_object ON audit_objects(kind, object_id);
""",
    """
ALTER TABLE outcomes ADD COLUMN step TEXT NOT NULL DEFAULT '';
ALTER TABLE outcomes ADD COLUMN reason TEXT NOT NULL DEFAULT '';
CREATE TABLE deployments (
  device_id INTEGER NOT NULL REFERENCES devices(id), kind TEXT NOT NULL, object_id INTEGER NOT NULL,
  outcome TEXT NOT NULL, step TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, failing INTEGER NOT NULL,
  attempts INTEGER NOT NULL, since REAL NOT NULL, failing_since REAL, at REAL NOT NULL,
  serial_number TEXT NOT NULL, served_at REAL, PRIMARY KEY (device_id, kind, object_id)
) WITHOUT ROWID;
CREATE INDEX deployments_failing ON deployments(device_id) WHERE failing = 1;
INSERT INTO settings SELECT 'outcomes_to_note', '0' WHERE EXISTS (SELECT 1 FROM outcomes);
""",
    """
ALTER TABLE devices ADD COLUMN renamed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN decommissioned_at REAL;
ALTER TABLE devices ADD COLUMN key_wanted_at REAL;
ALTER TABLE devices ADD COLUMN former_seen_at REAL;
ALTER TABLE devices ADD COLUMN former_address TEXT NOT NULL DEFAULT '';
CREATE TABLE device_replacements (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL REFERENCES devices(id),
  token_hash TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, expires_at REAL NOT NULL, ended_at REAL, used_at REAL,
  new_key BLOB, former_key BLOB, former_public_id TEXT NOT NULL DEFAULT ''
);
CREATE INDEX device_replacements_device ON device_replacements(device_id, id);
""",
    """
CREATE TABLE endpoints (
  device_id INTEGER NOT NULL REFERENCES devices(id), cert_id INTEGER NOT NULL REFERENCES certificates(id),
  endpoint TEXT NOT NULL, deployed TEXT NOT NULL, serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL,
  not_after REAL, reason TEXT NOT NULL, since REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (device_id, cert_id, endpoint)
) WITHOUT ROWID;
CREATE INDEX endpoints_wrong ON endpoints(device_id, cert_id) WHERE reason != '';
""",
    """
CREATE TABLE alert_channels (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, settings TEXT NOT NULL,
  secrets_enc BLOB NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL
);
CREATE TABLE alert_groups (
  channel_id INTEGER NOT NULL REFERENCES alert_channels(id), name TEXT NOT NULL, state TEXT NOT NULL,
  PRIMARY KEY (channel_id, name)
) WITHOUT ROWID;
CREATE TABLE alert_messages (
  id INTEGER PRIMARY KEY AUTOINCREMENT, channel_id INTEGER NOT NULL REFERENCES alert_channels(id),
  group_name TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('due', 'sent', 'dead')), attempts INTEGER NOT NULL DEFAULT 0,
  problem TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL, retry_from REAL NOT NULL, next_at REAL, ended_at REAL
);
CREATE INDEX alert_messages_channel ON alert_messages(channel_id, id);
CREATE INDEX alert_messages_due ON alert_messages(channel_id, group_name, id) WHERE state = 'due';
CREATE TABLE alert_problems (
  plane TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, what TEXT NOT NULL, since REAL NOT NULL,
  seen_at REAL NOT NULL, PRIMARY KEY (plane, name)
) WITHOUT ROWID;
""",
    """
CREATE TABLE held_certificates (
  cert_id INTEGER NOT NULL REFERENCES certificates(id), serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL,
  not_before REAL NOT NULL, not_after REAL NOT NULL, certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL,
  private_key_enc BLOB NOT NULL, public_key_sha256 TEXT NOT NULL, batch TEXT NOT NULL, updated_at REAL NOT NULL,
  PRIMARY KEY (cert_id, serial_number)
) WITHOUT ROWID;
CREATE TABLE certificate_holds (
  cert_id INTEGER NOT NULL REFERENCES certificates(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  serial_number TEXT NOT NULL, rollout_id INTEGER NOT NULL, PRIMARY KEY (cert_id, device_id)
) WITHOUT ROWID;
CREATE INDEX certificate_holds_rollout ON certificate_holds(rollout_id);
CREATE TABLE rollout_certificates (
  rollout_id INTEGER NOT NULL, cert_id INTEGER NOT NULL REFERENCES certificates(id), serial_number TEXT NOT NULL,
  PRIMARY KEY (rollout_id, cert_id)
) WITHOUT ROWID;
--sqlite
CREATE TABLE rollouts_of_all (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  profile_id INTEGER REFERENCES profiles(id), version INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'halted', 'done', 'aborted')),
  rules TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', waits TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, updated_at REAL NOT NULL, finished_at REAL
);
INSERT INTO rollouts_of_all SELECT * FROM rollouts;
CREATE TABLE rollout_devices_of_all (
  rollout_id INTEGER NOT NULL REFERENCES rollouts_of_all(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  wave INTEGER NOT NULL, serial_group TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL CHECK (state IN ('held', 'skipped', 'released', 'proven', 'failed', 'accepted')),
  config_version INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '', released_at REAL,
  settled_at REAL NOT NULL DEFAULT 0, PRIMARY KEY (rollout_id, device_id)
) WITHOUT ROWID;
INSERT INTO rollout_devices_of_all SELECT * FROM rollout_devices;
DROP TABLE rollout_devices;
DROP TABLE rollouts;
ALTER TABLE rollouts_of_all RENAME TO rollouts;
ALTER TABLE rollout_devices_of_all RENAME TO rollout_devices;
CREATE UNIQUE INDEX rollouts_open ON rollouts(profile_id) WHERE state IN ('running', 'paused', 'halted');
CREATE INDEX rollouts_user ON rollouts(user_id, id);
CREATE INDEX rollout_devices_device ON rollout_devices(device_id);
--postgres
--ALTER TABLE rollouts ALTER COLUMN profile_id DROP NOT NULL;
--end
""",
    "ALTER TABLE operator_tokens ADD COLUMN tags TEXT NOT NULL DEFAULT '';",
    """
ALTER TABLE rollouts ADD COLUMN forward INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rollout_certificates ADD COLUMN together TEXT NOT NULL DEFAULT '';
""",
    """
ALTER TABLE alert_messages ADD COLUMN dismissed_at REAL;
ALTER TABLE operators ADD COLUMN signed_in_at REAL;
""",
)
"""One script per schema version, oldest first, in SQLite's dialect; the database counts those that have run.

A new database runs all of them while it is empty, so a script recognises an older data directory by its rows. Scripts
only add: the release before them keeps working on the same database. One that does not starts a new `MAJOR`.
"""

MAJOR = 0
"""Version of the schema that a release has to know to use the database."""
_SCRIPTS_PER_MAJOR = 100

_POSTGRES = (
    (r"(?s)--sqlite\n.*?--postgres\n--(.*?)\n--end\n", r"\1\n"),  # where SQLite has to make a table again
    (r"INTEGER PRIMARY KEY AUTOINCREMENT", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (r" WITHOUT ROWID", ""),
    (r"\bREAL\b", "DOUBLE PRECISION"),  # PostgreSQL's REAL has four bytes: times would be off by seconds
    (r"\bINTEGER\b", "BIGINT"),
    (r"\bBLOB\b", "BYTEA"),
)


def postgres_script(script: str) -> str:
    """Return a script in PostgreSQL's dialect."""
    for pattern, word in _POSTGRES:
        script = re.sub(pattern, word, script)
    return script


def scripts_to_run(version: int, database: str) -> tuple[str, ...]:
    """Return the scripts that a database of this version lacks, and none if it is of a newer release.

    Raises ConfigError if only a newer release can use it.
    """
    if version // _SCRIPTS_PER_MAJOR > MAJOR:
        raise ConfigError(
            f"was written by a newer release (schema {version}, this one knows {len(SCHEMA)})",
            file=database,
            fix="run the newer release",
        )
    return SCHEMA[version:]
