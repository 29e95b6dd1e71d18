"""The first scripts of the schema: devices, certificates, issuers and their challenges."""

from __future__ import annotations

FIRST_SCRIPTS = (
    """
CREATE TABLE secrets (name TEXT PRIMARY KEY, value_enc BLOB NOT NULL) WITHOUT ROWID;

CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, created_at REAL NOT NULL);

CREATE TABLE devices (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  user_id INTEGER NOT NULL REFERENCES users(id),
  device_public_id TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('expected', 'active', 'revoked')),
  name TEXT NOT NULL DEFAULT '', platform TEXT NOT NULL DEFAULT '', model TEXT NOT NULL DEFAULT '',
  app_version TEXT NOT NULL DEFAULT '', user_agent TEXT NOT NULL DEFAULT '',
  public_key BLOB, key_fingerprint TEXT NOT NULL DEFAULT '',
  session INTEGER NOT NULL DEFAULT 0,
  created_at REAL NOT NULL, registered_at REAL, revoked_at REAL, revoke_reason TEXT NOT NULL DEFAULT '',
  last_seen_at REAL, last_address TEXT NOT NULL DEFAULT '', last_cursor TEXT NOT NULL DEFAULT '',
  UNIQUE (user_id, device_public_id)
);

CREATE TABLE refresh_tokens (
  id TEXT PRIMARY KEY, secret_hash TEXT NOT NULL, device_id INTEGER NOT NULL REFERENCES devices(id),
  session INTEGER NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX refresh_tokens_device ON refresh_tokens(device_id);

CREATE TABLE grants (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  device_code_hash TEXT NOT NULL UNIQUE, user_code TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'denied', 'used')),
  name TEXT NOT NULL DEFAULT '', platform TEXT NOT NULL DEFAULT '', device_public_id TEXT NOT NULL DEFAULT '',
  user_agent TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '', scopes TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, expires_at REAL NOT NULL, interval REAL NOT NULL, polled_at REAL,
  user_id INTEGER REFERENCES users(id), registration_hash TEXT UNIQUE, registration_expires_at REAL
);
CREATE INDEX grants_expiry ON grants(expires_at);

CREATE TABLE enrolment_tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  token_hash TEXT NOT NULL UNIQUE, label TEXT NOT NULL, max_uses INTEGER, uses INTEGER NOT NULL DEFAULT 0,
  created_at REAL NOT NULL, expires_at REAL NOT NULL, ended_at REAL
);
CREATE TABLE enrolments (
  token_id INTEGER NOT NULL REFERENCES enrolment_tokens(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  PRIMARY KEY (token_id, device_id)
) WITHOUT ROWID;

CREATE TABLE page_sessions (id_hash TEXT PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID;

CREATE TABLE certificates (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  domain_name TEXT NOT NULL, sans TEXT NOT NULL, key_type TEXT NOT NULL, validity_seconds INTEGER NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
  serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL, not_before REAL NOT NULL, not_after REAL NOT NULL,
  certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, private_key_enc BLOB NOT NULL,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, revoked_at REAL, revoke_reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX certificates_user ON certificates(user_id);
CREATE TABLE issues (
  id INTEGER PRIMARY KEY AUTOINCREMENT, cert_id INTEGER NOT NULL REFERENCES certificates(id),
  action TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', device_id INTEGER REFERENCES devices(id),
  serial_number TEXT NOT NULL DEFAULT '', status TEXT NOT NULL, at REAL NOT NULL
);
CREATE INDEX issues_certificate ON issues(cert_id, id);
CREATE TABLE assignments (
  device_id INTEGER NOT NULL REFERENCES devices(id), cert_id INTEGER NOT NULL REFERENCES certificates(id),
  assigned_at REAL NOT NULL, PRIMARY KEY (device_id, cert_id)
) WITHOUT ROWID;
CREATE INDEX assignments_certificate ON assignments(cert_id);

CREATE TABLE authorities (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  name TEXT NOT NULL, serial_number TEXT NOT NULL, certificate_pem TEXT NOT NULL, not_after REAL NOT NULL,
  created_at REAL NOT NULL
);
CREATE TABLE authority_assignments (
  device_id INTEGER NOT NULL REFERENCES devices(id), ca_id INTEGER NOT NULL REFERENCES authorities(id),
  assigned_at REAL NOT NULL, PRIMARY KEY (device_id, ca_id)
) WITHOUT ROWID;

CREATE TABLE install_configs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL UNIQUE REFERENCES devices(id),
  version INTEGER NOT NULL, installs_json TEXT NOT NULL, installs_hash_b64 TEXT NOT NULL, updated_at REAL NOT NULL
);

CREATE TABLE streams (
  device_id INTEGER PRIMARY KEY REFERENCES devices(id),
  last_ms INTEGER NOT NULL, last_seq INTEGER NOT NULL, floor_ms INTEGER NOT NULL, floor_seq INTEGER NOT NULL,
  length INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE signals (
  device_id INTEGER NOT NULL, ms INTEGER NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL, ref TEXT NOT NULL,
  PRIMARY KEY (device_id, ms, seq)
) WITHOUT ROWID;

CREATE TABLE outcomes (
  device_id INTEGER NOT NULL REFERENCES devices(id), signal TEXT NOT NULL, type TEXT NOT NULL, ts_ms INTEGER NOT NULL,
  ref TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '', deployed TEXT NOT NULL DEFAULT '[]',
  duration_ms INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL,
  PRIMARY KEY (device_id, signal)
) WITHOUT ROWID;
CREATE INDEX outcomes_age ON outcomes(device_id, at);
""",
    """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO settings SELECT 'unproven_keys', 'allowed' WHERE EXISTS (SELECT 1 FROM users);

ALTER TABLE grants ADD COLUMN decided_at REAL;
CREATE INDEX devices_public_id ON devices(device_public_id);
""",
    """
INSERT INTO settings SELECT 'tls_ca', 'shared' WHERE EXISTS (SELECT 1 FROM users);
ALTER TABLE devices ADD COLUMN anchor_sha256 TEXT NOT NULL DEFAULT '';
""",
    """
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, job_key TEXT NOT NULL, due REAL NOT NULL,
  owner TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0, UNIQUE (kind, job_key)
);
CREATE INDEX jobs_due ON jobs(kind, due);
""",
    """
CREATE TABLE limits (
  kind TEXT NOT NULL, caller TEXT NOT NULL, level REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (kind, caller)
) WITHOUT ROWID;
CREATE INDEX limits_age ON limits(kind, at);
""",
    """
ALTER TABLE devices ADD COLUMN instance TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN earlier_instances TEXT NOT NULL DEFAULT '{}';
ALTER TABLE devices ADD COLUMN copies_at REAL;
""",
    """
CREATE TABLE planes (
  name TEXT PRIMARY KEY, host TEXT NOT NULL, address TEXT NOT NULL, version TEXT NOT NULL,
  started_at REAL NOT NULL, seen_at REAL NOT NULL, polls INTEGER NOT NULL, connections INTEGER NOT NULL
) WITHOUT ROWID;
""",
    """
ALTER TABLE certificates ADD COLUMN issuer TEXT NOT NULL DEFAULT 'builtin';
ALTER TABLE certificates ADD COLUMN key_origin TEXT NOT NULL DEFAULT 'plane';
ALTER TABLE certificates ADD COLUMN profile TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN must_staple INTEGER NOT NULL DEFAULT 0;
ALTER TABLE certificates ADD COLUMN reuse_key INTEGER NOT NULL DEFAULT 0;
ALTER TABLE certificates ADD COLUMN renew_at REAL;
ALTER TABLE certificates ADD COLUMN template_id INTEGER;
ALTER TABLE certificates ADD COLUMN template_device_id INTEGER;
ALTER TABLE certificates ADD COLUMN public_key_sha256 TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN revoke_code TEXT NOT NULL DEFAULT '';
ALTER TABLE certificates ADD COLUMN issued_by TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN features TEXT NOT NULL DEFAULT '';
CREATE INDEX certificates_renewal ON certificates(renew_at);
CREATE INDEX certificates_template ON certificates(template_id);
CREATE INDEX certificates_key ON certificates(public_key_sha256);

CREATE TABLE issuers (
  name TEXT PRIMARY KEY, kind TEXT NOT NULL, settings TEXT NOT NULL DEFAULT '{}', secrets_enc BLOB,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, used_at REAL,
  problem TEXT NOT NULL DEFAULT '', fix TEXT NOT NULL DEFAULT '', problem_at REAL,
  blocked_until REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE issuer_rules (domain TEXT PRIMARY KEY, issuer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE issuer_items (
  issuer TEXT NOT NULL, name TEXT NOT NULL, value_enc BLOB NOT NULL, PRIMARY KEY (issuer, name)
) WITHOUT ROWID;

CREATE TABLE orders (
  id INTEGER PRIMARY KEY AUTOINCREMENT, cert_id INTEGER NOT NULL REFERENCES certificates(id), issuer TEXT NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('issue', 'renew', 'replace')), reason TEXT NOT NULL DEFAULT '',
  device_id INTEGER REFERENCES devices(id),
  state TEXT NOT NULL CHECK (state IN ('csr_wanted', 'ready', 'done', 'failed', 'blocked')),
  csr_der BLOB, key_enc BLOB, memo_enc BLOB, attempts INTEGER NOT NULL DEFAULT 0,
  problem TEXT NOT NULL DEFAULT '', fix TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, updated_at REAL NOT NULL, next_at REAL, finished_at REAL
);
CREATE UNIQUE INDEX orders_open ON orders(cert_id) WHERE state IN ('csr_wanted', 'ready', 'blocked');
CREATE INDEX orders_certificate ON orders(cert_id, id);

CREATE TABLE revoked_serials (
  serial_number TEXT PRIMARY KEY, cert_id INTEGER, reason TEXT NOT NULL DEFAULT '', revoked_at REAL NOT NULL,
  not_after REAL NOT NULL, issuer_key_id TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
INSERT INTO revoked_serials SELECT serial_number, id, '', revoked_at, not_after, '' FROM certificates
  WHERE status = 'revoked' AND revoked_at IS NOT NULL;
CREATE TABLE crls (
  issuer_key_id TEXT PRIMARY KEY, number INTEGER NOT NULL, der BLOB NOT NULL, this_update REAL NOT NULL,
  next_update REAL NOT NULL, outdated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE former_certificates (
  serial_number TEXT NOT NULL, cert_id INTEGER NOT NULL REFERENCES certificates(id), issuer TEXT NOT NULL,
  certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, not_after REAL NOT NULL, replaced_at REAL NOT NULL,
  PRIMARY KEY (cert_id, serial_number)
) WITHOUT ROWID;
CREATE TABLE revocations (
  serial_number TEXT NOT NULL, cert_id INTEGER NOT NULL REFERENCES certificates(id), issuer TEXT NOT NULL,
  code TEXT NOT NULL, certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, not_after REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'due', 'done', 'manual')), attempts INTEGER NOT NULL DEFAULT 0,
  problem TEXT NOT NULL DEFAULT '', fix TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL, next_at REAL, done_at REAL,
  PRIMARY KEY (cert_id, serial_number)
) WITHOUT ROWID;
CREATE TABLE http_challenges (
  token TEXT PRIMARY KEY, key_authorization TEXT NOT NULL, identifier TEXT NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE host_challenges (
  device_id INTEGER NOT NULL REFERENCES devices(id), token TEXT NOT NULL, kind TEXT NOT NULL, order_id INTEGER,
  identifier TEXT NOT NULL, key_authorization TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
  sent_ms INTEGER NOT NULL DEFAULT 0, ready_at REAL, problem TEXT NOT NULL DEFAULT '', PRIMARY KEY (device_id, token)
) WITHOUT ROWID;
CREATE TABLE known_keys (
  public_key_sha256 TEXT PRIMARY KEY, cert_id INTEGER NOT NULL, device_id INTEGER, at REAL NOT NULL
) WITHOUT ROWID;
""",
    """
CREATE TABLE plane_names (
  plane TEXT NOT NULL, name TEXT NOT NULL, seen_at REAL NOT NULL, PRIMARY KEY (plane, name)
) WITHOUT ROWID;
CREATE TABLE published_proofs (
  answer TEXT PRIMARY KEY, issuer TEXT NOT NULL, kind TEXT NOT NULL, identifier TEXT NOT NULL, token TEXT NOT NULL,
  key_authorization TEXT NOT NULL, due REAL NOT NULL, busy_until REAL NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, failed_at REAL, problem TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX published_proofs_due ON published_proofs(due);
CREATE TABLE proof_holds (
  answer TEXT NOT NULL, holder TEXT NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY (answer, holder)
) WITHOUT ROWID;
""",
    """
ALTER TABLE enrolment_tokens ADD COLUMN tags TEXT NOT NULL DEFAULT '';
CREATE TABLE device_tags (
  device_id INTEGER NOT NULL REFERENCES devices(id), tag TEXT NOT NULL, PRIMARY KEY (device_id, tag)
) WITHOUT ROWID;
CREATE INDEX device_tags_tag ON device_tags(tag, device_id);
""",
    """
ALTER TABLE orders ADD COLUMN refused_requests INTEGER NOT NULL DEFAULT 0;
""",
)
"""Scripts of `certctrl.plane.storage.schema`, which has those after them."""
