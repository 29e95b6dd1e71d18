"""Connections: how to reach a PostgreSQL server, with the current password, and the connections that no unit uses."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.numeric import Int8Dumper

from certctrl.errors import CertctrlError, ConfigError
from certctrl.plane.storage.postgres_wakes import first_line

Connection = psycopg.Connection[dict[str, Any]]

_PREPARED = 400
"""Prepared statements per connection: those for several devices differ in the number of their values."""
_DEFAULTS = {
    "connect_timeout": 5, "application_name": "certctrl-plane", "keepalives_idle": 10, "keepalives_interval": 5,
    "keepalives_count": 3, "tcp_user_timeout": 20_000, "options": "-c lock_timeout=10s -c statement_timeout=60s",
}  # fmt: skip
"""A server that vanishes without a packet is noticed within half a minute."""

log = logging.getLogger("certctrl.Plane")


class Connections:
    """The connections to one database; safe to share among threads."""

    def __init__(
        self,
        url: str,
        *,
        password: str | None,
        listen_url: str,
        read_again: Callable[[], tuple[str, str | None]] | None,
        on_notice: Callable[[errors.Diagnostic], None],
    ) -> None:
        """Parse the URLs; see `PostgresDatabase`. Raises ConfigError. ``on_notice`` receives the server's notices."""
        self._parameters = self._listen_parameters = _parameters(url, password)
        if listen_url:
            self._listen_parameters = _parameters(listen_url, password or self._parameters.get("password"))
            self._parameters = _for_pooler(self._parameters)
        self._read_again = read_again
        self._unreadable = False
        self._on_notice = on_notice
        self._idle: deque[Connection] = deque()
        self.name = _name_of(self._parameters)
        """Host and database, for messages."""
        self.application: str = self._parameters["application_name"]
        """The name of control planes among the server's connections."""

    def open(self) -> Connection:
        """Return a new connection, which the caller closes."""
        connection: Connection = psycopg.connect(**self._with_password(self._parameters), row_factory=dict_row)
        connection.add_notice_handler(self._on_notice)
        connection.prepared_max = _PREPARED
        connection.adapters.register_dumper(int, Int8Dumper)  # by default, statements differ in the size of each number
        return connection

    def open_to_listen(self) -> Connection:
        """Return a new connection for LISTEN, which the caller closes."""
        connection: Connection = psycopg.connect(**self._with_password(self._listen_parameters), row_factory=dict_row)
        return connection

    def take(self) -> Connection:
        """Return an idle connection, otherwise a new one."""
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
        return self.open()

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next unit, unless it is broken."""
        if connection.closed:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def _with_password(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters with the current password; if it cannot be read, with the former one."""
        if self._read_again is None:
            return parameters
        try:
            password = _parameters(*self._read_again()).get("password")
        except CertctrlError as error:
            if not self._unreadable:
                log.warning("the database's password cannot be read again, using the former one: %s", error)
            self._unreadable = True
            return parameters
        self._unreadable = False
        return parameters if password is None else parameters | {"password": password}


def _parameters(url: str, password: str | None) -> dict[str, Any]:
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        what = re.sub('".*"', '"…"', first_line(error))  # the quoted part may be one of the password
        fix = "use postgresql://USER@HOST/DATABASE; in a password, write % as %25"
        raise ConfigError(f"the database URL is not valid: {what}", fix=fix) from None
    return _DEFAULTS | parameters | ({} if password is None else {"password": password})


def _for_pooler(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters without those that belong to a single connection of the server."""
    if parameters.get("options") == _DEFAULTS["options"]:
        parameters = {name: value for name, value in parameters.items() if name != "options"}
    return parameters | {"prepare_threshold": None}


def _name_of(parameters: dict[str, Any]) -> str:
    host = parameters.get("host") or parameters.get("hostaddr") or "local"
    return f"postgresql://{host}/{parameters.get('dbname') or parameters.get('user') or ''}"
