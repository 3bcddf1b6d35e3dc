"""Optional packages: asked for by name, before any work begins."""

from __future__ import annotations

import importlib.util


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed."""


def check_extra(what: str, extra: str, *packages: str) -> None:
    """Make sure that packages can be imported, without importing them.

    Args:
        what: That needs them, to begin the message.
        extra: That installs them: `pip install "visionssm[EXTRA]"`.
        *packages: Import names.

    Raises:
        MissingExtraError: If some are missing.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f'{what} needs {", ".join(missing)}: pip install "visionssm[{extra}]"')
