"""Alerts: the parts of this package, assembled."""

from __future__ import annotations

import socket
from collections.abc import Callable

from certctrl.plane.alerts.channels import Channels
from certctrl.plane.alerts.comparison import Comparison
from certctrl.plane.alerts.conditions import Conditions
from certctrl.plane.alerts.outbox import Outbox
from certctrl.plane.alerts.runner import AlertRunner
from certctrl.plane.alerts.senders import Senders
from certctrl.plane.health.problems import Problems
from certctrl.plane.jobs import Jobs
from certctrl.plane.orders.renewal_problems import RenewalProblems
from certctrl.plane.planes import Planes
from certctrl.plane.settings import PlaneSettings
from certctrl.plane.storage.database import Database
from certctrl.plane.storage.key_rotation import installation_of
from certctrl.plane.storage.keyring import Keyring


class Alerts:
    """The channels, the outbox, and what fills and empties it."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        parts: tuple[Jobs, Problems, Planes],
        settings: PlaneSettings,
        wall_now: Callable[[], float],
    ) -> None:
        jobs, problems, planes = parts
        host = socket.gethostname()
        self.channels = Channels(database, keyring, wall_now)
        self.outbox = Outbox(database, jobs, wall_now)
        late = RenewalProblems(database, problems, wall_now)
        conditions = Conditions(database, late, settings.stale_seconds, wall_now)
        self.comparison = Comparison(
            database, jobs, self.channels, conditions, self.outbox, problems, planes, host, wall_now
        )
        self.senders = Senders(
            installation_of(database, keyring), lambda: settings.public_url or planes.address or host, wall_now
        )
        self.runner = AlertRunner(
            database,
            self.channels,
            self.comparison,
            self.outbox,
            self.senders,
            problems,
            settings.stale_seconds,
            wall_now,
        )
