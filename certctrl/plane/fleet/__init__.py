"""The state of the fleet, as operators see it: causes, devices, certificates."""
