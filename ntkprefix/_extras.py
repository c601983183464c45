"""What to say when a package is missing that only some parts of the library need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# Import names that pip does not know.
_DISTRIBUTIONS = {"PIL": "pillow", "orbax": "orbax-checkpoint"}
_OURS = ("ntkprefix", "theory")


@contextmanager
def extra(name: str, user: str) -> Iterator[None]:
    """Around the imports of a part that needs more packages than a plain installation has.

    Args:
        name: of the extra in pyproject.toml that has them.
        user: the part, for the message.

    Raises:
        ImportError: a package is missing; the message says which, and how to install it.

    Example:
        >>> from ntkprefix._extras import extra
        >>> with extra("models", "ntkprefix.models"):
        ...     import flax
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in _OURS:
            raise
        known_as = f" ({_DISTRIBUTIONS[package]})" if package in _DISTRIBUTIONS else ""
        raise ImportError(
            f"{user}: needs the package {package}{known_as}, not installed. Install it with the others that belong to "
            f'it: pip install "ntkprefix[{name}]", or pip install ".[{name}]" in the project\'s folder.',
            name=package,
        ) from error
