"""The audit log: every change by an operator, stored in the transaction of the change."""
