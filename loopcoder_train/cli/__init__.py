"""The `loopcoder` command: the only importer of Hydra and OmegaConf.

main dispatches and turns errors into one line; hydra_app composes a configuration and runs it once, or once per job of
a sweep; arguments and messages translate what users write and what Hydra answers; one file per command.
"""
