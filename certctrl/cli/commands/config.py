"""``config show`` and ``config check``: every setting with its source, secrets masked; mistakes with their place."""

import os
from typing import Annotated, Any

import typer

from certctrl.cli.app import GROUP
from certctrl.cli.invocation import invocation
from certctrl.cli.output import write_json, write_line

MASK = "[secret]"

config = typer.Typer(help="Show or check the configuration.", **GROUP)


@config.command("show")
def show(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print value, source and meaning as JSON.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the default.")] = False,
) -> None:
    """Show every setting, its value and where it comes from.

    Sources: the default, a file, or an environment variable (CERTCTRL_…). Secrets are masked.

    \b
    cert-ctrl -c /etc/cert-ctrl config show
    cert-ctrl -c /etc/cert-ctrl config show --changed
    """
    from certctrl.store.config.files import load_config

    loaded = load_config(invocation(ctx).layout(), os.environ)
    rows = [row for row in settings_of(loaded) if not changed or row["source"] != "default"]
    if as_json:
        write_json({row.pop("name"): row for row in rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        write_line(f"{row['name']:<{width}} = {_text(row['value'])}  ({row['source']})")


@config.command("check")
def check(ctx: typer.Context) -> None:
    """Check all files of the config directory and change nothing.

    The four configuration files, policy.json and installs.local.json: unknown keys, wrong types, values out of
    range, files that are named but missing. The first mistake is printed with file, JSON path and what was
    expected; exit status 78.

    \b
    cert-ctrl -c /etc/cert-ctrl config check && systemctl reload cert-ctrl
    """
    from certctrl.cli.checks import check_files

    layout = invocation(ctx).layout()
    checked = check_files(layout, os.environ)
    write_line(f"{layout.root}: {', '.join(checked)}: no mistakes")


def settings_of(loaded: Any) -> list[dict[str, Any]]:
    """Return name, value, source and meaning of every setting, in the order of the files."""
    import attrs

    rows = []
    for section in attrs.fields(type(loaded.config)):
        values = getattr(loaded.config, section.name)
        for field in attrs.fields(type(values)):
            name, value = f"{section.name}.{field.name}", getattr(values, field.name)
            masked = MASK if field.metadata.get("secret") and value else value
            rows.append(
                {"name": name, "value": masked, "source": loaded.sources[name], "meaning": field.metadata["doc"]}
            )
    return rows


def _text(value: Any) -> str:
    import json

    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False, default=dict)
