"""Before a GPU is rented: memory, traffic, pipeline and time of a run, in closed form. Needs no torch."""
