"""How numbers and names are written on a page."""

from __future__ import annotations


def number(value: float | None) -> str:
    """A number for a table; what is smaller than the rounding of what is stored is zero.

    Example:
        >>> from ntkprefix.report import number
        >>> number(0.12345), number(1e-15), number(12345.6), number(None)
        ('0.123', '0', '12,346', 'none')
    """
    if value is None:
        return "none"
    if 1e3 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{0.0 if abs(value) < 1e-12 else value:.3g}"


def short(text: str, most: int = 60) -> str:
    """A name that may be of any length, with its middle left out where it is too long.

    Example:
        >>> from ntkprefix.report import short
        >>> short("abcdefghij", most=5)
        'ab…ij'
    """
    if len(text) <= most:
        return text
    kept = (most - 1) // 2
    return f"{text[:kept]}…{text[len(text) - kept :]}"
