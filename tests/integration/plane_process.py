"""Run ``cert-ctrl plane serve`` with settings that its command line does not offer.

Usage: plane_process.py DATA HOST:PORT SETTINGS, the last one JSON for `PlaneSettings`. All else is the command's code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from certctrl.cli.invocation import Invocation
from certctrl.cli.plane import serve as command
from certctrl.cli.plane.addresses import parse_listen
from certctrl.cli.runtime import run
from certctrl.plane.serve import serve_plane
from certctrl.plane.settings import PlaneSettings


def main(data: str, listen: str, settings: str) -> None:
    chosen = PlaneSettings(**json.loads(settings))

    host, port = parse_listen(listen)

    async def serve(**options: Any) -> None:
        await serve_plane(Path(data), host=host, port=port, **options | {"settings": chosen})

    command._log(Invocation())
    run(command._serve, serve, "")


if __name__ == "__main__":
    main(*sys.argv[1:])
