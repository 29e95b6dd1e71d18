"""The durable state of one agent (spec, "State Persistence"), in three parts.

The installation gets only `InstalledState`, so that no token reaches it.
"""

from __future__ import annotations

from certctrl.store.disk.fs import Fs
from certctrl.store.layout import ConfigDir
from certctrl.store.state.installed import InstalledState
from certctrl.store.state.session import SessionState
from certctrl.store.state.staged_keys import StagedKeys


class StateStore:
    """The state files of one agent."""

    def __init__(self, layout: ConfigDir, fs: Fs) -> None:
        self.layout = layout
        self.session = SessionState(layout, fs)
        self.installed = InstalledState(layout, fs)
        self.staged_keys = StagedKeys(layout, fs)
