import hashlib
import zipfile
from pathlib import Path

import pytest

from longtake.rewards.template_source import (
    HPSV3_TEMPLATE,
    TemplateDigest,
    read_template,
)
from longtake.runtime.errors import UserError

INSTRUCTION = "Judge the picture.\nIt should show: {text_prompt}\n\tIn \\ words: été\n"
SUFFIX = "\nScore: <|R|>\n"
WHOLE = "Clip quality <|Q|> and {text_prompt} <|T|> end"


def digest(text: str, *tokens: str) -> TemplateDigest:
    sha = hashlib.sha256(text.encode()).hexdigest()
    return TemplateDigest(sha256=sha, characters=len(text), reward_tokens=tokens, name="invented")


TWO_PARTS = digest(INSTRUCTION + SUFFIX, "<|R|>")
ONE_PART = digest(WHOLE, "<|Q|>", "<|T|>")

COLLATOR = f'''
import os, does_not_exist
raise SystemExit("this module must not run")
OTHER = """Judge something else: {{text_prompt}}"""
INSTRUCTION = """{INSTRUCTION.replace(chr(92), chr(92) * 2)}"""
with_token = """{SUFFIX}"""
without_token = """{SUFFIX.replace("<|R|>", "")}"""
'''
PROMPTS = f"def build(p):\n    T = {{'special': {WHOLE!r}}}\n    return T['special'].format(p)\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    (root / "pkg" / "data").mkdir(parents=True)
    (root / "pkg" / "data" / "collator.py").write_text(COLLATOR, encoding="utf-8")
    (root / "pkg" / "prompts.py").write_text(PROMPTS, encoding="utf-8")
    (root / "pkg" / "old.py").write_text("print 'python 2 {text_prompt}'\n")
    return root


def wheel_of(checkout: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(checkout.rglob("*.py")):
            archive.write(file, file.relative_to(checkout))
        archive.writestr("pkg/weights.bin", b"\x00" * 100)
    return target


def test_a_template_of_two_constants_is_read_from_every_kind_of_source(
    checkout: Path, tmp_path: Path
) -> None:
    wheel = wheel_of(checkout, tmp_path / "pkg-1.0-py3-none-any.whl")
    for source in (checkout, wheel, checkout / "pkg" / "data" / "collator.py"):
        template = read_template(source, TWO_PARTS)
        assert template.text == INSTRUCTION + SUFFIX
        assert template.sha256 == TWO_PARTS.sha256 and template.reward_tokens == ("<|R|>",)


def test_a_template_inside_a_function_is_found(checkout: Path) -> None:
    assert read_template(checkout, ONE_PART).text == WHOLE


def test_line_endings_of_the_checkout_do_not_matter(checkout: Path) -> None:
    file = checkout / "pkg" / "data" / "collator.py"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert read_template(file, TWO_PARTS).text == INSTRUCTION + SUFFIX


def test_an_edited_template_is_refused_and_shown(checkout: Path) -> None:
    file = checkout / "pkg" / "data" / "collator.py"
    file.write_text(COLLATOR.replace("picture", "painted"), encoding="utf-8")  # the same length
    with pytest.raises(UserError) as error:
        read_template(checkout, TWO_PARTS)
    message = str(error.value)
    assert TWO_PARTS.sha256 in message and "INSTRUCTION + with_token" in message
    edited = (INSTRUCTION + SUFFIX).replace("picture", "painted")
    assert hashlib.sha256(edited.encode()).hexdigest()[:12] in message
    assert f"{TWO_PARTS.characters} characters" in message


def test_a_source_without_templates_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="1 Python files, no template"):
        read_template(tmp_path, HPSV3_TEMPLATE)


def test_broken_and_missing_sources_are_refused(checkout: Path, tmp_path: Path) -> None:
    wheel = wheel_of(checkout, tmp_path / "pkg.whl")
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        read_template(wheel, TWO_PARTS)
    with pytest.raises(UserError, match="not there"):
        read_template(tmp_path / "nothing.whl", TWO_PARTS)
