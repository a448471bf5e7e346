"""The training loop, what hangs on it, and the record it leaves."""
