"""Reading a prompt template out of the user's copy of a public package, without running it.

A reward model depends on its prompt to the byte, and the public prompts are other people's text, so
they are not stored here. The user points at the package that they have (a wheel, a checkout, one
file); its sources are parsed with ``ast``, never imported. Which string is the template is decided
by its sha256 alone: names and files may move between versions of the package, the text may not.
"""

import ast
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longtake.rewards.template import PLACEHOLDER, PromptTemplate, text_digest
from longtake.runtime.errors import UserError

_MAX_SOURCE_BYTES = 4 << 20  # a larger .py file is data, not a module with a prompt


@dataclass(frozen=True, kw_only=True)
class TemplateDigest:
    """What identifies a published template."""

    sha256: str
    """Of the UTF-8 text with the placeholder in it."""
    characters: int
    """Length of that text."""
    reward_tokens: tuple[str, ...]
    """Tokens that the text holds, in this order."""
    name: str
    """For messages."""


HPSV3_TEMPLATE = TemplateDigest(
    sha256="f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
    characters=2590,
    reward_tokens=("<|Reward|>",),
    name="HPSv3 instruction and reward-token suffix (hpsv3 1.0.0)",
)
"""Two constants of the package, the instruction followed by the suffix."""
VIDEOALIGN_TEMPLATE = TemplateDigest(
    sha256="fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
    characters=3997,
    reward_tokens=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
    name="VideoAlign detailed_special (KwaiVGI/VideoAlign)",
)


def read_template(source: str | Path, expected: TemplateDigest) -> PromptTemplate:
    """The template in a wheel, a directory or a ``.py`` file.

    Args:
        source: the user's copy of the public package.
        expected: its digest. A template is one string constant, or the concatenation of two of the
            same file.

    Raises:
        UserError: nothing there to read, or no string with this digest; the message lists the
            strings that come closest, with their digests.
    """
    path = Path(source)
    near: list[str] = []
    files = 0
    for name, code in _python_files(path):
        files += 1
        if PLACEHOLDER not in code:
            continue  # parsing is slow, and both halves of a template lie in one file
        constants = list(_string_constants(code))
        for where, text in _candidates(constants, expected):
            digest = text_digest(text)
            if digest == expected.sha256:
                return PromptTemplate(text=text, reward_tokens=expected.reward_tokens)
            near.append(f"{name}:{where} ({len(text)} characters, sha256 {digest[:12]}...)")
        near += [
            f"{name}:{where} ({len(text)} characters, sha256 {text_digest(text)[:12]}...)"
            for where, text in constants
            if PLACEHOLDER in text and len(text) != expected.characters
        ]
    raise UserError(
        f"the prompt template is not in the source: {expected.name}",
        received=f"{path}: {files} Python files"
        + ("; templates found: " + "; ".join(near[:4]) if near else ", no template in them"),
        expected=f"{expected.characters} characters with sha256 {expected.sha256}",
        remedy="point --source at the wheel or checkout that belongs to the weights, unmodified",
    )


def _candidates(
    constants: list[tuple[str, str]], expected: TemplateDigest
) -> Iterator[tuple[str, str]]:
    """Constants and pairs of constants with the expected length and a placeholder."""
    for where, text in constants:
        if len(text) == expected.characters and PLACEHOLDER in text:
            yield where, text
    by_length: dict[int, list[tuple[str, str]]] = {}
    for where, text in constants:
        by_length.setdefault(len(text), []).append((where, text))
    for first, head in constants:
        for second, tail in by_length.get(expected.characters - len(head), []):
            if PLACEHOLDER in head + tail:
                yield f"{first} + {second}", head + tail


def _string_constants(code: str) -> Iterator[tuple[str, str]]:
    """(name or line, value) of all string constants of a module; empty when it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in other people's strings
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return  # Python 2, a template of another engine, a generated file: none of our business
    names = {
        id(node.value): ast.unparse(node.targets[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield names.get(id(node), f"line {node.lineno}"), node.value


def _python_files(path: Path) -> Iterator[tuple[str, str]]:
    """(name, code) of every Python source in a wheel, a directory or a file."""
    if path.is_dir():
        for file in sorted(path.rglob("*.py")):
            if file.stat().st_size <= _MAX_SOURCE_BYTES:
                yield file.relative_to(path).as_posix(), _decode(file.read_bytes())
    elif path.suffix == ".py" and path.is_file():
        yield path.name, _decode(path.read_bytes())
    elif path.is_file():
        yield from _archive_files(path)
    else:
        raise UserError(
            "the source package is not there",
            received=str(path),
            expected="a wheel, a checkout directory or a .py file",
            remedy="download it (for example `pip download --no-deps hpsv3`) and pass its path",
        )


def _archive_files(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".py") and entry.file_size <= _MAX_SOURCE_BYTES:
                    yield entry.filename, _decode(archive.read(entry))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise UserError(
            f"the source package cannot be read: {error}",
            received=str(path),
            expected="a wheel or zip file, a checkout directory or a .py file",
            remedy="download it again; a broken copy is often truncated",
        ) from error


def _decode(data: bytes) -> str:
    # Python reads sources with any line ending as "\n", and a digest must not depend on a checkout.
    return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
