"""Orders: certificates that issuers are asked for, attempt by attempt, and the renewals that are due."""
