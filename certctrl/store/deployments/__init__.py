"""Certificate generations and files at explicit destinations, switched as sets."""
