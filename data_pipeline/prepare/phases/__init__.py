"""One file per phase of the preparation graph; each has `run(job, task)`. graph.py has them in order."""
