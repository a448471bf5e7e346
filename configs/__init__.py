"""Hydra groups, one folder per dataclass of loopcoder_train.config; only loopcoder_train.cli composes them."""
