"""Which handler a signal type gets: built in, switched off, or one installed beside us (``ioc_config.json``)."""

from __future__ import annotations

from functools import cache
from typing import cast

from certctrl.agent.handlers import HANDLERS, Handler
from certctrl.errors import ConfigError
from certctrl.model.config import IocConfig

GROUP = "certctrl.signal_handlers"


def find_handler(ioc: IocConfig, signal_type: str) -> Handler | None:
    """Return the handler of a type; None when there is none or it is switched off.

    Raises ConfigError when ``handlers`` names an entry point that is not installed.
    """
    if signal_type in ioc.disabled_handlers:
        return None
    if name := ioc.handlers.get(signal_type):
        return _installed(name)
    return HANDLERS.get(signal_type)


@cache
def _installed(name: str) -> Handler:
    from importlib.metadata import entry_points  # here: few hosts have extensions, and it costs a megabyte

    for point in entry_points(group=GROUP):
        if point.name == name:
            return cast(Handler, point.load())
    raise ConfigError(
        f"no installed package offers the entry point {name!r} in {GROUP}",
        file="ioc_config.json",
        path="handlers",
        fix="install the package, or remove the line",
    )
