"""Certificate generations and files at explicit destinations, each switched as a set."""
