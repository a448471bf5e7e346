"""The one error that is meant for the person who started the run."""


class UserError(ValueError):
    """A request that cannot be met: one line that names the option or file, its value, the rule and a remedy.

    Commands print the message without a traceback and exit with code 2; such an exit is never restarted.
    """


def require(condition: bool, option: str, value: object, rule: str, remedy: str = "") -> None:
    """Raise :class:`UserError` ``option=value: rule (remedy)`` unless `condition` holds."""
    if not condition:
        raise UserError(f"{option}={value}: {rule}" + (f"; {remedy}" if remedy else ""))


def require_positive(**options: float) -> None:
    """Require every value to be > 0. Keys spell the option with ``__`` for the dot (``data__x`` -> ``data.x``)."""
    for name, value in options.items():
        require(value > 0, name.replace("__", "."), value, "must be greater than 0")
