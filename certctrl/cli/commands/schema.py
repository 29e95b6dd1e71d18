"""``schema``: print the JSON Schema of install items."""

from __future__ import annotations

from typing import Annotated

import typer

from certctrl.cli.output import write_json


def schema(as_json: Annotated[bool, typer.Option("--json", help="Has no effect: it is always JSON.")] = True) -> None:
    """Print the JSON Schema of files with install items.

    Editors that know it complete keys and mark mistakes. docs/items.md describes the items.

    \b
    cert-ctrl schema > items.schema.json
    """
    from certctrl.protocol.wire.item_schema import item_schema

    write_json(item_schema())
