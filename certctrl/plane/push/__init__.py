"""Push: open sockets of devices, their pages, and questions of operators to agents."""
