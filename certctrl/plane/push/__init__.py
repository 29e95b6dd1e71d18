"""Push: open sockets of devices, the pages that they get, and the questions that operators ask through them."""
