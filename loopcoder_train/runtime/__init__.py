"""Process start and stop: device, process group, determinism, logging, the run's lock, the watch over the launcher."""
