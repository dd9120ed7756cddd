"""The weights that come with this package, in a checkout or installed."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CHECKOUT = PACKAGE.parent
SHIPPED = CHECKOUT if (CHECKOUT / "weights" / "wdm3d").is_dir() else PACKAGE
"""The folder that holds weights/; a wheel has it inside the package."""


def or_shipped(path: str | Path) -> Path:
    """Return the path, or where this package's own weights of that name are: weights/wdm3d."""
    path = Path(path)
    return SHIPPED / path if not path.exists() and (SHIPPED / path).exists() else path
