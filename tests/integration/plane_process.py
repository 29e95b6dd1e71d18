"""``cert-ctrl plane serve`` with figures that its command line does not offer.

Usage: plane_process.py DATA HOST:PORT SETTINGS, the last one JSON for `PlaneSettings`. All else is the command's own code.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from certctrl.cli.runtime import run
from certctrl.plane.serve import serve_plane
from certctrl.plane.settings import PlaneSettings


def main(data: str, listen: str, settings: str) -> None:
    figures = PlaneSettings(**json.loads(settings))

    async def serve(directory: Path, **options: Any) -> None:
        await serve_plane(directory, **options | {"settings": figures})

    host, port = serve.parse_listen(listen)
    serve._log(debug=False)
    run(partial(serve._serve, SimpleNamespace(serve_plane=serve), Path(data), host, port, (), ""))  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
