"""Text on pictures: wrapped lines in DejaVu Sans, the font that matplotlib brings along.

Pillow's own font has Latin-1 letters only; DejaVu also has Greek, Cyrillic and arrows. A letter
that it lacks (Chinese) is drawn as a box.
"""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Colour = tuple[int, int, int]
_PAPER: Colour = (255, 255, 255)
_DOTS = " ..."


@lru_cache(maxsize=32)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of ``size`` pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def wrap(text: str, size: int, width: int, max_lines: int, *, bold: bool = True) -> list[str]:
    """Break text into 1 to ``max_lines`` lines of at most ``width`` pixels.

    Words wider than a line are broken; text that does not fit ends in " ...".
    """
    face = font(size, bold=bold)
    lines = [""]
    for word in text.split():
        for piece in _pieces(word, face, width):
            longer = f"{lines[-1]} {piece}".strip()
            if lines[-1] and face.getlength(longer) > width:
                lines.append(piece)
            else:
                lines[-1] = longer
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and face.getlength(last + _DOTS) > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + _DOTS]
    return lines


def _pieces(word: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and face.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


class Page:
    """A white picture to write on; its sides are rounded up to even numbers, as H.264 asks.

    Args:
        width: pixels.
        height: pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._image = Image.new("RGB", (width + width % 2, height + height % 2), _PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self,
        x: int,
        y: int,
        text: str,
        size: int,
        ink: Colour,
        *,
        bold: bool = False,
        right: bool = False,
    ) -> int:
        """Write one line with its top left (or, with ``right``, top right) corner at (x, y).

        Returns:
            The x at which the line ends.
        """
        face = font(size, bold=bold)
        length = round(face.getlength(text))
        self._draw.text((x - length if right else x, y), text, fill=ink, font=face)
        return x if right else x + length

    def image(self, x: int, y: int, frame: Tensor) -> None:
        """Paste uint8 [3, H, W] with its top left corner at (x, y)."""
        pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        self._image.paste(Image.fromarray(pixels), (x, y))

    def pixels(self) -> Tensor:
        """The picture, uint8 [3, height, width]."""
        return torch.from_numpy(np.array(self._image)).permute(2, 0, 1).contiguous()
