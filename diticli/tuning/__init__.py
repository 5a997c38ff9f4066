"""Which way to compute each operation on this machine's GPU: tried, timed, and kept for the next time."""
