"""Forms for changes of profiles and for rollouts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from certctrl import lean
from certctrl.plane.http.console.forms import Fields
from certctrl.plane.http.console.frame import CERTIFICATES, PROFILES, ROLLOUTS, Viewer, head
from certctrl.plane.http.console.parts import (
    NOTHING,
    anchor,
    cut,
    hidden,
    joined,
    number,
    section,
)
from certctrl.plane.http.console.profiles import home_of
from certctrl.plane.http.pages.html import Html, fill
from certctrl.text import counted

_SHOWN_CERTIFICATES = 20

NEW_ROLLOUT = f"{ROLLOUTS}/new"
Row = Mapping[str, Any]


@lean.frozen(kw_only=True)
class Problem:
    """Why a form is shown again."""

    text: str
    field: str = ""
    """The field that is wrong; empty: not known."""


def profile_form(name: str, fields: Fields, viewer: Viewer, *, is_new: bool, problem: Problem | None = None) -> Html:
    """Return the form for a new version of a profile."""
    title = f"New profile {name}" if is_new else f"Change profile {name}"
    crumb = fill("{all} / {one}", all=anchor("Profiles", PROFILES), one=anchor(name, home_of(name)))
    body = fill(
        '<form method="post" class="card change" action="{home}/change">{csrf}{fields}{acts}</form>',
        home=home_of(name),
        csrf=hidden(csrf=viewer.csrf),
        fields=_contents(fields, problem),
        acts=_form_acts(home_of(name) if not is_new else PROFILES),
    )
    return joined([head(fill("{title}", title=title), crumb=crumb), _alert(problem), body])


def rollout_form(
    fields: Fields, viewer: Viewer, *, certificates: Sequence[Row] = (), problem: Problem | None = None
) -> Html:
    """Return the form for a rollout of a profile, or of renewals of ``certificates``."""
    name = fields.get("profile", "")
    title = f"Change profile {name} in waves" if name else f"Renew {counted(len(certificates), 'certificate')} in waves"
    what = hidden(profile=name)
    if name:
        contents = _group("What changes", _contents(fields, problem))
        back = home_of(name)
    else:
        contents = _group(
            "What is renewed", fill("{list}{note}", list=listed(certificates), note=_note(fields, problem))
        )
        what = hidden(certificates=fields.get("certificates", ""))
        back = f"{CERTIFICATES}/{certificates[0]['id']}" if len(certificates) == 1 else CERTIFICATES
    body = fill(
        '<form method="post" class="card change" action="{home}">{csrf}{what}{contents}{rules}{acts}</form>',
        home=NEW_ROLLOUT,
        csrf=hidden(csrf=viewer.csrf),
        what=what,
        contents=contents,
        rules=_group("Waves", _rules(fields, problem)),
        acts=_form_acts(back),
    )
    crumb = anchor("Rollouts", ROLLOUTS)
    return joined([head(fill("{title}", title=title), crumb=crumb), _alert(problem), body])


def choice(profiles: Sequence[str], asked: str = "", problem: Problem | None = None) -> Html:
    """Return the page that asks what a rollout is to bring; ``asked``: the certificates that were named."""
    options = joined(fill('<option value="{name}">{name}</option>', name=name) for name in profiles)
    of_profile = fill(
        '<form class="filters short" action="{home}"><label class="wide" for="profile">Profile'
        '<select id="profile" name="profile">{options}</select></label><button>Continue</button></form>',
        home=NEW_ROLLOUT,
        options=options,
    )
    if not profiles:
        of_profile = fill("<p>There is no profile yet: {link}.</p>", link=anchor("make one", PROFILES))
    of_renewals = fill(
        '<form class="filters short" action="{home}"><label class="wide" for="certificates">Certificates: ids or names, separated by commas'
        '<input id="certificates" name="certificates" value="{asked}" required maxlength="2000" placeholder="7, www.example.com"'
        ' autocomplete="off" autocapitalize="none" spellcheck="false"></label><button>Continue</button></form>',
        home=NEW_ROLLOUT,
        asked=asked,
    )
    text = "A rollout gives a change to devices in waves. Each wave goes out when the one before has proven the change."
    return joined(
        [
            head(
                Html("New rollout"), fill('<p class="soft">{text}</p>', text=text), crumb=anchor("Rollouts", ROLLOUTS)
            ),
            _alert(problem),
            section("A change of a profile", of_profile, part="of-profile"),
            section("Renewals", of_renewals, part="of-renewals"),
        ]
    )


def _alert(problem: Problem | None) -> Html:
    return NOTHING if problem is None else fill('<p class="alert" role="alert">{text}</p>', text=problem.text)


def _form_acts(back: str) -> Html:
    text = '<div class="acts"><button class="primary" name="do" value="preview">Preview…</button>{back}</div>'
    return fill(text, back=anchor("Leave it", back, "button"))


def _group(title: str, body: Html) -> Html:
    return fill("<fieldset><legend>{title}</legend>{body}</fieldset>", title=title, body=body)


def _contents(fields: Fields, problem: Problem | None) -> Html:
    installs = fill(
        '<div class="field"><label for="installs">Items</label><textarea id="installs" name="installs" rows="18" required'
        ' spellcheck="false" autocomplete="off" autocapitalize="none" aria-describedby="installs-hint"{invalid}>\n{value}</textarea>'
        '<p class="hint" id="installs-hint">A JSON list, as for <code>plane profile put</code>. Placeholders: {known}.</p></div>',
        invalid=_invalid("installs", problem),
        value=fields.get("installs", ""),
        known=Html(
            "<code>{device.name}</code>, <code>{device.tag.KEY}</code>, <code>{cert.name}</code>, <code>{cert.id}</code>"
        ),
    )
    devices = _field(
        "devices",
        "Devices with these tags",
        fields,
        problem,
        hint="web and not env=test; * for all",
        most=500,
        wide=True,
    )
    order = _field("order", "Order", fields, problem, hint="among profiles, 0 to 9999", most=4, numeric=True)
    return joined([_row(devices, order), installs, _note(fields, problem)])


def _note(fields: Fields, problem: Problem | None) -> Html:
    return _field("note", "Note", fields, problem, hint="for the history; may be empty", most=200)


def _rules(fields: Fields, problem: Problem | None) -> Html:
    waves = _field(
        "waves",
        "Sizes",
        fields,
        problem,
        hint="devices, or shares of all; the rest is the last wave",
        most=200,
        wide=True,
    )
    canary = _field(
        "canary",
        "First, as canary",
        fields,
        problem,
        hint="a wave before all others: tags, such as canary",
        most=500,
        wide=True,
    )
    return joined(
        [
            _row(waves, canary),
            _row(
                _field(
                    "max_failures", "May fail", fields, problem, hint="devices; one more halts it", most=7, numeric=True
                ),
                _field("pause", "Pause after proof", fields, problem, hint="90s, 10m, 2h, 1d", most=10),
                _field("windows", "Only at", fields, problem, hint="UTC: 22:00-06:00, …", most=200),
                _field("serial", "Never two of", fields, problem, hint="a tag, or cluster=", most=100),
            ),
        ]
    )


def _row(*fields: Html) -> Html:
    return fill('<div class="fields">{fields}</div>', fields=joined(fields))


def _field(
    name: str,
    label: str,
    fields: Fields,
    problem: Problem | None,
    *,
    hint: str,
    most: int,
    wide: bool = False,
    numeric: bool = False,
) -> Html:
    return fill(
        '<div class="field{css}"><label for="{name}">{label}</label><input id="{name}" name="{name}" value="{value}"'
        ' maxlength="{most}" aria-describedby="{name}-hint" autocomplete="off" autocapitalize="none" spellcheck="false"{more}{invalid}>'
        '<p class="hint" id="{name}-hint">{hint}</p></div>',
        css=" wide" if wide else "",
        name=name,
        label=label,
        value=fields.get(name, ""),
        most=most,
        more=Html(' inputmode="numeric"') if numeric else NOTHING,
        invalid=_invalid(name, problem),
        hint=hint,
    )


def _invalid(name: str, problem: Problem | None) -> Html:
    return Html(' aria-invalid="true"') if problem is not None and problem.field == name else NOTHING


def listed(certificates: Sequence[Row]) -> Html:
    """Return a list of certificates."""
    rows = [
        fill("<li>{link}</li>", link=anchor(f"{row['id']} · {cut(row['name'], 100)}", f"{CERTIFICATES}/{row['id']}"))
        for row in certificates[:_SHOWN_CERTIFICATES]
    ]
    if len(certificates) > _SHOWN_CERTIFICATES:
        rows.append(fill("<li>and {count} more</li>", count=number(len(certificates) - _SHOWN_CERTIFICATES)))
    return fill('<ul class="do">{rows}</ul>', rows=joined(rows))
