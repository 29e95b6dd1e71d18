"""Health of the plane: its problems, counters and metrics, for ``/health`` and ``plane status``."""
