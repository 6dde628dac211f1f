"""Reference images on disk: digests of their pixels, writing a set, checking a set.

The digest covers decoded pixels, not file bytes: PNG compression differs between zlib versions, the
pixels do not. For the same reason reference images of your own are best kept as PNG; decoders of
JPEG differ in the last bit.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from longtake.evaluation.internal_benchmark.schema import (
    IMAGES_FILE,
    ReferenceImage,
    write_jsonl,
)
from longtake.evaluation.internal_benchmark.validator import Check, no_exception
from longtake.runtime.errors import RunDirectoryError, UserError
from longtake.runtime.files import replacing
from longtake.runtime.progress import progress_bar

_SANDBOX = "sandbox"


def pixel_digest(picture: Image.Image) -> str:
    """SHA-256 of ``WIDTHxHEIGHT``, a newline, and the 8-bit RGB pixels row by row."""
    rgb = picture.convert("RGB")
    digest = hashlib.sha256(f"{rgb.width}x{rgb.height}\n".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


def scene_name(image: ReferenceImage) -> tuple[int, int]:
    """(seed, index) of the sandbox scene that an image shows.

    Raises:
        UserError: the image is not of the sandbox.
    """
    kind, _, name = image.origin.partition(":")
    seed, _, index = name.partition(":")
    if kind != _SANDBOX or not (seed.isdecimal() and index.isdecimal()):
        raise UserError(
            f"image {image.id} cannot be drawn",
            received=f"origin {image.origin}",
            expected=f"{_SANDBOX}:SEED:INDEX",
            remedy="put your own files into the folder yourself, then run `eval bench validate`",
        )
    return int(seed), int(index)


def write_images(
    images: Sequence[ReferenceImage],
    draw: Callable[[ReferenceImage], Image.Image],
    folder: Path,
    resolution: str | None = None,
) -> list[ReferenceImage]:
    """Draw every image into ``folder`` and write the manifest of what was drawn, last.

    Args:
        images: the list to draw.
        draw: makes the picture of one entry, at its :meth:`~.ReferenceImage.size`.
        folder: created when missing; files of the same name are replaced.
        resolution: draw all at this one of ``RESOLUTIONS``; None keeps each entry's own.

    Returns:
        The manifest: the entries with the digests (and resolution) of the pictures written.

    Raises:
        UserError: an entry that ``draw`` cannot draw.
        RunDirectoryError: the folder cannot be written.
    """
    written = []
    with progress_bar("images", len(images)) as bar:
        for entry in images:
            asked = replace(entry, resolution=resolution or entry.resolution)
            picture = draw(asked)
            try:
                with replacing(folder / asked.file) as temporary:
                    picture.save(temporary, format="png")
            except OSError as error:
                raise RunDirectoryError(
                    f"cannot write the images ({error.strerror or error})",
                    received=str(folder / asked.file),
                    expected="a writable folder with free space",
                ) from error
            written.append(replace(asked, sha256=pixel_digest(picture)))
            bar.update(len(written))
    write_jsonl(written, folder / IMAGES_FILE)
    return written


def check_files(images: Sequence[ReferenceImage], folder: Path) -> list[Check]:
    """Check that every image is there, readable, of its stated size and with its pixels."""
    unreadable, resized, changed = [], [], []
    for image in images:
        try:
            with Image.open(folder / image.file) as picture:
                size, digest = picture.size, pixel_digest(picture)
        except (OSError, SyntaxError) as error:  # Pillow raises both for broken files
            unreadable.append(f"{image.id}: {error}")
            continue
        if size != image.size():
            resized.append(
                f"{image.id}: {size[0]}x{size[1]}, not {'x'.join(map(str, image.size()))}"
            )
        if digest != image.sha256:
            changed.append(image.id)
    return [
        no_exception("image files can be read", unreadable),
        no_exception("images have the size of their aspect and resolution", resized),
        no_exception("pixels have the digest of the manifest", changed),
    ]
