BEGIN TRANSACTION;
CREATE TABLE assignments (
  device_id INTEGER NOT NULL REFERENCES devices(id), cert_id INTEGER NOT NULL REFERENCES certificates(id),
  assigned_at REAL NOT NULL, PRIMARY KEY (device_id, cert_id)
) WITHOUT ROWID;
INSERT INTO "assignments" VALUES(1,1,1790000317.0);
INSERT INTO "assignments" VALUES(1,2,1790000317.0);
INSERT INTO "assignments" VALUES(1,3,1790000317.0);
INSERT INTO "assignments" VALUES(1,4,1790000317.0);
INSERT INTO "assignments" VALUES(1,5,1790000317.0);
INSERT INTO "assignments" VALUES(1,6,1790000317.0);
INSERT INTO "assignments" VALUES(1,7,1790000317.0);
INSERT INTO "assignments" VALUES(1,8,1790000317.0);
INSERT INTO "assignments" VALUES(1,9,1790000317.0);
INSERT INTO "assignments" VALUES(1,10,1790000317.0);
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
',2263040000.0,1790000610.0);
INSERT INTO "authorities" VALUES(2,1,'second','07','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',2263040000.0,1790024544.0);
CREATE TABLE authority_assignments (
  device_id INTEGER NOT NULL REFERENCES devices(id), ca_id INTEGER NOT NULL REFERENCES authorities(id),
  assigned_at REAL NOT NULL, PRIMARY KEY (device_id, ca_id)
) WITHOUT ROWID;
INSERT INTO "authority_assignments" VALUES(1,1,1790000610.0);
INSERT INTO "authority_assignments" VALUES(1,2,1790024544.0);
CREATE TABLE certificates (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  domain_name TEXT NOT NULL, sans TEXT NOT NULL, key_type TEXT NOT NULL, validity_seconds INTEGER NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('active', 'revoked')),
  serial_number TEXT NOT NULL, fingerprint_sha256 TEXT NOT NULL, not_before REAL NOT NULL, not_after REAL NOT NULL,
  certificate_pem TEXT NOT NULL, chain_pem TEXT NOT NULL, private_key_enc BLOB NOT NULL,
  created_at REAL NOT NULL, updated_at REAL NOT NULL, revoked_at REAL, revoke_reason TEXT NOT NULL DEFAULT ''
);
INSERT INTO "certificates" VALUES(1,1,'keystore.example','["keystore.example"]','ecdsa-p256',17280000,'active','10:12','19ff8f65e51eb1d9e28fe5f3baf919c0bb2001ac54e72da98a51d0fd027cc629',1790024244.0,1807304544.0,'-----BEGIN CERTIFICATE-----
MIIBADCBs6ADAgECAgIQEjAFBgMrZXAwFzEVMBMGA1UEAwwMc2ltdWxhdGVkIENB
MB4XDTI2MDkyMTIwNTcyNFoXDTI3MDQwOTIxMDIyNFowGzEZMBcGA1UEAwwQa2V5
c3RvcmUuZXhhbXBsZTAqMAUGAytlcAMhADyRN1ikhzp83fVUYi9BIPuj1MEQVt+m
ePLLwiEPvFfPox8wHTAbBgNVHREEFDASghBrZXlzdG9yZS5leGFtcGxlMAUGAytl
cANBAM6NysfhAtTjW0Nr0LODcIW6ooIGkALl2iGcEFhO7Z0dUrhtYtHO5j9CbeDs
qaCoNy+nJvGIC6cOuEZrvyYXPQw=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'D5F47B84BB7538B636E405B9C3991C1DF5596D83CCC17E15CC27B9E39271F3BA90A4ADCB94419C40DB3CD2EF87D2EA3DB7B8FF6C8AE1FAA0340D8DF17E68BB9557DA56486925ED3F15EC660F',1790000317.0,1790024544.0,NULL,'');
INSERT INTO "certificates" VALUES(2,1,'copied.example','["copied.example"]','ecdsa-p256',28800,'active','10:13','945b51e2871350fe8643595695c1b33620a7b5223162f8d27276cbc3559cecd3',1790024244.0,1790053344.0,'-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhATMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMjA1NzI0WhcNMjYwOTIyMDUwMjI0WjAZMRcwFQYDVQQDDA5jb3Bp
ZWQuZXhhbXBsZTAqMAUGAytlcAMhAFl9lpg8gc2aoHS27HmourlUOj6JG0ThUOh4
A2UaJEEMox0wGzAZBgNVHREEEjAQgg5jb3BpZWQuZXhhbXBsZTAFBgMrZXADQQAC
ey98HtES/sRzcpdI1G8XhhYI8SiVDAHmeXon65gQ3vFAOyIQHxM01HuJ6hPErIEg
kwKKcJvFzq/Fr1BlxCoI
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'74C02E027A78E5BA048B2C15F561D0332CB15C930FA131808882D772BCFB822671CAEFDBFE77462F60D533C49C6FE11927DFC5364623A7F47939FCAA1238A9AC301AB231B7A5085D62E1CFE7',1790000317.0,1790024544.0,NULL,'');
INSERT INTO "certificates" VALUES(3,1,'broken.example','["broken.example"]','ecdsa-p256',17280000,'active','10:0c','a51845cb2f8c2037769410fb8d7d50cde472590cc4b426ffd21277d5c624a937',1790001218.0,1807281518.0,'-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhAMMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQzMzM4WhcNMjcwNDA5MTQzODM4WjAZMRcwFQYDVQQDDA5icm9r
ZW4uZXhhbXBsZTAqMAUGAytlcAMhADrrpRZ5GS3EJm2TIJuz3lTkDyis2Ck/3k0z
nU42F1qgox0wGzAZBgNVHREEEjAQgg5icm9rZW4uZXhhbXBsZTAFBgMrZXADQQCx
KEnCYmjxwQg3itSRiT6lA8x33Hz8Kb4V8QF1QEVp0Twmwjmaeee8fZ2LvdzVDbLy
a0UUur1tpCbsWqS8TMQP
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'4FAFAD1C0294E54F3D86B58949B48C17A05846B3E23B73CC1E38EAB12384F80C347C75EC01A7438B19BECFFAB12D74F2926742EABCA93F0DB1AD402A2D6D7328C6C7755108D9322B0EA83B52',1790000317.0,1.79000151830885338788e+09,NULL,'');
INSERT INTO "certificates" VALUES(4,1,'tolerated.example','["tolerated.example"]','ecdsa-p256',17280000,'active','10:0d','5c28034a0069aab44e0fb694f75d36979b53a751b53e6012cc9295c7440a83c9',1790001218.0,1807281518.0,'-----BEGIN CERTIFICATE-----
MIIBAjCBtaADAgECAgIQDTAFBgMrZXAwFzEVMBMGA1UEAwwMc2ltdWxhdGVkIENB
MB4XDTI2MDkyMTE0MzMzOFoXDTI3MDQwOTE0MzgzOFowHDEaMBgGA1UEAwwRdG9s
ZXJhdGVkLmV4YW1wbGUwKjAFBgMrZXADIQAMYT8033BU8htiHhNreIDXh+5Mw0O1
IepPtw4HEMyAlqMgMB4wHAYDVR0RBBUwE4IRdG9sZXJhdGVkLmV4YW1wbGUwBQYD
K2VwA0EAn9RxJ6s+8QlLegiW0OHMOwLUNoDBVHM/xaw6/YdiQvjrNrO/mFKU0YaO
yK++n+vYbZNwUIytFqWVr1QLNbtIAg==
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'27F51A0C489EABA701B4182EF8203A108702B5D96484AEDFA3B8AE8D82A11D47399FE6AB029F823651A44152E528BAED707AEAD6180ABBB18326DF841E129D72297FB0D44A523E2DA1078188',1790000317.0,1.79000151830885338788e+09,NULL,'');
INSERT INTO "certificates" VALUES(5,1,'held.example','["held.example"]','ecdsa-p256',17280000,'active','10:0e','ed1d547e1a83ed3bfcdd6429a1bc1e7983f5eee8784e0079d9138286343a7643',1790001218.0,1807281518.0,'-----BEGIN CERTIFICATE-----
MIH4MIGroAMCAQICAhAOMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQzMzM4WhcNMjcwNDA5MTQzODM4WjAXMRUwEwYDVQQDDAxoZWxk
LmV4YW1wbGUwKjAFBgMrZXADIQAs/IHknrE7S+tZpqHUGFHAv7aQ70rg1VXcB8yX
uV97qqMbMBkwFwYDVR0RBBAwDoIMaGVsZC5leGFtcGxlMAUGAytlcANBAAAY9QC3
3Ru2h6TXoyybnmuOKtedN0AFYBP6GCDXqvGEdOed0DVEKRFjLCL3axU5oQezuh3P
0fqX0lMLyE0CIAU=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'BC1A2BD8C2B8BC50C0FFD05811734F6FEB11443481EAC7D17E8192AB3FF6DED35893E188FC8459B3E48EC5FB983888BB1200926AE2127FFE19327B705BB9F10468CB7A1A4A284CA99D7A4B55',1790000317.0,1.79000151830885338788e+09,NULL,'');
INSERT INTO "certificates" VALUES(6,1,'waiting.example','["waiting.example"]','ecdsa-p256',17280000,'active','10:14','98fb852afc964c156625e3b8a3bf530526b29adbf61ee6fee536e00d55cad4e0',1790024244.0,1807304544.0,'-----BEGIN CERTIFICATE-----
MIH+MIGxoAMCAQICAhAUMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMjA1NzI0WhcNMjcwNDA5MjEwMjI0WjAaMRgwFgYDVQQDDA93YWl0
aW5nLmV4YW1wbGUwKjAFBgMrZXADIQAOh8UBGpHZFAJ4cubQth6HgLQFOZpaonZD
wQnDdzQci6MeMBwwGgYDVR0RBBMwEYIPd2FpdGluZy5leGFtcGxlMAUGAytlcANB
AHPU07RzUEwZUKiH4XCwWHjycz+cvBWO5yOgiPKKcEW432hoFhDh4JH0QenawfNB
j+/Ghdc+SJD1VjMfAkhcNQA=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'650EDD1A74FE28DC88F7BCAC3110B9C7CE383E3D02042C4FAE0CE2193F2D4CEF986615B8FFFC6AB278D393615F38657332A7D33A4489F8092679592CDC8DA3C4859F32C5B7A3C03D386D927B',1790000317.0,1790024544.0,NULL,'');
INSERT INTO "certificates" VALUES(7,1,'*.wild.example','["*.wild.example"]','ecdsa-p256',17280000,'active','10:11','4b821cc344e8acabd5d56af5b6a7dd3d284fc95673bbca2bc1f6cb4624a42009',1790024180.0,1807304480.0,'-----BEGIN CERTIFICATE-----
MIH8MIGvoAMCAQICAhARMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMjA1NjIwWhcNMjcwNDA5MjEwMTIwWjAZMRcwFQYDVQQDDA4qLndp
bGQuZXhhbXBsZTAqMAUGAytlcAMhADhztzzIZS7s0haYW1Qm+Ew8qjSjTglG3Ocf
BhjeKfbAox0wGzAZBgNVHREEEjAQgg4qLndpbGQuZXhhbXBsZTAFBgMrZXADQQA/
EbMfr2Yr5xVLwiOUgxWLBsVsm4KEzLQdZcG/M+hmFXAiQ+YRL3IQhQvhk2tnToyk
NuRSBld7b0GC5OKYBmUK
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'192049A0E6C8B5897126BCDBA8FD0113EB9CE40004C7B96D13EB47B1791BB270FA671BCC8B29A5D1F3CF6DFA412C0B09211FC1B4244B1E5004B08A745D6B342D2547EC1F896746F782370233',1790000317.0,1790024480.0,NULL,'');
INSERT INTO "certificates" VALUES(8,1,'revoked.example','["revoked.example"]','ecdsa-p256',17280000,'revoked','10:08','c1a24cbe2411ad296a5076fc5c778c0c5920073e6a79eb092100f168e728ea3a',1790000017.0,1807280317.0,'-----BEGIN CERTIFICATE-----
MIH+MIGxoAMCAQICAhAIMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQxMzM3WhcNMjcwNDA5MTQxODM3WjAaMRgwFgYDVQQDDA9yZXZv
a2VkLmV4YW1wbGUwKjAFBgMrZXADIQBDViYQKwKKZ4jMq1wfUMRF26ChPXXuwXe5
QcsJSU5HB6MeMBwwGgYDVR0RBBMwEYIPcmV2b2tlZC5leGFtcGxlMAUGAytlcANB
AOIDTIr2jdib0o5JI9BBiY8I75AMCBLd0F+kK9/hLUmMCxDuQrwAlouPCAn98Zrm
EeVlKdqRW5874wTozZMEIQE=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'',1790000317.0,1.79000151830885338788e+09,1.79000151830885338788e+09,'');
INSERT INTO "certificates" VALUES(9,1,'unproven.example','["unproven.example"]','ecdsa-p256',17280000,'active','10:0f','e461ccf80e61437669dde30c94216786ca2ded7b24bba51eeb8f6d2596e4fab4',1790001218.0,1807281518.0,'-----BEGIN CERTIFICATE-----
MIIBADCBs6ADAgECAgIQDzAFBgMrZXAwFzEVMBMGA1UEAwwMc2ltdWxhdGVkIENB
MB4XDTI2MDkyMTE0MzMzOFoXDTI3MDQwOTE0MzgzOFowGzEZMBcGA1UEAwwQdW5w
cm92ZW4uZXhhbXBsZTAqMAUGAytlcAMhALT3VqbLrauCh69Ua7mnmbu1CsWZLDTh
Fpxy3xsSCmPwox8wHTAbBgNVHREEFDASghB1bnByb3Zlbi5leGFtcGxlMAUGAytl
cANBAJvlrcEFqbamTMicFnBqbVIy9F33E7u4driPe057lP1D9m/TAojHQ3UTo24y
rwNYS6qd2SCjldvEGU9AROauYQc=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'7C22D3A6422EC9E73DDBC0C62266A03F6F5833183013C71EB90B75C62F17D1563D53E124E8DCCDEF79238EB641C7DC51405940792222882BAE4FCD3727A801367784D24A8E0A9C971A333C0C',1790000317.0,1.79000151830885338788e+09,NULL,'');
INSERT INTO "certificates" VALUES(10,1,'poison1.example','["poison1.example"]','ecdsa-p256',17280000,'active','10:0a','4f69c24ef69d24e84a93a4880419dcb513b6884289084e99dc5f72da86c05934',1790000017.0,1807280317.0,'-----BEGIN CERTIFICATE-----
MIH+MIGxoAMCAQICAhAKMAUGAytlcDAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
HhcNMjYwOTIxMTQxMzM3WhcNMjcwNDA5MTQxODM3WjAaMRgwFgYDVQQDDA9wb2lz
b24xLmV4YW1wbGUwKjAFBgMrZXADIQDNoDUOEc+dgJxeymGLICdjy28EYqU+i71b
sU8OYWfWe6MeMBwwGgYDVR0RBBMwEYIPcG9pc29uMS5leGFtcGxlMAUGAytlcANB
AD2b8HbJzXQ6kbLdLLWO7C2RudgFYkl13MvQrhS/p8fAcF3WNDuKVU7o0vOVcQDQ
25QQqVRc9sADdq0je77czwQ=
-----END CERTIFICATE-----
','-----BEGIN CERTIFICATE-----
MIHnMIGaoAMCAQICAQcwBQYDK2VwMA8xDTALBgNVBAMMBHJvb3QwHhcNMTEwOTI1
MTQxMzIwWhcNNDEwOTE3MTQxMzIwWjAXMRUwEwYDVQQDDAxzaW11bGF0ZWQgQ0Ew
KjAFBgMrZXADIQBoLPd0YycunG5paS76hiC/iQEw4urnyE4z3Z6udg4fLaMTMBEw
DwYDVR0TAQH/BAUwAwEB/zAFBgMrZXADQQALJJeqA6c5nGMoDeSfFEoEdv0Y0f8Q
iAn0OgaNU3GCsrNzs3UeQNe/v56DwEmSvXo8ie7NvgpxSjsUbH8d9DwA
-----END CERTIFICATE-----
',X'4F1A67D3406D59EA7431975F53D0F7A29D9D72CB5F0C3837CCE4100C47F1733B1DC90D8BEFE1C9FFA17312423E3C7EACB63006B1B91A37718CC643C2D8FF54A278CAAC73B045C9A41C88211F',1790000317.0,1790000317.0,NULL,'');
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
INSERT INTO "devices" VALUES(1,1,'23229bf7-5172-02c7-59a2-76d5b4a40090','active','vm','linux','Debian GNU/Linux 12 (bookworm) x86_64','0.1.0','cert-ctrl/0.1.0',X'8F40C5ADB68F25624AE5B214EA767A6EC94D829D3D7B5E1AD1BA6F3E2138285F','57addcd56cefb4269c07945b89a221a829a40f1f0e8bd64c4a958219abc5c2c1',1,1790000000.0,1790000000.0,NULL,'',NULL,'','');
CREATE TABLE enrolment_tokens (
  id INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER NOT NULL REFERENCES users(id),
  token_hash TEXT NOT NULL UNIQUE, label TEXT NOT NULL, max_uses INTEGER, uses INTEGER NOT NULL DEFAULT 0,
  created_at REAL NOT NULL, expires_at REAL NOT NULL, ended_at REAL
);
INSERT INTO "enrolment_tokens" VALUES(1,1,'1c645be6077a85cf91c61a8cff82a7d65bebf8abf67c6049265fe74e36bcdb81','',1,1,1790000000.0,1790086400.0,NULL);
CREATE TABLE enrolments (
  token_id INTEGER NOT NULL REFERENCES enrolment_tokens(id), device_id INTEGER NOT NULL REFERENCES devices(id),
  PRIMARY KEY (token_id, device_id)
) WITHOUT ROWID;
INSERT INTO "enrolments" VALUES(1,1);
CREATE TABLE grants (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  device_code_hash TEXT NOT NULL UNIQUE, user_code TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'denied', 'used')),
  name TEXT NOT NULL DEFAULT '', platform TEXT NOT NULL DEFAULT '', device_public_id TEXT NOT NULL DEFAULT '',
  user_agent TEXT NOT NULL DEFAULT '', address TEXT NOT NULL DEFAULT '', scopes TEXT NOT NULL DEFAULT '',
  created_at REAL NOT NULL, expires_at REAL NOT NULL, interval REAL NOT NULL, polled_at REAL,
  user_id INTEGER REFERENCES users(id), registration_hash TEXT UNIQUE, registration_expires_at REAL
);
CREATE TABLE install_configs (
  id INTEGER PRIMARY KEY AUTOINCREMENT, device_id INTEGER NOT NULL UNIQUE REFERENCES devices(id),
  version INTEGER NOT NULL, installs_json TEXT NOT NULL, installs_hash_b64 TEXT NOT NULL, updated_at REAL NOT NULL
);
INSERT INTO "install_configs" VALUES(1,1,3,'[{"id":"r1","type":"exec","cmd_argv":["/bin/true","reload","1"],"verify":{"type":"tls","host":"127.0.0.1","port":10001},"ob_type":"cert","ob_id":1},{"id":"c2","type":"copy","from":["fullchain.pem","private.key"],"to":["/srv/tls/2.pem","/srv/tls/2.key"],"ob_type":"cert","ob_id":2},{"id":"r2","type":"exec","cmd_argv":["/bin/true","reload","2"],"verify":{"type":"tls","host":"127.0.0.1","port":10002},"ob_type":"cert","ob_id":2,"depends_on":["c2"]},{"id":"r3","type":"exec","cmd_argv":["/bin/true","reload","3"],"verify":{"type":"tls","host":"127.0.0.1","port":10003},"ob_type":"cert","ob_id":3},{"id":"c4","type":"copy","from":["fullchain.pem","private.key"],"to":["/srv/tls/4.pem","/srv/tls/4.key"],"ob_type":"cert","ob_id":4},{"id":"r4","type":"exec","cmd_argv":["/bin/true","reload","4"],"verify":{"type":"tls","host":"127.0.0.1","port":10004},"ob_type":"cert","ob_id":4,"depends_on":["c4"],"continue_on_error":true},{"id":"r5","type":"exec","cmd_argv":["/bin/true","reload","5"],"verify":{"type":"tls","host":"127.0.0.1","port":10005},"ob_type":"cert","ob_id":5},{"id":"c6","type":"copy","from":["fullchain.pem","private.key"],"to":["/srv/tls/6.pem","/srv/tls/6.key"],"ob_type":"cert","ob_id":6},{"id":"r6","type":"exec","cmd_argv":["/bin/true","reload","6"],"verify":{"type":"tls","host":"127.0.0.1","port":10006},"ob_type":"cert","ob_id":6,"depends_on":["c6"]},{"id":"r7","type":"exec","cmd_argv":["/bin/true","reload","7"],"verify":{"type":"tls","host":"127.0.0.1","port":10007},"ob_type":"cert","ob_id":7},{"id":"c8","type":"copy","from":["fullchain.pem","private.key"],"to":["/srv/tls/8.pem","/srv/tls/8.key"],"ob_type":"cert","ob_id":8},{"id":"r8","type":"exec","cmd_argv":["/bin/true","reload","8"],"verify":{"type":"tls","host":"127.0.0.1","port":10008},"ob_type":"cert","ob_id":8,"depends_on":["c8"]},{"id":"r9","type":"exec","cmd_argv":["/bin/true","reload","9"],"verify":{"type":"tls","host":"127.0.0.1","port":10009},"ob_type":"cert","ob_id":9},{"id":"p1","type":"copy","from":["bundle.pfx"],"to":["/srv/tls/1.pfx"],"ob_type":"cert","ob_id":1}]','6aaa05QmoiZdUg9YI0ZiFg58QR92rzrKo40IJJZbh0U=',1790000610.0);
CREATE TABLE issues (
  id INTEGER PRIMARY KEY AUTOINCREMENT, cert_id INTEGER NOT NULL REFERENCES certificates(id),
  action TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', device_id INTEGER REFERENCES devices(id),
  serial_number TEXT NOT NULL DEFAULT '', status TEXT NOT NULL, at REAL NOT NULL
);
INSERT INTO "issues" VALUES(1,1,'issue','',NULL,'10:01','done',1790000317.0);
INSERT INTO "issues" VALUES(2,2,'issue','',NULL,'10:02','done',1790000317.0);
INSERT INTO "issues" VALUES(3,3,'issue','',NULL,'10:03','done',1790000317.0);
INSERT INTO "issues" VALUES(4,4,'issue','',NULL,'10:04','done',1790000317.0);
INSERT INTO "issues" VALUES(5,5,'issue','',NULL,'10:05','done',1790000317.0);
INSERT INTO "issues" VALUES(6,6,'issue','',NULL,'10:06','done',1790000317.0);
INSERT INTO "issues" VALUES(7,7,'issue','',NULL,'10:07','done',1790000317.0);
INSERT INTO "issues" VALUES(8,8,'issue','',NULL,'10:08','done',1790000317.0);
INSERT INTO "issues" VALUES(9,9,'issue','',NULL,'10:09','done',1790000317.0);
INSERT INTO "issues" VALUES(10,10,'issue','',NULL,'10:0a','done',1790000317.0);
INSERT INTO "issues" VALUES(11,5,'renew','',NULL,'10:0b','done',1790001510.0);
INSERT INTO "issues" VALUES(12,3,'renew','',NULL,'10:0c','done',1.79000151830885338788e+09);
INSERT INTO "issues" VALUES(13,4,'renew','',NULL,'10:0d','done',1.79000151830885338788e+09);
INSERT INTO "issues" VALUES(14,5,'renew','',NULL,'10:0e','done',1.79000151830885338788e+09);
INSERT INTO "issues" VALUES(15,9,'renew','',NULL,'10:0f','done',1.79000151830885338788e+09);
INSERT INTO "issues" VALUES(16,8,'revoke','',NULL,'10:08','done',1.79000151830885338788e+09);
INSERT INTO "issues" VALUES(17,6,'renew','',NULL,'10:10','done',1790007200.0);
INSERT INTO "issues" VALUES(18,7,'renew','',NULL,'10:11','done',1790024480.0);
INSERT INTO "issues" VALUES(19,1,'renew','',NULL,'10:12','done',1790024544.0);
INSERT INTO "issues" VALUES(20,2,'renew','',NULL,'10:13','done',1790024544.0);
INSERT INTO "issues" VALUES(21,6,'renew','',NULL,'10:14','done',1790024544.0);
CREATE TABLE outcomes (
  device_id INTEGER NOT NULL REFERENCES devices(id), signal TEXT NOT NULL, type TEXT NOT NULL, ts_ms INTEGER NOT NULL,
  ref TEXT NOT NULL, outcome TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '', deployed TEXT NOT NULL DEFAULT '[]',
  duration_ms INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL,
  PRIMARY KEY (device_id, signal)
) WITHOUT ROWID;
INSERT INTO "outcomes" VALUES(1,'ca.assigned|ca_id=1|1790000610000','ca.assigned',1790000610000,'{"ca_id":1,"serial":"07","ca_name":"private 0"}','applied','','[]',536,1.79000124014943933492e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=10|1790000317000','cert.renewed',1790000317000,'{"cert_id":10,"serial":"10:0a"}','failed','the private key does not belong to the certificate','[]',18,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=1|1790000317000','cert.renewed',1790000317000,'{"cert_id":1,"serial":"10:01"}','applied','','[{"cert_id":1,"serial":"10:01","fingerprint_sha256":"d28f600c55e9de4047f98f3ef880acca46e2cc86e9e8853707323a7624975509","targets":["{ROOT}/certs/keystore.example.crt","{ROOT}/certs/keystore.example.key","{ROOT}/certs/chains/keystore.example.pem","/srv/tls/1.pfx"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=2|1790000317000','cert.renewed',1790000317000,'{"cert_id":2,"serial":"10:02"}','applied','','[{"cert_id":2,"serial":"10:02","fingerprint_sha256":"e7df3674f5fd288dabb18ec978774277de1ac7ec9adcc1182c36ee7895c70019","targets":["{ROOT}/certs/copied.example.crt","{ROOT}/certs/copied.example.key","{ROOT}/certs/chains/copied.example.pem","/srv/tls/2.pem","/srv/tls/2.key"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=3|1790000317000','cert.renewed',1790000317000,'{"cert_id":3,"serial":"10:03"}','applied','','[{"cert_id":3,"serial":"10:03","fingerprint_sha256":"893488b3782f81f9ab74f24b68697fb219efcc041feb985259716c3da91c30ac","targets":["{ROOT}/certs/broken.example.crt","{ROOT}/certs/broken.example.key","{ROOT}/certs/chains/broken.example.pem"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=3|1790001518308','cert.renewed',1790001518308,'{"cert_id":3,"serial":"10:0c"}','rolled_back','item r3: /bin/true exited with 1: the service refuses its files','[{"cert_id":3,"serial":"10:03","fingerprint_sha256":"893488b3782f81f9ab74f24b68697fb219efcc041feb985259716c3da91c30ac","targets":["{ROOT}/certs/broken.example.crt","{ROOT}/certs/broken.example.key","{ROOT}/certs/chains/broken.example.pem"]}]',841,1.79000212369123387341e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=3|1790001868840','cert.renewed',1790001868840,'{"cert_id":3}','rolled_back','item r3: /bin/true exited with 1: the service refuses its files','[{"cert_id":3,"serial":"10:03","fingerprint_sha256":"893488b3782f81f9ab74f24b68697fb219efcc041feb985259716c3da91c30ac","targets":["{ROOT}/certs/broken.example.crt","{ROOT}/certs/broken.example.key","{ROOT}/certs/chains/broken.example.pem"]}]',30000,1.79000212369123387341e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1790000317000','cert.renewed',1790000317000,'{"cert_id":4,"serial":"10:04"}','applied','','[{"cert_id":4,"serial":"10:04","fingerprint_sha256":"42f01564b6b604480f00e7a016b2da8461972c26fc0932dc9ab6285f99d375df","targets":["{ROOT}/certs/tolerated.example.crt","{ROOT}/certs/tolerated.example.key","{ROOT}/certs/chains/tolerated.example.pem","/srv/tls/4.pem","/srv/tls/4.key"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1790001518308','cert.renewed',1790001518308,'{"cert_id":4,"serial":"10:0d"}','applied','tolerated: item r4: /bin/true exited with 1: the service refuses its files; tolerated: port 10004 serves another certificate','[{"cert_id":4,"serial":"10:0d","fingerprint_sha256":"5c28034a0069aab44e0fb694f75d36979b53a751b53e6012cc9295c7440a83c9","targets":["{ROOT}/certs/tolerated.example.crt","{ROOT}/certs/tolerated.example.key","{ROOT}/certs/chains/tolerated.example.pem","/srv/tls/4.pem","/srv/tls/4.key"]}]',15070,1.79000212369123387341e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=4|1790001868840','cert.renewed',1790001868840,'{"cert_id":4}','applied','tolerated: item r4: /bin/true exited with 1: the service refuses its files; tolerated: port 10004 serves another certificate','[{"cert_id":4,"serial":"10:0d","fingerprint_sha256":"5c28034a0069aab44e0fb694f75d36979b53a751b53e6012cc9295c7440a83c9","targets":["{ROOT}/certs/tolerated.example.crt","{ROOT}/certs/tolerated.example.key","{ROOT}/certs/chains/tolerated.example.pem","/srv/tls/4.pem","/srv/tls/4.key"]}]',30000,1.79000212369123387341e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=5|1790000317000','cert.renewed',1790000317000,'{"cert_id":5,"serial":"10:05"}','applied','','[{"cert_id":5,"serial":"10:05","fingerprint_sha256":"82956d0ec172aa7a3c3fc7bfeec9fdf8b3b70522d6bcacdb9a712e5496317b3c","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=5|1790001510000','cert.renewed',1790001510000,'{"cert_id":5,"serial":"10:0b"}','applied','','[{"cert_id":5,"serial":"10:0b","fingerprint_sha256":"23628e73edbb96808d7e263a5ec6f66254870e483df3bc646ceb5b18b01f1dee","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem"]}]',72,1.79000151728009057041e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=5|1790001518308','cert.renewed',1790001518308,'{"cert_id":5,"serial":"10:0e"}','applied','staged; held at an earlier generation until `cert-ctrl rollback --release`','[{"cert_id":5,"serial":"10:05","fingerprint_sha256":"82956d0ec172aa7a3c3fc7bfeec9fdf8b3b70522d6bcacdb9a712e5496317b3c","targets":["{ROOT}/certs/held.example.crt","{ROOT}/certs/held.example.key","{ROOT}/certs/chains/held.example.pem"]}]',15070,1.79000212369123387341e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=6|1790000317000','cert.renewed',1790000317000,'{"cert_id":6,"serial":"10:06"}','applied','','[{"cert_id":6,"serial":"10:06","fingerprint_sha256":"0fcfef7d6e6ab4638df164cfc5ff871d4b2435bc764f019060183706d5e4ec30","targets":["{ROOT}/certs/waiting.example.crt","{ROOT}/certs/waiting.example.key","{ROOT}/certs/chains/waiting.example.pem","/srv/tls/6.pem","/srv/tls/6.key"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=6|1790007200000','cert.renewed',1790007200000,'{"cert_id":6,"serial":"10:10"}','applied','staged; waits for the window daily 14:00-16:00 UTC','[{"cert_id":6,"serial":"10:06","fingerprint_sha256":"0fcfef7d6e6ab4638df164cfc5ff871d4b2435bc764f019060183706d5e4ec30","targets":["{ROOT}/certs/waiting.example.crt","{ROOT}/certs/waiting.example.key","{ROOT}/certs/chains/waiting.example.pem","/srv/tls/6.pem","/srv/tls/6.key"]}]',5,1.79000740948867774005e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=7|1790000317000','cert.renewed',1790000317000,'{"cert_id":7,"serial":"10:07"}','applied','','[{"cert_id":7,"serial":"10:07","fingerprint_sha256":"469f68a98db4d16cf833d512dfaaa70b097b305f660c82847ed0849442ebc9d2","targets":["{ROOT}/certs/_wildcard.wild.example.crt","{ROOT}/certs/_wildcard.wild.example.key","{ROOT}/certs/chains/_wildcard.wild.example.pem"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=8|1790000317000','cert.renewed',1790000317000,'{"cert_id":8,"serial":"10:08"}','applied','','[{"cert_id":8,"serial":"10:08","fingerprint_sha256":"c1a24cbe2411ad296a5076fc5c778c0c5920073e6a79eb092100f168e728ea3a","targets":["{ROOT}/certs/revoked.example.crt","{ROOT}/certs/revoked.example.key","{ROOT}/certs/chains/revoked.example.pem","/srv/tls/8.pem","/srv/tls/8.key"]}]',321,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=9|1790000317000','cert.renewed',1790000317000,'{"cert_id":9,"serial":"10:09"}','applied','','[{"cert_id":9,"serial":"10:09","fingerprint_sha256":"f8eaf1b356476a102653ef915a4202ae6593afce2431f0e53356daf07f38b969","targets":["{ROOT}/certs/unproven.example.crt","{ROOT}/certs/unproven.example.key","{ROOT}/certs/chains/unproven.example.pem"]}]',320,1.79000092589908194537e+09);
INSERT INTO "outcomes" VALUES(1,'cert.renewed|cert_id=9|1790001518308','cert.renewed',1790001518308,'{"cert_id":9,"serial":"10:0f"}','rolled_back','item r9: /bin/true exited with 1: the service refuses its files; and what was there before does not serve either: item r9: /bin/true exited with 1: the service refuses its files','[{"cert_id":9,"serial":"10:09","fingerprint_sha256":"f8eaf1b356476a102653ef915a4202ae6593afce2431f0e53356daf07f38b969","targets":["{ROOT}/certs/unproven.example.crt","{ROOT}/certs/unproven.example.key","{ROOT}/certs/chains/unproven.example.pem"]}]',237,1.79000212369123387341e+09);
INSERT INTO "outcomes" VALUES(1,'cert.revoked|cert_id=8|1790001518308','cert.revoked',1790001518308,'{"cert_id":8}','applied','removed','[]',79,1.79000183903178501131e+09);
INSERT INTO "outcomes" VALUES(1,'install.updated|config_id=1,version=1|1790000000027','install.updated',1790000000027,'{"config_id":1,"version":1}','unchanged','','[]',1,1.79000031662430667878e+09);
INSERT INTO "outcomes" VALUES(1,'install.updated|config_id=1,version=2|1790000317000','install.updated',1790000317000,'{"config_id":1,"version":2,"installs_hash_b64":"iI5v2S7sHQu4PAU4XRAglSjRlhV6wdMk8/oqv0f2528="}','applied','','[]',1,1.79000060940863466255e+09);
INSERT INTO "outcomes" VALUES(1,'install.updated|config_id=1,version=3|1790000610000','install.updated',1790000610000,'{"config_id":1,"version":3,"installs_hash_b64":"6aaa05QmoiZdUg9YI0ZiFg58QR92rzrKo40IJJZbh0U="}','applied','','[]',11,1.79000092621205592153e+09);
CREATE TABLE page_sessions (id_hash TEXT PRIMARY KEY, expires_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE refresh_tokens (
  id TEXT PRIMARY KEY, secret_hash TEXT NOT NULL, device_id INTEGER NOT NULL REFERENCES devices(id),
  session INTEGER NOT NULL, expires_at REAL NOT NULL
) WITHOUT ROWID;
INSERT INTO "refresh_tokens" VALUES('rt_3da361f9e68306c8b0f77d4ff0b47fe1','442765030ccf5f76687dbe4df3decfb1ec39b5f03c15a9f19ae3571c3f68b058',1,1,1.79777684014679050442e+09);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value_enc BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO "secrets" VALUES('ca-root',X'3EAE86EF62106F90E83C485FDC5595E76A5ACF33DE764140F743487D9EB62603BEB7B6710B5B8B111C78F596D1A44CBCBC938DE3EFAC62515DBECAD52D40111005DD42E1CE89124DCB88550865851B5CE035335B60DB10C118FA0728FF663699E731D7F230894258F42ED3A5DE7565A5F8434871D3B817CFF93AEA74F254E8159EECDC4EADEE048C259862716422490023A5A495CEE2045DF193D4C03B4978DBA83839B2FFCF54437431238C58DC7178AE0A81B6E3A8629EDF5C885BED8FC3578D849C1256699F75739DF5210BDE4DA811E9CA9A31BD063A3B4409ACA98D5B00801E4D54BDCB5EA5E32AE78C7013644855AB648D0C05E4999D905F49EC0D74E6B73DCCFE5AFCD59E41F990CAE9DD4677A54CAADC8A57A1C4357953F845D00F6A278A21DD24D1C303C8B4390109180653F8B9CBDE637243C4DF754FE81479E709A3171FBA5EF89D63457280449C701743B2563FDADD47FD7BDF536CD62EBA8EAE4581E59684044817F44A2D9B408B77ABA4C1224FB5123746E6651FEB13A448844FFCB672FAABD75EBD76419C4C0C310CAED0C79954B2F2F319CDD7A93CB73F760196B68327A06EF5483EB8CBA431034CB57690BDA3DA7CAC1C8B4B61FC936AE1EF925AA815385A77CCFEC6A00FEB4DDD2CE2BA0787F8052EA4135CFF12184A51585B1BFDEF02C002B6374FD40603664DDE390383FB3E6D809BF140818F9C9869A31AF62DE8E1C437CC13C30B1D8F5546E0BECDF974EB4289C9D6F523FDBE44305B4481511E50C6FC04C68F64E434B012FD466C829A8E651F8EBF8D8EEEEF3A0188258045F4F7F930557C545BBD82B3E159C45C2BC23A79E3833CE7FDFAA87C2BFECC54658B4E966EAD6B465409E3623801139194FFA1848AAB1002DAD0256B24DB352AA3F75BBE6E1001172833FB16A0DE264D19140513981E1C9A00E35182C3D1497A21C571C080A9E53DC0F9CC8B4A8592700528EFA06FF610AD94B29D2C8FA9F5DA69F997E92F9AB77AD3082877E3AAC465E6F41889691CD4FC0061829527B53829884EE954B733EC582DFE495CECC5B320C3AA03A54D7463259332F94AF123892CA2081E6229277D8AACFB1A2A8A4CDE1902B9568D18457575C9CD14707841AB97BDA1201F914D1F6C9FB1C4F25860307E477841169B5741DD27F67338E0974D8503F1C6C6CDDE9CAD91EA44EFB0000A3571FBD30D2DD6507CE49DDB3B281FF694E4C8F77FB01FA1A4CAC50A1004CB68E8490AF821CE65D2B222BD789CD0876BF6094B4D7E855EFF6891DC2CA07A6B42F13BFF');
INSERT INTO "secrets" VALUES('jwt',X'2E15C2F3E2F5DBC905486202A8E93CBB0E66E0138F4A02B894A94C88A872A4E224D49FC858A2BBF1DC9B76B45F9465F2456EC8E03B4A99FDFBCC87A9');
CREATE TABLE signals (
  device_id INTEGER NOT NULL, ms INTEGER NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL, ref TEXT NOT NULL,
  PRIMARY KEY (device_id, ms, seq)
) WITHOUT ROWID;
INSERT INTO "signals" VALUES(1,1790000317000,0,'cert.renewed','{"cert_id":1,"serial":"10:01"}');
INSERT INTO "signals" VALUES(1,1790000317000,1,'cert.renewed','{"cert_id":2,"serial":"10:02"}');
INSERT INTO "signals" VALUES(1,1790000317000,2,'cert.renewed','{"cert_id":3,"serial":"10:03"}');
INSERT INTO "signals" VALUES(1,1790000317000,3,'cert.renewed','{"cert_id":4,"serial":"10:04"}');
INSERT INTO "signals" VALUES(1,1790000317000,4,'cert.renewed','{"cert_id":5,"serial":"10:05"}');
INSERT INTO "signals" VALUES(1,1790000317000,5,'cert.renewed','{"cert_id":6,"serial":"10:06"}');
INSERT INTO "signals" VALUES(1,1790000317000,6,'cert.renewed','{"cert_id":7,"serial":"10:07"}');
INSERT INTO "signals" VALUES(1,1790000317000,7,'cert.renewed','{"cert_id":8,"serial":"10:08"}');
INSERT INTO "signals" VALUES(1,1790000317000,8,'cert.renewed','{"cert_id":9,"serial":"10:09"}');
INSERT INTO "signals" VALUES(1,1790000317000,9,'cert.renewed','{"cert_id":10,"serial":"10:0a"}');
INSERT INTO "signals" VALUES(1,1790000317000,10,'install.updated','{"config_id":1,"version":2,"installs_hash_b64":"iI5v2S7sHQu4PAU4XRAglSjRlhV6wdMk8/oqv0f2528="}');
INSERT INTO "signals" VALUES(1,1790000610000,0,'install.updated','{"config_id":1,"version":3,"installs_hash_b64":"6aaa05QmoiZdUg9YI0ZiFg58QR92rzrKo40IJJZbh0U="}');
INSERT INTO "signals" VALUES(1,1790000610000,1,'ca.assigned','{"ca_id":1,"serial":"07","ca_name":"private 0"}');
INSERT INTO "signals" VALUES(1,1790001510000,0,'cert.renewed','{"cert_id":5,"serial":"10:0b"}');
INSERT INTO "signals" VALUES(1,1790001518308,0,'cert.renewed','{"cert_id":3,"serial":"10:0c"}');
INSERT INTO "signals" VALUES(1,1790001518308,1,'cert.renewed','{"cert_id":4,"serial":"10:0d"}');
INSERT INTO "signals" VALUES(1,1790001518308,2,'cert.renewed','{"cert_id":5,"serial":"10:0e"}');
INSERT INTO "signals" VALUES(1,1790001518308,3,'cert.renewed','{"cert_id":9,"serial":"10:0f"}');
INSERT INTO "signals" VALUES(1,1790001518308,4,'cert.revoked','{"cert_id":8}');
INSERT INTO "signals" VALUES(1,1790007200000,0,'cert.renewed','{"cert_id":6,"serial":"10:10"}');
INSERT INTO "signals" VALUES(1,1790024480000,0,'cert.renewed','{"cert_id":7,"serial":"10:11"}');
INSERT INTO "signals" VALUES(1,1790024544000,0,'cert.renewed','{"cert_id":1,"serial":"10:12"}');
INSERT INTO "signals" VALUES(1,1790024544000,1,'cert.renewed','{"cert_id":2,"serial":"10:13"}');
INSERT INTO "signals" VALUES(1,1790024544000,2,'cert.renewed','{"cert_id":6,"serial":"10:14"}');
INSERT INTO "signals" VALUES(1,1790024544000,3,'ca.assigned','{"ca_id":2,"serial":"07","ca_name":"second"}');
INSERT INTO "signals" VALUES(1,1790024544000,4,'future.kind3','{"cert_id":1}');
CREATE TABLE streams (
  device_id INTEGER PRIMARY KEY REFERENCES devices(id),
  last_ms INTEGER NOT NULL, last_seq INTEGER NOT NULL, floor_ms INTEGER NOT NULL, floor_seq INTEGER NOT NULL,
  length INTEGER NOT NULL DEFAULT 0
);
INSERT INTO "streams" VALUES(1,1790024544000,4,1790000000000,0,26);
CREATE TABLE users (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, created_at REAL NOT NULL);
INSERT INTO "users" VALUES(1,'operator',1790000000.0);
CREATE INDEX refresh_tokens_device ON refresh_tokens(device_id);
CREATE INDEX grants_expiry ON grants(expires_at);
CREATE INDEX certificates_user ON certificates(user_id);
CREATE INDEX issues_certificate ON issues(cert_id, id);
CREATE INDEX assignments_certificate ON assignments(cert_id);
CREATE INDEX outcomes_age ON outcomes(device_id, at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('users',1);
INSERT INTO "sqlite_sequence" VALUES('enrolment_tokens',1);
INSERT INTO "sqlite_sequence" VALUES('devices',1);
INSERT INTO "sqlite_sequence" VALUES('install_configs',1);
INSERT INTO "sqlite_sequence" VALUES('certificates',10);
INSERT INTO "sqlite_sequence" VALUES('issues',21);
INSERT INTO "sqlite_sequence" VALUES('authorities',2);
COMMIT;
