"""Write a file beside its target and rename it: readers see the old file or the whole new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Block that writes the yielded temporary path, which then takes the place of ``path``.

    The folder is created when missing. If the block raises, ``path`` stays as it was and the
    temporary file is removed; after a kill, the prefix ``.tmp-`` marks what is left (a run
    directory sweeps it when it is next opened).

    Raises:
        OSError: the folder or file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
