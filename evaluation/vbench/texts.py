"""Augmented or translated prompts: what the model is given in place of the suite's own."""

from pathlib import Path

from longtake.runtime.errors import UserError


def read_texts(texts: Path | None, prompts: Path | None) -> dict[str, str]:
    """What the model is given by English prompt, from two files whose lines run in parallel.

    Args:
        texts: augmented or translated prompts, one a line; None: none.
        prompts: the English prompts that they stand for.

    Raises:
        UserError: only one file is given, one cannot be read, or their lines do not pair up.
    """
    if texts is None and prompts is None:
        return {}
    if texts is None or prompts is None:
        raise UserError(
            "texts and the prompts that they stand for belong together",
            received=f"--texts {texts}, --texts-of {prompts}",
            expected="both files",
        )
    lines = [_lines(path) for path in (prompts, texts)]
    if len(lines[0]) != len(lines[1]):
        raise UserError(
            "the texts do not run in parallel with the prompts",
            received=f"{len(lines[1])} lines in {texts}",
            expected=f"{len(lines[0])} lines, as in {prompts}",
        )
    if empty := [number for number, text in enumerate(lines[1], start=1) if not text.strip()]:
        raise UserError("a text is empty", received=f"line {empty[0]} of {texts}")
    return dict(zip(*lines, strict=True))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"a file of prompts cannot be read: {error}", received=str(path), expected="UTF-8 text"
        ) from error
