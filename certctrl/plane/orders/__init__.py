"""Orders of certificates from issuers, attempt by attempt, and renewals that are due."""
