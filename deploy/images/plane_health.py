"""Exit with status 0 if the control plane of this container is ready: the health check of its image."""

import http.client
import ssl
import sys
import urllib.parse
from pathlib import Path

address = urllib.parse.urlsplit(Path("/var/lib/cert-ctrl-plane/local_address").read_text(encoding="ascii").strip())
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it sends no secret, and any answer is from here
connection = http.client.HTTPSConnection(address.hostname or "", address.port, timeout=8, context=context)
connection.request("GET", "/health/ready")
answer = connection.getresponse()
print(answer.status, answer.read(2048).decode("utf-8", "replace"))
sys.exit(answer.status != 200)
