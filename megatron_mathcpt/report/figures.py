"""How numbers look in tables and sentences: true minus signs, percent with one decimal, short counts."""

MISSING = "–"


def points(share: float | None, *, sign: bool = False) -> str:
    """A share of 1 in percent, or a difference of shares in percentage points when `sign` is set."""
    if share is None:
        return MISSING
    text = f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", "−")


def significant(value: float | None) -> str:
    """Two significant digits, as in `0.021` and `1.5e−6`."""
    if value is None:
        return MISSING
    return f"{value:.2g}".replace("e-0", "e-").replace("-", "−")


def p_value(value: float, *, equals: bool = False) -> str:
    """Two significant digits; `equals` puts the relation in front, as in `= 0.021` or `< 1e−15`."""
    if value < 1e-15:
        return "< 1e−15"
    return f"= {significant(value)}" if equals else significant(value)


def tokens(count: float | None, *, tick: bool = False) -> str:
    """Three significant digits with k, M, B or T; a `tick` has no zeros at the end."""
    if count is None:
        return MISSING
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(count) >= 0.9995 * size:
            value = count / size
            return f"{value:.3g} {unit}" if tick or value >= 99.95 else f"{value:#.3g} {unit}"
    return f"{count:.0f}"


def seconds(value: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with `digits` decimals."""
    return MISSING if value is None else f"{value:,.{digits}f}".replace("-", "−")
