"""Videos and images under names that tell raters nothing."""

import hashlib
import os
import shutil
from pathlib import Path

from longtake.runtime.errors import UserError


def opaque_name(text: str) -> str:
    """A short name that stays the same and does not show what it stands for."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def place_file(source: Path, target: Path) -> Path:
    """Put a file under another name: a hard link where the file system allows, else a copy.

    Raises:
        UserError: it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(
            f"cannot place a file: {error.strerror or error}",
            received=str(target),
            remedy="free some space or choose another --output-dir",
        ) from error
    return target
