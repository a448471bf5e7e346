"""Numbers as people read them: `17,148`, `32.1 MB`, `~9.81M`, `93.4%`, `<0.1%`."""

_SIZES = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_COUNTS = ("", "k", "M", "B", "T", "Q")
NOTHING = "-"


def size(num_bytes: int) -> str:
    """Bytes with three significant digits: `999 B`, `32.1 MB`, `72.0 TB`."""
    value, unit = _scaled(num_bytes, _SIZES)
    return f"{value} {unit}"


def scaled(count: int) -> str:
    """A count with three significant digits: `999`, `17.1k`, `9.81M`, `18.0T`."""
    value, unit = _scaled(count, _COUNTS)
    return f"{value}{unit}"


def short(count: int) -> str:
    """To the last one below a million (`17,148`), then with three digits (`13.0B`)."""
    return f"{count:,}" if abs(count) < 1_000_000 else scaled(count)


def tokens(count: int, about: bool) -> str:
    """Counted tokens to the last one (`3,944,238`), estimated ones with three digits and a tilde (`~3.94M`)."""
    return f"~{scaled(count)}" if about and count else f"{count:,}"


def percent(part: float, whole: float) -> str:
    """One decimal; what is not all and not nothing never looks like it."""
    if not whole:
        return NOTHING
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    if 99.9 < share < 100:
        return ">99.9%"
    return f"{share:.1f}%"


def ratio(value: float | None) -> str:
    """Two decimals, or a dash."""
    return NOTHING if value is None else f"{value:.2f}"


def _scaled(count: int, units: tuple[str, ...]) -> tuple[str, str]:
    rounded = float(f"{abs(count):.3g}")  # first, so that 999,950 becomes 1M and not 1000k
    power = 0
    while rounded >= 1000 and power + 1 < len(units):
        rounded /= 1000
        power += 1
    decimals = 0 if power == 0 or rounded >= 100 else 1 if rounded >= 10 else 2
    return f"{'-' * (count < 0)}{rounded:,.{decimals}f}", units[power]
