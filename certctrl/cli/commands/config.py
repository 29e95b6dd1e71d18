"""``config show`` and ``config check``: print every setting with its source; find mistakes."""

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
    as_json: Annotated[bool, typer.Option("--json", help="Print values, sources and meanings as JSON.")] = False,
    changed: Annotated[bool, typer.Option("--changed", help="Show only settings that are not defaults.")] = False,
) -> None:
    """Show every setting with its value and source.

    The source is the default, a file, or an environment variable (CERTCTRL_…). Secrets are masked.

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
def check(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print directory and checked files as JSON.")] = False,
) -> None:
    """Check all files of the config directory; change nothing.

    Checks the four configuration files, policy.json and installs.local.json for unknown keys, wrong types, values out
    of range, and missing files. Prints the first mistake with file, JSON path and the expected value; the exit status
    is then 78.

    \b
    cert-ctrl -c /etc/cert-ctrl config check && systemctl reload cert-ctrl
    """
    from certctrl.cli.checks import check_files

    layout = invocation(ctx).layout()
    checked = check_files(layout, os.environ)
    if as_json:
        write_json({"directory": str(layout.root), "files": checked})
    else:
        write_line(f"{layout.root}: {', '.join(checked)}: no mistakes")


def settings_of(loaded: Any) -> list[dict[str, Any]]:
    """Return name, value, source and meaning of every setting, ordered by file; secrets are masked."""
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
