"""Run ``cert-ctrl plane serve`` with settings that its command line does not offer.

Usage: plane_process.py DATA HOST:PORT SETTINGS, the last one JSON for `PlaneSettings`. All else is the command's code.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from certctrl.cli.plane import serve as command
from certctrl.cli.runtime import run
from certctrl.plane.serve import serve_plane
from certctrl.plane.settings import PlaneSettings


def main(data: str, listen: str, settings: str) -> None:
    chosen = PlaneSettings(**json.loads(settings))

    async def serve(directory: Path, **options: Any) -> None:
        await serve_plane(directory, **options | {"settings": chosen})

    host, port = command.parse_listen(listen)
    command._log(debug=False)
    run(partial(command._serve, SimpleNamespace(serve_plane=serve), Path(data), host, port, (), ""))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
