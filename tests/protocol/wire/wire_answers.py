"""Answers of a plane: JSON, errors, a signal, and an HTML page."""

from __future__ import annotations

import json

from certctrl.model.answer import Answer

JSON = {"content-type": "application/json"}
HTML = "<!DOCTYPE html><html><body>Log in to the guest network</body></html>"
GRANT = {"device_code": "hunter2", "user_code": "ABCD-EFGH", "verification_uri": "https://plane.example/device"}


def answer(status: int, body: object = b"", **headers: str) -> Answer:
    """Return an answer; ``content_type=`` sets the header of that name."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, bytes):
        return Answer(status, given, body)
    return Answer(status, JSON | given, json.dumps(body).encode())


def error(status: int, key: object = "", code: object = 0, what: object = "no", params: object = None) -> Answer:
    return answer(status, {"error": {"code": code, "what": what, "key": key, "params": params}})


SIGNAL = {"type": "cert.renewed", "ts_ms": 1736900124500, "ref": {"cert_id": 9981}}
