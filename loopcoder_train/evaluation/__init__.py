"""How good a model is: held-out loss per source, language, kind and loop, baselines, and sampled text."""
