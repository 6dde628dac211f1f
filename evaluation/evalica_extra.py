"""The optional package evalica, which fits Bradley-Terry models."""

import importlib
from types import ModuleType

from longtake.runtime.errors import UserError


def load_evalica() -> ModuleType:
    """The module ``evalica``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("evalica")
    except ImportError as error:
        raise UserError(
            f"rankings of pairs need the package evalica: {error}",
            remedy="pip install 'longtake[eval]'",
        ) from error
