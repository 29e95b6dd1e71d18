"""Problems, counters, metrics and status of the plane."""
