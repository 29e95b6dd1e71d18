"""Plain requests to a running plane, as by curl."""

from __future__ import annotations

import http.client
import json
import ssl
from contextlib import closing
from pathlib import Path
from typing import Any

from nacl.public import PrivateKey
from plane_world import PUBLIC_ID, REGISTER
from proving import answered, registration


def ask(data: Path, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
    """Send a request to the plane of a data directory; return status and JSON."""
    context = ssl.create_default_context(cafile=str(data / "ca.pem"))
    address = (data / "address").read_text().strip().rpartition("/")[2]
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    with closing(http.client.HTTPSConnection(address, timeout=60, context=context)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
    return answer.status, json.loads(text) if text else None


def enrolled(data: Path, key: str) -> dict[str, Any]:
    """Register a device by an enrolment token; return its session."""
    token = ask(data, "POST", "/apiv1/users/1/enrolment-tokens", {}, key)[1]["data"]["token"]
    body = registration(PUBLIC_ID, PrivateKey.generate()) | {"enrolment_token": token}
    challenge = ask(data, "POST", REGISTER, body)[1]["data"]
    session: dict[str, Any] = ask(data, "POST", REGISTER, answered(body, challenge))[1]["data"]["session"]
    return session
