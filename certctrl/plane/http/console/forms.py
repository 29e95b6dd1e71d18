"""The fields of changes of profiles and of rollouts: what a posted form asks for, as the API reads it. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from certctrl.model.change_texts import seconds_of, time_of
from certctrl.plane.errors import ErrorResponse, bad_request
from certctrl.plane.http.bodies import body_of
from certctrl.plane.http.console.parts import quoted
from certctrl.plane.http.operator_bodies import NewProfile, NewRollout
from certctrl.plane.http.reading import LARGE_BODY_CAP, parsed_json, whole_number
from certctrl.plane.profiles.profiles import MAX_POSITION, POSITION
from certctrl.text import one_line

FORM_CAP = LARGE_BODY_CAP
"""Bytes of a form with the items of a profile, as for a request."""
CONTENTS = ("devices", "order", "installs", "note")
RULES = ("waves", "canary", "max_failures", "pause", "windows", "serial")
NEW = {"order": str(POSITION), "installs": "[\n]"}
"""The fields of a new profile."""
DEFAULT_RULES = {"waves": "1, 10%", "max_failures": "0", "pause": "0s"}
_SEPARATOR = re.compile(r"[\s,]+")

Fields = Mapping[str, str]


def fields_of(shown: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields for a profile as it is stored."""
    items = json.dumps(shown["installs"], ensure_ascii=False, indent=2)
    return {"devices": shown["devices"], "order": str(shown["order"]), "installs": items}


def profile_body(form: Fields) -> NewProfile:
    """Return the change that a form asks for; ErrorResponse 400."""
    return body_of(NewProfile, _contents(form))


def rollout_body(form: Fields) -> NewRollout:
    """Return the rollout that a form asks for, of a profile or of certificates whose ids are known; ErrorResponse 400."""
    if form.get("profile"):
        what = {"profile": form["profile"]} | _contents(form)
    else:
        ids = [whole_number(one, "certificates", 1) for one in words_of(form.get("certificates", ""))]
        what = {"cert_ids": ids, "note": form.get("note", ""), "preview_id": form.get("preview_id", "")}
    return body_of(NewRollout, what | _rules(form))


def words_of(text: str) -> list[str]:
    """Return words that are separated by commas or spaces."""
    return [word for word in _SEPARATOR.split(text.strip()) if word]


def _contents(form: Fields) -> dict[str, Any]:
    """Return what makes a version; devices and order that are left empty stay as before."""
    order = form.get("order", "").strip()
    return {
        "devices": form.get("devices", "").strip(),
        "order": whole_number(order, "order", 0, MAX_POSITION) if order else None,
        "installs": _items(form.get("installs", "")),
        "note": form.get("note", ""),
        "preview_id": form.get("preview_id", ""),
    }


def _items(text: str) -> Any:
    """Return the items that a text lists; ErrorResponse 400 says where it is no JSON."""
    if not text.strip():
        raise _wrong("give the items as a JSON list; [] has none")
    try:
        value = parsed_json(text)
    except json.JSONDecodeError as error:
        raise _wrong(f"line {error.lineno}, character {error.colno}: {_said(error.msg)}") from None
    except ErrorResponse:
        raise
    except ValueError:
        raise _wrong("this is not plain JSON: NaN, numbers that are too large or too deep nesting are not") from None
    if isinstance(value, dict) and "installs" in value:
        raise _wrong("this is a whole profile: give only the list that is its installs")
    if not isinstance(value, list):
        raise _wrong('expected a list: [{"id": …, "type": "copy", …}, …]')
    return value


def _said(message: str) -> str:
    return f"this is not JSON, {message[:1].lower()}{message[1:]}"


def _wrong(what: str) -> ErrorResponse:
    return bad_request(f"installs: {what}", field="installs")


def _rules(form: Fields) -> dict[str, Any]:
    waves, pause = words_of(form.get("waves", "")), form.get("pause", "").strip() or "0s"
    if not waves:
        raise bad_request(
            "waves: give the size of at least one, such as 1, 10%; the rest is the last one", field="waves"
        )
    if (seconds := seconds_of(pause)) is None:
        raise bad_request(f"pause: {one_line(pause, 20)!r} is not a time: use 90s, 10m, 2h or 1d", field="pause")
    failures = form.get("max_failures", "").strip() or "0"
    return {
        "waves": waves,
        "canary": form.get("canary", "").strip(),
        "max_failures": whole_number(failures, "max_failures", 0, 1_000_000),
        "pause_seconds": seconds,
        "windows": words_of(form.get("windows", "")),
        "serial": form.get("serial", "").strip(),
    }


# --- the same on a terminal -------------------------------------------------------------------------------------------


def profile_command(name: str, body: NewProfile) -> str:
    """Return the command that makes a change of a profile."""
    return f"cert-ctrl plane profile put {quoted(name)} {_options(name, body)}"


def rollout_command(body: NewRollout) -> str:
    """Return the command that starts a rollout."""
    if body.profile:
        start = f"cert-ctrl plane rollout start {quoted(body.profile)} {_options(body.profile, body)} --waves"
    else:
        start = f"cert-ctrl plane renew {' '.join(map(str, body.cert_ids))} --rollout"
    rules = {
        "--canary": body.canary,
        "--max-failures": body.max_failures or "",
        "--pause": time_of(body.pause_seconds) if body.pause_seconds else "",
        "--serial": body.serial,
    }
    more = [f"{option} {quoted(str(value))}" for option, value in rules.items() if value]
    more += [f"--window {quoted(window)}" for window in body.windows]
    if body.note and not body.profile:
        more.append(f"--reason {quoted(body.note)}")
    return " ".join([start, quoted(",".join(body.waves)), *more])


def _options(name: str, body: NewProfile) -> str:
    given = {
        "--devices": body.devices or "",
        "--order": "" if body.order is None else str(body.order),
        "--note": body.note,
    }
    options = (f"{option} {quoted(value)}" for option, value in given.items() if value)
    return " ".join([f"{quoted(name)}.json", *options])
