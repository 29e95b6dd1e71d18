"""The console: the state of the fleet in a browser, by the facts and words of ``certctrl.plane.fleet``."""
