BEGIN TRANSACTION;
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
, dismissed_at REAL);
CREATE TABLE alert_problems (
  plane TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, what TEXT NOT NULL, since REAL NOT NULL,
  seen_at REAL NOT NULL, PRIMARY KEY (plane, name)
) WITHOUT ROWID;
CREATE TABLE assignments (
  device_id INTEGER NOT NULL REFERENCES devices(id), cert_id INTEGER NOT NULL REFERENCES certificates(id),
  assigned_at REAL NOT NULL, PRIMARY KEY (device_id, cert_id)
) WITHOUT ROWID;
INSERT INTO "assignments" VALUES(1,1,1790000000.0);
INSERT INTO "assignments" VALUES(1,2,1790000000.0);
INSERT INTO "assignments" VALUES(1,3,1790000000.0);
INSERT INTO "assignments" VALUES(1,4,1790000000.0);
INSERT INTO "assignments" VALUES(1,5,1790000000.0);
CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL, via TEXT NOT NULL DEFAULT '',
  address TEXT NOT NULL DEFAULT '', action TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '{}'
);
CREATE TABLE audit_objects (
  id INTEGER PRIMARY KEY AUTOINCREMENT, audit_id INTEGER NOT NULL REFERENCES audit(id), kind TEXT NOT NULL,
  object_id TEXT NOT NULL, name TEXT NOT NULL DEFAULT '', before_json TEXT NOT NULL, after_json TEXT NOT NULL
);
CREATE TABLE authorities (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  name TEXT NOT NULL, serial_number TEXT NOT NULL, certificate_pem TEXT NOT NULL, not_after REAL NOT NULL,
  created_at REAL NOT NULL
);
INSERT INTO "authorities" VALUES(1,1,'private 0','07','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',2263040000.0,1790000001.0);
CREATE TABLE authority_assignments (
  device_id INTEGER NOT NULL REFERENCES devices(id), ca_id INTEGER NOT NULL REFERENCES authorities(id),
  assigned_at REAL NOT NULL, PRIMARY KEY (device_id, ca_id)
) WITHOUT ROWID;
INSERT INTO "authority_assignments" VALUES(1,1,1790000001.0);
CREATE TABLE certificate_holds (
  cert_id INTEGER NOT NULL REFERENCES certificates(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  serial_number TEXT NOT NULL, rollout_id INTEGER NOT NULL, PRIMARY KEY (cert_id, device_id)
) WITHOUT ROWID;
CREATE TABLE certificates (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  domain_name TEXT NOT NULL, sans TEXT NOT NULL, key_type TEXT NOT NULL, validity_seconds INTEGER NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
  serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL, not_before REAL NOT NULL, not_after REAL NOT NULL,
  certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, private_key_enc BLOB NOT NULL,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, revoked_at REAL, revoke_reason TEXT NOT NULL DEFAULT ''
, issuer TEXT NOT NULL DEFAULT 'builtin', key_origin TEXT NOT NULL DEFAULT 'plane', profile TEXT NOT NULL DEFAULT '', must_staple INTEGER NOT NULL DEFAULT 0, reuse_key INTEGER NOT NULL DEFAULT 0, renew_at REAL, template_id INTEGER, template_device_id INTEGER, public_key_sha256 TEXT NOT NULL DEFAULT '', revoke_code TEXT NOT NULL DEFAULT '', issued_by TEXT NOT NULL DEFAULT '', together TEXT NOT NULL DEFAULT '', batch TEXT NOT NULL DEFAULT '');
INSERT INTO "certificates" VALUES(1,1,'plain.example','["plain.example"]','ecdsa-p256',17280000,'active','10:09','079179819d44caec58b76a05493d61b1b7a4bc87801a38a96e12f48f4fee4e52',1790001020.0,1807281320.0,'-----BEGIN CERTIFICATE-----
MIH6MIGtoAMCAQICAhAJMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQzMDIwWhcNMjcwNDA5MTQzNTIwWjAYMRYwFAYDVQQDDA1wbGFp
bi5leGFtcGxlMCowBQYDK2VwAyEA8FemcXzxdVRfZ7f0YIoy8i6mamS9wNVZlYqn
mSyTEFijHDAaMBgGA1UdEQQRMA+CDXBsYWluLmV4YW1wbGUwBQYDK2VwA0EAQDp3
gWrQ4WoobCcbcIP8h6Uc3YxXBXHsKquZOXQWsCtlCL8SDTRF/THztbgNscuVcHKo
Amdf3EvA66Fcg5e3DA==
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'40BD39A59E5F898ECD477D2C0BDE8B0908813E3F6DDC31D5B5E4C5057825467F84692FC0E5CBA4278C5757ABF93DECEC984A7F64F46C0BCE2B8594549216734DB99C9455AABA4EA7F83BC8A0',1790000000.0,1790001320.061,NULL,'','builtin','plane','',0,0,1.80106007660594320297e+09,NULL,NULL,'','','builtin','','');
INSERT INTO "certificates" VALUES(2,1,'copied.example','["copied.example"]','ecdsa-p256',17280000,'active','10:0a','9a348fd5018e5b11a12b2b8423fdc9b7365fe57b72f7422f4287e3c76a4a1f5a',1790001020.0,1807281320.0,'-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhAKMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQzMDIwWhcNMjcwNDA5MTQzNTIwWjAZMRcwFQYDVQQDDA5jb3Bp
ZWQuZXhhbXBsZTAqMAUGAytlcAMhAM2gNQ4Rz52AnF7KYYsgJ2PLbwRipT6LvVux
Tw5hZ9Z7ox0wGzAZBgNVHREEEjAQgg5jb3BpZWQuZXhhbXBsZTAFBgMrZXADQQAG
cT7we8wYJvTjTpvdoEjdkJFov7WRCMopR69QjemTAUcvS5E+/+ebg6nPRbGP3I0g
UI6cg0BLOOd6AhUF5loB
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'A3DB7EA5EB33132FE82A7F5A842A5A8CCC1DB5D6E03900567DFF5CAE629046D0D37015C37B75B360190CA0FA03E072AE6E6B8C0E8A67EFBAA65C9918AE723FA9785A4F7077D4448098D000FE',1790000000.0,1790001320.061,NULL,'','builtin','plane','',0,0,1.80056691199961161611e+09,NULL,NULL,'','','builtin','','');
INSERT INTO "certificates" VALUES(3,1,'broken.example','["broken.example"]','ecdsa-p256',17280000,'active','10:07','24f9d74d636350b0b81610d5930a9677890e097d17580d29982bb9d31213f8b8',1790000362.0,1807280662.0,'-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhAHMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQxOTIyWhcNMjcwNDA5MTQyNDIyWjAZMRcwFQYDVQQDDA5icm9r
ZW4uZXhhbXBsZTAqMAUGAytlcAMhAMBE84x5uCPWUj54tNQVC+cSDoAADwlzrFeJ
faL0FuMdox0wGzAZBgNVHREEEjAQgg5icm9rZW4uZXhhbXBsZTAFBgMrZXADQQCp
VGvrxdmAMDylfyLcnLmKwakXQK18mFk47KJPt+jRuOvENyJrx0AsKUIkRjmzUYNJ
79waONHttzJJ4mr1oncI
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'7D2C77B6EF58422A9A6CE6A57BA7D3FFB9A0D39985DAC061264C8144986BA51B99571E27E8C976CB950828BE855FC93E5D2F5564BB7B1BED0CA06F0CF20BEB6D67463EFCE7FCF6E5E08F88D7',1790000000.0,1790000662.061,NULL,'','builtin','plane','',0,0,1.8006648997062592506e+09,NULL,NULL,'','','builtin','','');
INSERT INTO "certificates" VALUES(4,1,'held.example','["held.example"]','ecdsa-p256',17280000,'active','10:08','be329453f97f522754d2800043bc547aee04f50a0c5efaaf7a1d8b6ed5102b05',1790000362.0,1807280662.0,'-----BEGIN CERTIFICATE-----
MIH4MIGroAMCAQICAhAIMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQxOTIyWhcNMjcwNDA5MTQyNDIyWjAXMRUwEwYDVQQDDAxoZWxk
LmV4YW1wbGUwKjAFBgMrZXADIQBDViYQKwKKZ4jMq1wfUMRF26ChPXXuwXe5QcsJ
SU5HB6MbMBkwFwYDVR0RBBAwDoIMaGVsZC5leGFtcGxlMAUGAytlcANBAMF6Id6N
HwRn7DUHmOYKthHdUL5lyUf0u9YB2m7ySjWcnsBRyf8NJWXP8233pNreMFTHh4ct
Ecs/Bu7Xl1opAgM=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'6A13107122A4D8A014B97EF190B18E4962753D4D2B346C0345049F4FBA7E5A01AB01F1ED1985B71B8E5999F9B388E6A8A93584A6B4197FDCBED6323F51A2000BD181515E9D543EAE3CCAF6CE',1790000000.0,1790000662.061,NULL,'','builtin','plane','',0,0,1.80121379362576293945e+09,NULL,NULL,'','','builtin','','');
INSERT INTO "certificates" VALUES(5,1,'revoked.example','["revoked.example"]','ecdsa-p256',17280000,'revoked','10:05','c1f21c4e8cae05056be4eb942aad6b2ab1c250f82999766caeedfa333367a23d',1789999700.0,1807280000.0,'-----BEGIN CERTIFICATE-----
MIH+MIGxoAMCAQICAhAFMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQwODIwWhcNMjcwNDA5MTQxMzIwWjAaMRgwFgYDVQQDDA9yZXZv
a2VkLmV4YW1wbGUwKjAFBgMrZXADIQDdsdiclSdObD53mltw2AltJeudgBwITYp6
3kGLXpmr3KMeMBwwGgYDVR0RBBMwEYIPcmV2b2tlZC5leGFtcGxlMAUGAytlcANB
AKtqrZkXpPQBm5qQTV/fEANmtLr7xxF40P3UeDwUpq66jV/OX50Y8R+UPhVzLvXZ
pgbyEmvJSB9ga1mqr0kO2ws=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'',1790000000.0,1790000662.061,1790000662.061,'','builtin','plane','',0,0,1.80028171942355751985e+09,NULL,NULL,'','','builtin','','');
CREATE TABLE crls (
  issuer_key_id TEXT PRIMARY KEY, number INTEGER NOT NULL, der BLOB NOT NULL, this_update REAL NOT NULL,
  next_update REAL NOT NULL, outdated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE deployments (
  device_id INTEGER NOT NULL REFERENCES devices(id), kind TEXT NOT NULL, object_id INTEGER NOT NULL,
  outcome TEXT NOT NULL, step TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL, failing INTEGER NOT NULL,
  attempts INTEGER NOT NULL, since REAL NOT NULL, failing_since REAL, at REAL NOT NULL,
  serial_number TEXT NOT NULL, served_at REAL, PRIMARY KEY (device_id, kind, object_id)
) WITHOUT ROWID;
INSERT INTO "deployments" VALUES(1,'ca',1,'applied','','','',0,1,1.79000006409237456318e+09,NULL,1.79000006409237456318e+09,'unknown',NULL);
INSERT INTO "deployments" VALUES(1,'cert',1,'unchanged','','','',0,2,1.79000000051767206186e+09,NULL,1.79000000072014403343e+09,'10:01',1.79000000051767206186e+09);
INSERT INTO "deployments" VALUES(1,'cert',2,'unchanged','','','',0,2,1.79000000051767206186e+09,NULL,1.79000000072014403343e+09,'10:02',1.79000000051767206186e+09);
INSERT INTO "deployments" VALUES(1,'cert',3,'rolled_back','run','command-failed','item r3: /bin/true exited with 1: the service refuses its files',1,2,1.79000071957840418816e+09,1.79000071957840418816e+09,1.79000073231548738478e+09,'10:03',1.79000000051767206186e+09);
INSERT INTO "deployments" VALUES(1,'cert',4,'applied','switch','held','staged; waits for `cert-ctrl rollback --release`: an earlier generation is held',0,1,1.79000071957840418816e+09,NULL,1.79000071957840418816e+09,'10:04',NULL);
INSERT INTO "deployments" VALUES(1,'cert',5,'applied','','','removed',0,3,1.79000000051767206186e+09,NULL,1.79000071980871248242e+09,'',NULL);
INSERT INTO "deployments" VALUES(1,'install',0,'unchanged','','','item r1 is idle: certificate 1 is not on this host; item c2 is idle: certificate 2 is not on this host; item r2 is idle: certificate 2 is not on this host; item r3 is idle: certificate 3 is not on this host; item c4 is idle: certificate 4 is not on this host',0,2,1.79000000051767206186e+09,NULL,1.79000000051767206186e+09,'unknown',NULL);
CREATE TABLE device_replacements (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL REFERENCES devices(id),
  token_hash TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, expires_at REAL NOT NULL, ended_at REAL, used_at REAL,
  new_key BLOB, former_key BLOB, former_public_id TEXT NOT NULL DEFAULT ''
);
CREATE TABLE device_tags (
  device_id INTEGER NOT NULL REFERENCES devices(id), tag TEXT NOT NULL, PRIMARY KEY (device_id, tag)
) WITHOUT ROWID;
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
  last_seen_at REAL, last_address TEXT NOT NULL DEFAULT '', last_cursor TEXT NOT NULL DEFAULT '', anchor_sha256 TEXT NOT NULL DEFAULT '', instance TEXT NOT NULL DEFAULT '', earlier_instances TEXT NOT NULL DEFAULT '{}', copies_at REAL, features TEXT NOT NULL DEFAULT '', renamed INTEGER NOT NULL DEFAULT 0, decommissioned_at REAL, key_wanted_at REAL, former_seen_at REAL, former_address TEXT NOT NULL DEFAULT '',
  UNIQUE (user_id, device_public_id)
);
INSERT INTO "devices" VALUES(1,1,'23229bf7-5172-02c7-59a2-76d5b4a40090','active','vm','linux','Debian GNU/Linux 12 (bookworm) x86_64','0.1.0','cert-ctrl/0.1.0',X'8F40C5ADB68F25624AE5B214EA767A6EC94D829D3D7B5E1AD1BA6F3E2138285F','57addcd56cefb4269c07945b89a221a829a40f1f0e8bd64c4a958219abc5c2c1',1,1790000000.0,1790000000.0,NULL,'',NULL,'','','','1bc083aefece8521','{}',NULL,'["atomic-batch", "csr", "key-rotation", "priority", "push", "serving-reports"]',0,NULL,NULL,NULL,'');
CREATE TABLE endpoints (
  device_id INTEGER NOT NULL REFERENCES devices(id), cert_id INTEGER NOT NULL REFERENCES certificates(id),
  endpoint TEXT NOT NULL, deployed TEXT NOT NULL, serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL,
  not_after REAL, reason TEXT NOT NULL, since REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (device_id, cert_id, endpoint)
) WITHOUT ROWID;
CREATE TABLE enrolment_tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  token_hash TEXT NOT NULL UNIQUE, label TEXT NOT NULL, max_uses INTEGER, uses INTEGER NOT NULL DEFAULT 0,
  created_at REAL NOT NULL, expires_at REAL NOT NULL, ended_at REAL
, tags TEXT NOT NULL DEFAULT '');
INSERT INTO "enrolment_tokens" VALUES(1,1,'2e4bf46c6cfef9c50223d6c3d566c2502c2f30b95f409fa15043fd60ed2642d7','',1,1,1790000000.0,1790086400.0,NULL,'');
CREATE TABLE enrolments (
  token_id INTEGER NOT NULL REFERENCES enrolment_tokens(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  PRIMARY KEY (token_id, device_id)
) WITHOUT ROWID;
INSERT INTO "enrolments" VALUES(1,1);
CREATE TABLE former_certificates (
  serial_number TEXT NOT NULL, cert_id INTEGER NOT NULL REFERENCES certificates(id), issuer TEXT NOT NULL,
  certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, not_after REAL NOT NULL, replaced_at REAL NOT NULL,
  PRIMARY KEY (cert_id, serial_number)
) WITHOUT ROWID;
INSERT INTO "former_certificates" VALUES('10:01',1,'builtin','-----BEGIN CERTIFICATE-----
MIH6MIGtoAMCAQICAhABMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQwODIwWhcNMjcwNDA5MTQxMzIwWjAYMRYwFAYDVQQDDA1wbGFp
bi5leGFtcGxlMCowBQYDK2VwAyEAvPE/7GYyOrA0iF+gX1qeNkg196OTAfPYEp3G
FZpaX4+jHDAaMBgGA1UdEQQRMA+CDXBsYWluLmV4YW1wbGUwBQYDK2VwA0EACi8Y
G7fQjtEhE0Z+uFL270FQIQwPY2X6F+eaS/JvlLSs+MEfqkvWfBK+Cj6sHMzLK7Lt
Y/3BfBZOdzjXc0Z6Ag==
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',1807280000.0,1790001320.061);
INSERT INTO "former_certificates" VALUES('10:02',2,'builtin','-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhACMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQwODIwWhcNMjcwNDA5MTQxMzIwWjAZMRcwFQYDVQQDDA5jb3Bp
ZWQuZXhhbXBsZTAqMAUGAytlcAMhAJ5mJrPNip2e3juiBF4DRtmSePikljBSLZRb
SsUSPW/iox0wGzAZBgNVHREEEjAQgg5jb3BpZWQuZXhhbXBsZTAFBgMrZXADQQC1
0N2vUJ9ENgm54kGVVXhkFrOijjpGqT05ZgG+UumdLXslWGXp0OHYhkWzvtswj8gF
lt6MZzn901zLdrU4RQAG
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',1807280000.0,1790001320.061);
INSERT INTO "former_certificates" VALUES('10:03',3,'builtin','-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhADMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQwODIwWhcNMjcwNDA5MTQxMzIwWjAZMRcwFQYDVQQDDA5icm9r
ZW4uZXhhbXBsZTAqMAUGAytlcAMhAD7WqAgaq0gFQKz/Z2wFVf8IDVAhv6rdsKGI
oUCXJ7MEox0wGzAZBgNVHREEEjAQgg5icm9rZW4uZXhhbXBsZTAFBgMrZXADQQAA
FZGqvlU0IOnF/5xePw8DxGfwre8uPUhhP9yoMycwl0iVKPBhIW7KS9uYt4MRHGsk
zVEK9N+l97l/fyi+BM4P
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',1807280000.0,1790000662.061);
INSERT INTO "former_certificates" VALUES('10:04',4,'builtin','-----BEGIN CERTIFICATE-----
MIH4MIGroAMCAQICAhAEMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQwODIwWhcNMjcwNDA5MTQxMzIwWjAXMRUwEwYDVQQDDAxoZWxk
LmV4YW1wbGUwKjAFBgMrZXADIQCqvVoJ/IGXS59nsPVV46mq1Swl3Lq2l9LFAP1J
rPop16MbMBkwFwYDVR0RBBAwDoIMaGVsZC5leGFtcGxlMAUGAytlcANBAJClDacz
a6lygpX3XMp3mK/nl9H+RxpGMKMtIK9Ns4OqlaPb3ZwV4tk7X1eNLt5LSkCQzJJ/
puhCq41yNJYgngM=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',1807280000.0,1790000601.0);
INSERT INTO "former_certificates" VALUES('10:06',4,'builtin','-----BEGIN CERTIFICATE-----
MIH4MIGroAMCAQICAhAGMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQxODIxWhcNMjcwNDA5MTQyMzIxWjAXMRUwEwYDVQQDDAxoZWxk
LmV4YW1wbGUwKjAFBgMrZXADIQDCP9duZoCp22UN2Z3//oJtGDU/e3se9fEr8khE
OTiyMaMbMBkwFwYDVR0RBBAwDoIMaGVsZC5leGFtcGxlMAUGAytlcANBAKwgp42T
N2A3+J8hIhNNa00Lfn1gJKy6hSB4TabTd8URuCqlRMtXXhkNL+Q91BbKosIT17+Y
HyewMkdvYIe/KQk=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',1807280601.0,1790000662.061);
CREATE TABLE grants (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  device_code_hash TEXT NOT NULL UNIQUE, user_code TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'denied', 'used')),
  name TEXT NOT NULL DEFAULT '', platform TEXT NOT NULL DEFAULT '', device_public_id TEXT NOT NULL DEFAULT '',
  user_agent TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '', scopes TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, expires_at REAL NOT NULL, interval REAL NOT NULL, polled_at REAL,
  user_id INTEGER REFERENCES users(id), registration_hash TEXT UNIQUE, registration_expires_at REAL
, decided_at REAL);
CREATE TABLE held_certificates (
  cert_id INTEGER NOT NULL REFERENCES certificates(id), serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL,
  not_before REAL NOT NULL, not_after REAL NOT NULL, certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL,
  private_key_enc BLOB NOT NULL, public_key_sha256 TEXT NOT NULL, batch TEXT NOT NULL, updated_at REAL NOT NULL,
  PRIMARY KEY (cert_id, serial_number)
) WITHOUT ROWID;
CREATE TABLE host_challenges (
  device_id INTEGER NOT NULL REFERENCES devices(id), token TEXT NOT NULL, kind TEXT NOT NULL, order_id INTEGER,
  identifier TEXT NOT NULL, key_authorization TEXT NOT NULL, created_at REAL NOT NULL, expires_at REAL NOT NULL,
  sent_ms INTEGER NOT NULL DEFAULT 0, ready_at REAL, problem TEXT NOT NULL DEFAULT '', PRIMARY KEY (device_id, token)
) WITHOUT ROWID;
CREATE TABLE http_challenges (
  token TEXT PRIMARY KEY, key_authorization TEXT NOT NULL, identifier TEXT NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE install_configs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL UNIQUE REFERENCES devices(id),
  version INTEGER NOT NULL, installs_json TEXT NOT NULL, installs_hash_b64 TEXT NOT NULL, updated_at REAL NOT NULL
, own_json TEXT NOT NULL DEFAULT '', merged_hash_b64 TEXT NOT NULL DEFAULT '', problem TEXT NOT NULL DEFAULT '', due INTEGER NOT NULL DEFAULT 0);
INSERT INTO "install_configs" VALUES(1,1,2,'[{"id":"r1","type":"exec","cmd_argv":["/bin/true","reload","1"],"verify":{"type":"tls","host":"127.0.0.1","port":10001},"ob_type":"cert","ob_id":1},{"id":"c2","type":"copy","from":["fullchain.pem","private.key"],"to":["/srv/tls/2.pem","/srv/tls/2.key"],"ob_type":"cert","ob_id":2},{"id":"r2","type":"exec","cmd_argv":["/bin/true","reload","2"],"verify":{"type":"tls","host":"127.0.0.1","port":10002},"ob_type":"cert","ob_id":2,"depends_on":["c2"]},{"id":"r3","type":"exec","cmd_argv":["/bin/true","reload","3"],"verify":{"type":"tls","host":"127.0.0.1","port":10003},"ob_type":"cert","ob_id":3},{"id":"c4","type":"copy","from":["fullchain.pem","private.key"],"to":["/srv/tls/4.pem","/srv/tls/4.key"],"ob_type":"cert","ob_id":4},{"id":"r4","type":"exec","cmd_argv":["/bin/true","reload","4"],"verify":{"type":"tls","host":"127.0.0.1","port":10004},"ob_type":"cert","ob_id":4,"depends_on":["c4"]},{"id":"r5","type":"exec","cmd_argv":["/bin/true","reload","5"],"verify":{"type":"tls","host":"127.0.0.1","port":10005},"ob_type":"cert","ob_id":5}]','5OqDCwhteCASJotjbPiI8oIq9MIBeeRBjTQVTB/X1us=',1790000000.0,'','','',0);
CREATE TABLE issuer_items (
  issuer TEXT NOT NULL, name TEXT NOT NULL, value_enc BLOB NOT NULL, PRIMARY KEY (issuer, name)
) WITHOUT ROWID;
CREATE TABLE issuer_rules (domain TEXT PRIMARY KEY, issuer TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE issuers (
  name TEXT PRIMARY KEY, kind TEXT NOT NULL, settings TEXT NOT NULL DEFAULT '{}', secrets_enc BLOB,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, used_at REAL,
  problem TEXT NOT NULL DEFAULT '', fix TEXT NOT NULL DEFAULT '', problem_at REAL,
  blocked_until REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE issues (
  id INTEGER PRIMARY KEY AUTOINCREMENT, cert_id INTEGER NOT NULL REFERENCES certificates(id),
  action TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', device_id INTEGER REFERENCES devices(id),
  serial_number TEXT NOT NULL DEFAULT '', status TEXT NOT NULL, at REAL NOT NULL
);
INSERT INTO "issues" VALUES(1,1,'issue','',NULL,'10:01','done',1790000000.0);
INSERT INTO "issues" VALUES(2,2,'issue','',NULL,'10:02','done',1790000000.0);
INSERT INTO "issues" VALUES(3,3,'issue','',NULL,'10:03','done',1790000000.0);
INSERT INTO "issues" VALUES(4,4,'issue','',NULL,'10:04','done',1790000000.0);
INSERT INTO "issues" VALUES(5,5,'issue','',NULL,'10:05','done',1790000000.0);
INSERT INTO "issues" VALUES(6,4,'renew','',NULL,'10:06','done',1790000601.0);
INSERT INTO "issues" VALUES(7,3,'renew','',NULL,'10:07','done',1790000662.061);
INSERT INTO "issues" VALUES(8,4,'renew','',NULL,'10:08','done',1790000662.061);
INSERT INTO "issues" VALUES(9,5,'revoke','',NULL,'10:05','done',1790000662.061);
INSERT INTO "issues" VALUES(10,1,'renew','',NULL,'10:09','done',1790001320.061);
INSERT INTO "issues" VALUES(11,2,'renew','',NULL,'10:0a','done',1790001320.061);
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, job_key TEXT NOT NULL, due REAL NOT NULL,
  owner TEXT NOT NULL DEFAULT '', lease REAL NOT NULL DEFAULT 0, UNIQUE (kind, job_key)
);
INSERT INTO "jobs" VALUES(1,'housekeeping','',0.0,'',0.0);
CREATE TABLE known_keys (
  public_key_sha256 TEXT PRIMARY KEY, cert_id INTEGER NOT NULL, device_id INTEGER, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE limits (
  kind TEXT NOT NULL, caller TEXT NOT NULL, level REAL NOT NULL, at REAL NOT NULL, PRIMARY KEY (kind, caller)
) WITHOUT ROWID;
CREATE TABLE operator_sessions (
  id_hash TEXT PRIMARY KEY, operator_id INTEGER NOT NULL REFERENCES operators(id),
  token_id INTEGER REFERENCES operator_tokens(id), expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE operator_tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, operator_id INTEGER NOT NULL REFERENCES operators(id), name TEXT NOT NULL,
  role TEXT NOT NULL, token_hash TEXT NOT NULL UNIQUE, created_at REAL NOT NULL, expires_at REAL NOT NULL,
  revoked_at REAL, last_used_at REAL, last_address TEXT NOT NULL DEFAULT ''
, tags TEXT NOT NULL DEFAULT '');
CREATE TABLE operators (
  id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, role TEXT NOT NULL, subject TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, disabled_at REAL, deleted_at REAL
, signed_in_at REAL);
CREATE TABLE orders (
  id INTEGER PRIMARY KEY AUTOINCREMENT, cert_id INTEGER NOT NULL REFERENCES certificates(id), issuer TEXT NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('issue', 'renew', 'replace')), reason TEXT NOT NULL DEFAULT '',
  device_id INTEGER REFERENCES devices(id),
  state TEXT NOT NULL CHECK (state IN ('csr_wanted', 'ready', 'done', 'failed', 'blocked')),
  csr_der BLOB, key_enc BLOB, memo_enc BLOB, attempts INTEGER NOT NULL DEFAULT 0,
  problem TEXT NOT NULL DEFAULT '', fix TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, updated_at REAL NOT NULL, next_at REAL, finished_at REAL
, refused_requests INTEGER NOT NULL DEFAULT 0, batch TEXT NOT NULL DEFAULT '', issued_enc BLOB, issued_key_enc BLOB);
CREATE TABLE outcomes (
  device_id INTEGER NOT NULL REFERENCES devices(id), signal TEXT NOT NULL, type TEXT NOT NULL, ts_ms INTEGER NOT NULL,
  ref TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '', deployed TEXT NOT NULL DEFAULT '[]',
  duration_ms INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL, step TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (device_id, signal)
) WITHOUT ROWID;
INSERT INTO "outcomes" VALUES(1,'ca.assigned|ca_id=1|1790000001000','ca.assigned',1790000001000,'{"ca_id":1,"serial":"07","ca_name":"private 0"}','applied','','[]',50,1.79000006409237456318e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=1|1789999999500','cert.renewed',1789999999500,'{"cert_id":1,"serial":"10:01"}','unchanged','','[{"cert_id":1,"serial":"10:01","fingerprint_sha256":"4ae30c35e6715db2cad41e25169451a93b74d8730db5caecf36ac74dedcb49ed","targets":["{ROOT}/certs/plain.example.crt","{ROOT}/certs/plain.example.key","{ROOT}/certs/chains/plain.example.pem"]}]',19,1.79000000072014403343e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=1|1790000000001','cert.renewed',1790000000001,'{"cert_id":1,"serial":"10:01"}','applied','','[{"cert_id":1,"serial":"10:01","fingerprint_sha256":"4ae30c35e6715db2cad41e25169451a93b74d8730db5caecf36ac74dedcb49ed","targets":["{ROOT}/certs/plain.example.crt","{ROOT}/certs/plain.example.key","{ROOT}/certs/chains/plain.example.pem"],"served":true}]',297,1.79000000051767206186e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=2|1789999999500','cert.renewed',1789999999500,'{"cert_id":2,"serial":"10:02"}','unchanged','','[{"cert_id":2,"serial":"10:02","fingerprint_sha256":"b415bbedd6075317244e46f51b8057413cb2bfccd41e5b62e2ca8bf4dfed8e3d","targets":["{ROOT}/certs/copied.example.crt","{ROOT}/certs/copied.example.key","{ROOT}/certs/chains/copied.example.pem","/srv/tls/2.pem","/srv/tls/2.key"]}]',19,1.79000000072014403343e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=2|1790000000001','cert.renewed',1790000000001,'{"cert_id":2,"serial":"10:02"}','applied','','[{"cert_id":2,"serial":"10:02","fingerprint_sha256":"b415bbedd6075317244e46f51b8057413cb2bfccd41e5b62e2ca8bf4dfed8e3d","targets":["{ROOT}/certs/copied.example.crt","{ROOT}/certs/copied.example.key","{ROOT}/certs/chains/copied.example.pem","/srv/tls/2.pem","/srv/tls/2.key"],"served":true}]',297,1.79000000051767206186e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=3|1789999999500','cert.renewed',1789999999500,'{"cert_id":3,"serial":"10:03"}','unchanged','','[{"cert_id":3,"serial":"10:03","fingerprint_sha256":"5a04178c629f351856c521866f6cc98ca5e88c08548749afaa6745b835ba4caa","targets":["{ROOT}/certs/broken.example.crt","{ROOT}/certs/broken.example.key","{ROOT}/certs/chains/broken.example.pem"]}]',19,1.79000000072014403343e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=3|1790000000001','cert.renewed',1790000000001,'{"cert_id":3,"serial":"10:03"}','applied','','[{"cert_id":3,"serial":"10:03","fingerprint_sha256":"5a04178c629f351856c521866f6cc98ca5e88c08548749afaa6745b835ba4caa","targets":["{ROOT}/certs/broken.example.crt","{ROOT}/certs/broken.example.key","{ROOT}/certs/chains/broken.example.pem"],"served":true}]',297,1.79000000051767206186e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=3|1790000662061','cert.renewed',1790000662061,'{"cert_id":3,"serial":"10:07"}','rolled_back','item r3: /bin/true exited with 1: the service refuses its files','[{"cert_id":3,"serial":"10:03","fingerprint_sha256":"5a04178c629f351856c521866f6cc98ca5e88c08548749afaa6745b835ba4caa","targets":["{ROOT}/certs/broken.example.crt","{ROOT}/certs/broken.example.key","{ROOT}/certs/chains/broken.example.pem"]}]',247,1.79000073231548738478e+09,'run','command-failed');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1789999999500','cert.renewed',1789999999500,'{"cert_id":4,"serial":"10:04"}','unchanged','','[{"cert_id":4,"serial":"10:04","fingerprint_sha256":"2469f34d47a2907dd03f279fd7840df631e5712920040dac3c277df6acd789e4","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem","/srv/tls/4.pem","/srv/tls/4.key"]}]',19,1.79000000072014403343e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1790000000001','cert.renewed',1790000000001,'{"cert_id":4,"serial":"10:04"}','applied','','[{"cert_id":4,"serial":"10:04","fingerprint_sha256":"2469f34d47a2907dd03f279fd7840df631e5712920040dac3c277df6acd789e4","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem","/srv/tls/4.pem","/srv/tls/4.key"],"served":true}]',297,1.79000000051767206186e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1790000601000','cert.renewed',1790000601000,'{"cert_id":4,"serial":"10:06"}','applied','','[{"cert_id":4,"serial":"10:06","fingerprint_sha256":"c1b7a1fe16ada0a0e3746c2224464172b6b84062a414f41a422766b61a900fd2","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem","/srv/tls/4.pem","/srv/tls/4.key"],"served":true}]',76,1.79000066159196829793e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1790000662061','cert.renewed',1790000662061,'{"cert_id":4,"serial":"10:08"}','applied','staged; waits for `cert-ctrl rollback --release`: an earlier generation is held','[{"cert_id":4,"serial":"10:04","fingerprint_sha256":"2469f34d47a2907dd03f279fd7840df631e5712920040dac3c277df6acd789e4","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem","/srv/tls/4.pem","/srv/tls/4.key"]}]',128,1.79000071957840418816e+09,'switch','held');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=5|1789999999500','cert.renewed',1789999999500,'{"cert_id":5,"serial":"10:05"}','unchanged','','[{"cert_id":5,"serial":"10:05","fingerprint_sha256":"c1f21c4e8cae05056be4eb942aad6b2ab1c250f82999766caeedfa333367a23d","targets":["{ROOT}/certs/revoked.example.crt","{ROOT}/certs/revoked.example.key","{ROOT}/certs/chains/revoked.example.pem"]}]',19,1.79000000072014403343e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=5|1790000000001','cert.renewed',1790000000001,'{"cert_id":5,"serial":"10:05"}','applied','','[{"cert_id":5,"serial":"10:05","fingerprint_sha256":"c1f21c4e8cae05056be4eb942aad6b2ab1c250f82999766caeedfa333367a23d","targets":["{ROOT}/certs/revoked.example.crt","{ROOT}/certs/revoked.example.key","{ROOT}/certs/chains/revoked.example.pem"],"served":true}]',297,1.79000000051767206186e+09,'','');
INSERT INTO "outcomes" VALUES(1,'cert.revoked|cert_id=5|1790000662061','cert.revoked',1790000662061,'{"cert_id":5}','applied','removed','[]',316,1.79000071980871248242e+09,'','');
INSERT INTO "outcomes" VALUES(1,'install.updated|config_id=1,version=2|1789999999500','install.updated',1789999999500,'{"config_id":1,"version":2}','unchanged','item r1 is idle: certificate 1 is not on this host; item c2 is idle: certificate 2 is not on this host; item r2 is idle: certificate 2 is not on this host; item r3 is idle: certificate 3 is not on this host; item c4 is idle: certificate 4 is not on this host','[]',7,1.79000000051767206186e+09,'','');
INSERT INTO "outcomes" VALUES(1,'install.updated|config_id=1,version=2|1790000000001','install.updated',1790000000001,'{"config_id":1,"version":2,"installs_hash_b64":"5OqDCwhteCASJotjbPiI8oIq9MIBeeRBjTQVTB/X1us="}','unchanged','item r1 is idle: certificate 1 is not on this host; item c2 is idle: certificate 2 is not on this host; item r2 is idle: certificate 2 is not on this host; item r3 is idle: certificate 3 is not on this host; item c4 is idle: certificate 4 is not on this host','[]',1,1.79000000051767206186e+09,'','');
CREATE TABLE page_sessions (id_hash TEXT PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE plane_names (
  plane TEXT NOT NULL, name TEXT NOT NULL, seen_at REAL NOT NULL, PRIMARY KEY (plane, name)
) WITHOUT ROWID;
CREATE TABLE planes (
  name TEXT PRIMARY KEY, host TEXT NOT NULL, address TEXT NOT NULL, version TEXT NOT NULL,
  started_at REAL NOT NULL, seen_at REAL NOT NULL, polls INTEGER NOT NULL, connections INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE profile_pins (
  profile_id INTEGER NOT NULL REFERENCES profiles(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  version INTEGER NOT NULL, PRIMARY KEY (profile_id, device_id)
) WITHOUT ROWID;
CREATE TABLE profile_versions (
  profile_id INTEGER NOT NULL REFERENCES profiles(id), version INTEGER NOT NULL, devices TEXT NOT NULL,
  position INTEGER NOT NULL, items_json TEXT NOT NULL, note TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL,
  PRIMARY KEY (profile_id, version)
) WITHOUT ROWID;
CREATE TABLE profiles (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id), name TEXT NOT NULL,
  version INTEGER NOT NULL, UNIQUE (user_id, name)
);
CREATE TABLE proof_holds (
  answer TEXT NOT NULL, holder TEXT NOT NULL, expires_at REAL NOT NULL, PRIMARY KEY (answer, holder)
) WITHOUT ROWID;
CREATE TABLE published_proofs (
  answer TEXT PRIMARY KEY, issuer TEXT NOT NULL, kind TEXT NOT NULL, identifier TEXT NOT NULL, token TEXT NOT NULL,
  key_authorization TEXT NOT NULL, due REAL NOT NULL, busy_until REAL NOT NULL DEFAULT 0,
  attempts INTEGER NOT NULL DEFAULT 0, failed_at REAL, problem TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE TABLE questions (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL REFERENCES devices(id), question TEXT NOT NULL,
  asked_by TEXT NOT NULL, asked_at REAL NOT NULL, expires_at REAL NOT NULL, result TEXT NOT NULL DEFAULT '',
  answer TEXT NOT NULL DEFAULT '', detail TEXT NOT NULL DEFAULT '', ended_at REAL
);
CREATE TABLE refresh_tokens (
  id TEXT PRIMARY KEY, secret_hash TEXT NOT NULL, device_id INTEGER NOT NULL REFERENCES devices(id),
  session INTEGER NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
INSERT INTO "refresh_tokens" VALUES('rt_718c6a2f84532ccd436bd72e7624ee2d','e4e84f1b73438be6535490cbfe9b4d2a0aa35b58de531cbdd580188c27da3b8f',1,1,1797776000.0);
CREATE TABLE revocations (
  serial_number TEXT NOT NULL, cert_id INTEGER NOT NULL REFERENCES certificates(id), issuer TEXT NOT NULL,
  code TEXT NOT NULL, certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, not_after REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('waiting', 'due', 'done', 'manual')), attempts INTEGER NOT NULL DEFAULT 0,
  problem TEXT NOT NULL DEFAULT '', fix TEXT NOT NULL DEFAULT '', created_at REAL NOT NULL, next_at REAL, done_at REAL,
  PRIMARY KEY (cert_id, serial_number)
) WITHOUT ROWID;
INSERT INTO "revocations" VALUES('10:05',5,'builtin','','-----BEGIN CERTIFICATE-----
MIH+MIGxoAMCAQICAhAFMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQwODIwWhcNMjcwNDA5MTQxMzIwWjAaMRgwFgYDVQQDDA9yZXZv
a2VkLmV4YW1wbGUwKjAFBgMrZXADIQDdsdiclSdObD53mltw2AltJeudgBwITYp6
3kGLXpmr3KMeMBwwGgYDVR0RBBMwEYIPcmV2b2tlZC5leGFtcGxlMAUGAytlcANB
AKtqrZkXpPQBm5qQTV/fEANmtLr7xxF40P3UeDwUpq66jV/OX50Y8R+UPhVzLvXZ
pgbyEmvJSB9ga1mqr0kO2ws=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',1807280000.0,'done',0,'','',1790000662.061,NULL,1790000662.061);
CREATE TABLE revoked_serials (
  serial_number TEXT PRIMARY KEY, cert_id INTEGER, reason TEXT NOT NULL DEFAULT '', revoked_at REAL NOT NULL,
  not_after REAL NOT NULL, issuer_key_id TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
INSERT INTO "revoked_serials" VALUES('10:05',5,'',1790000662.061,1807280000.0,'');
CREATE TABLE rollout_certificates (
  rollout_id INTEGER NOT NULL, cert_id INTEGER NOT NULL REFERENCES certificates(id), serial_number TEXT NOT NULL, together TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (rollout_id, cert_id)
) WITHOUT ROWID;
CREATE TABLE "rollout_devices" (
  rollout_id INTEGER NOT NULL REFERENCES "rollouts"(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  wave INTEGER NOT NULL, serial_group TEXT NOT NULL DEFAULT '',
  state TEXT NOT NULL CHECK (state IN ('held', 'skipped', 'released', 'proven', 'failed', 'accepted')),
  config_version INTEGER NOT NULL DEFAULT 0, detail TEXT NOT NULL DEFAULT '', released_at REAL,
  settled_at REAL NOT NULL DEFAULT 0, PRIMARY KEY (rollout_id, device_id)
) WITHOUT ROWID;
CREATE TABLE "rollouts" (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  profile_id INTEGER REFERENCES profiles(id), version INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'halted', 'done', 'aborted')),
  rules TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', waits TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, updated_at REAL NOT NULL, finished_at REAL
, forward INTEGER NOT NULL DEFAULT 0);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value_enc BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO "secrets" VALUES('ca-root',X'69BC3713D9C98588FB1A3C050E3254A5EECEEDB9E09541C611E0CBDE75F1279E52AD008BB4DE50E0FF597C43838E49031E74B097FBED9B918157F1DB38803F9CDF91126A596530EB9C1B0A625DB18D9CC118C477734B2627DB8920CC44991C11EB091CD31C4AA6684B03FCA1EBB36946A0D54A673CD353586C2116C8473AB96C8197F95AC3ED1E0BCA22B41AF5A63493CF81D8AF679411AB669FF0853368A8529E6DC2804325B7923235CB16F82759E7B75D80B08DB6DCF85F0F29A7DD7708B6E0D08987C656E444BEE9FC182D5F65C91FA5C93A8894E0B2C272CBE7AD6B04AFE76640767B452109250E023A59B5C540DBF8D89E9E6728355F141EB658D82FF9FFFB728A0BDCD70C20B89E2CD0AE0FC7EA5BE94487985246C17D31F6A288FB663B30BB498947C9799ED9C27CE936B957662FBEB69A9F802CF2B4E84849634A48F0F75E90824FE2754064E53E4F772C0F0D66EDB8E76CA7281FE3171468122284D51D0C1FBF47AF80BC2BDA6A79F4A49A75FD38B38A7DE2034D425617D7CE69E366EADEAC492F1AD134B1566DA9B6F2FAC80B9EEC1132412D7813C49BE097C933A8E2590FAAE8CC44560EBE8ECFA1F852EFF3AE2C78057C69CD4A8D877BBCB23BB37A98A97944E15BCFB9356334D9B9D0AB7DC88E266E4C16EDE27F3DC5DEF970997F4D67CDAABBBF54113F11FD433DAA1517F28E2942EA3C5CB1595712EDB1A199CB9635672DB1AAFBEE82BB0D5E4AB7F05D552223166798D7010B56DC0FB4E1400B7AB81E5B6F5DF22A4B8E6FBE0EB1F45A7CCDB016A12AEC1FBD0501789417037F1849C11F44BE067F3AAF0E74B1FFE34D48ED8F7813CD1DDB11467092485321E791C6ACD7A3F80D2F39E480C6474C6EAE906A2A7A5153A11632D3D71D40D0FD52F2A0F6B42B21BCF737D92CDE8715195750DB342723DC9B873234C2FA62672E3BBD0438C099809AA53D97B22D2187BEA134C6723B66FBF0EA59EE8FAAC4C23FC6A9C1E9161F6904DDBB2862B0BD56C25A7A78E78D8F59CA05F7FDC5BFF4AE0B930BFBF408A3B5A0FCB1847271A789DBB81347F4D5E88098EC7EA5FD59AD97E66B0B10913314BB2B22901EEF457570AD1A495E74649C39CD690FB575076F0E40853F246A2FEEA618C199890BB22591D54701C6DD9B1DC159D3F0D9E4F1916BA58A9A7A1575CCD4147606FE9EA3E36ED42962F4A02A6072190BA277F0E680BF5C7AFC8E56BDEE901E74FE61AB373E6B869378FD483727457FA19D46F131AD5122906286C054B5FFDC5141DDCAC092EF78');
INSERT INTO "secrets" VALUES('jwt',X'2D5491059A3B9F37C32002989486B52EAA47611E8D02C35C1A38E71C1F6A08363441BE0124977F02E140A222D46D361B427A741E97305CDC158373BC');
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE signals (
  device_id INTEGER NOT NULL, ms INTEGER NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL, ref TEXT NOT NULL,
  PRIMARY KEY (device_id, ms, seq)
) WITHOUT ROWID;
INSERT INTO "signals" VALUES(1,1790000000001,0,'cert.renewed','{"cert_id":1,"serial":"10:01"}');
INSERT INTO "signals" VALUES(1,1790000000001,1,'cert.renewed','{"cert_id":2,"serial":"10:02"}');
INSERT INTO "signals" VALUES(1,1790000000001,2,'cert.renewed','{"cert_id":3,"serial":"10:03"}');
INSERT INTO "signals" VALUES(1,1790000000001,3,'cert.renewed','{"cert_id":4,"serial":"10:04"}');
INSERT INTO "signals" VALUES(1,1790000000001,4,'cert.renewed','{"cert_id":5,"serial":"10:05"}');
INSERT INTO "signals" VALUES(1,1790000000001,5,'install.updated','{"config_id":1,"version":2,"installs_hash_b64":"5OqDCwhteCASJotjbPiI8oIq9MIBeeRBjTQVTB/X1us="}');
INSERT INTO "signals" VALUES(1,1790000001000,0,'ca.assigned','{"ca_id":1,"serial":"07","ca_name":"private 0"}');
INSERT INTO "signals" VALUES(1,1790000601000,0,'cert.renewed','{"cert_id":4,"serial":"10:06"}');
INSERT INTO "signals" VALUES(1,1790000662061,0,'cert.renewed','{"cert_id":3,"serial":"10:07"}');
INSERT INTO "signals" VALUES(1,1790000662061,1,'cert.renewed','{"cert_id":4,"serial":"10:08"}');
INSERT INTO "signals" VALUES(1,1790000662061,2,'cert.revoked','{"cert_id":5}');
INSERT INTO "signals" VALUES(1,1790001320061,0,'cert.renewed','{"cert_id":1,"serial":"10:09"}');
INSERT INTO "signals" VALUES(1,1790001320061,1,'cert.renewed','{"cert_id":2,"serial":"10:0a"}');
INSERT INTO "signals" VALUES(1,1790001320061,2,'future.kind3','{"cert_id":1}');
CREATE TABLE sockets (
  device_id INTEGER PRIMARY KEY REFERENCES devices(id), name TEXT NOT NULL, plane TEXT NOT NULL,
  plane_started_at REAL NOT NULL, opened_at REAL NOT NULL
);
CREATE TABLE streams (
  device_id INTEGER PRIMARY KEY REFERENCES devices(id),
  last_ms INTEGER NOT NULL, last_seq INTEGER NOT NULL, floor_ms INTEGER NOT NULL, floor_seq INTEGER NOT NULL,
  length INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "streams" VALUES(1,1790001320061,2,1790000000000,0,14);
CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, created_at REAL NOT NULL);
INSERT INTO "users" VALUES(1,'operator',1790000000.0);
CREATE INDEX refresh_tokens_device ON refresh_tokens(device_id);
CREATE INDEX grants_expiry ON grants(expires_at);
CREATE INDEX certificates_user ON certificates(user_id);
CREATE INDEX issues_certificate ON issues(cert_id, id);
CREATE INDEX assignments_certificate ON assignments(cert_id);
CREATE INDEX outcomes_age ON outcomes(device_id, at);
CREATE INDEX devices_public_id ON devices(device_public_id);
CREATE INDEX jobs_due ON jobs(kind, due);
CREATE INDEX limits_age ON limits(kind, at);
CREATE INDEX certificates_renewal ON certificates(renew_at);
CREATE INDEX certificates_template ON certificates(template_id);
CREATE INDEX certificates_key ON certificates(public_key_sha256);
CREATE UNIQUE INDEX orders_open ON orders(cert_id) WHERE state IN ('csr_wanted', 'ready', 'blocked');
CREATE INDEX orders_certificate ON orders(cert_id, id);
CREATE INDEX published_proofs_due ON published_proofs(due);
CREATE INDEX device_tags_tag ON device_tags(tag, device_id);
CREATE INDEX questions_device ON questions(device_id, id);
CREATE INDEX questions_open ON questions(expires_at) WHERE result = '';
CREATE INDEX orders_batch ON orders(batch) WHERE batch != '';
CREATE INDEX install_configs_due ON install_configs(device_id) WHERE due != 0;
CREATE UNIQUE INDEX operators_name ON operators(name) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX operators_subject ON operators(subject) WHERE deleted_at IS NULL AND subject != '';
CREATE INDEX operator_tokens_operator ON operator_tokens(operator_id);
CREATE INDEX audit_age ON audit(at);
CREATE INDEX audit_objects_entry ON audit_objects(audit_id);
CREATE INDEX audit_objects_object ON audit_objects(kind, object_id);
CREATE INDEX deployments_failing ON deployments(device_id) WHERE failing = 1;
CREATE INDEX device_replacements_device ON device_replacements(device_id, id);
CREATE INDEX endpoints_wrong ON endpoints(device_id, cert_id) WHERE reason != '';
CREATE INDEX alert_messages_channel ON alert_messages(channel_id, id);
CREATE INDEX alert_messages_due ON alert_messages(channel_id, group_name, id) WHERE state = 'due';
CREATE INDEX certificate_holds_rollout ON certificate_holds(rollout_id);
CREATE UNIQUE INDEX rollouts_open ON rollouts(profile_id) WHERE state IN ('running', 'paused', 'halted');
CREATE INDEX rollouts_user ON rollouts(user_id, id);
CREATE INDEX rollout_devices_device ON rollout_devices(device_id);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('rollouts',0);
INSERT INTO "sqlite_sequence" VALUES('users',1);
INSERT INTO "sqlite_sequence" VALUES('jobs',1);
INSERT INTO "sqlite_sequence" VALUES('enrolment_tokens',1);
INSERT INTO "sqlite_sequence" VALUES('devices',1);
INSERT INTO "sqlite_sequence" VALUES('install_configs',1);
INSERT INTO "sqlite_sequence" VALUES('certificates',5);
INSERT INTO "sqlite_sequence" VALUES('issues',11);
INSERT INTO "sqlite_sequence" VALUES('authorities',1);
COMMIT;
