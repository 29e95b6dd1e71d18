"""Open, check and convert certificate material."""
