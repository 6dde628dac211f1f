"""A report on disk: HTML, and beside it Markdown, JSON and the pictures of the Markdown."""

import json
from pathlib import Path

from longtake.evaluation.csv_rows import write_text
from longtake.evaluation.report.content import Report
from longtake.evaluation.report.markdown import markdown
from longtake.evaluation.report.page import html_page
from longtake.runtime.errors import UserError
from longtake.runtime.files import replacing, to_plain


def check_page(path: Path) -> Path:
    """The path of a page, before the work is done.

    Raises:
        UserError: another ending; Markdown and JSON get the same name with theirs.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            "the page has an unknown ending",
            received=str(path),
            expected="a name that ends in .html",
        )
    return path


def write_report(report: Report, page: Path) -> tuple[Path, ...]:
    """Write ``NAME.html``, ``NAME.md``, ``NAME.json`` and ``NAME_figures/``, each atomically.

    The HTML needs none of the others.

    Raises:
        UserError: a file cannot be written.
    """
    folder = page.with_name(f"{page.stem}_figures")
    record = json.dumps(to_plain(report.as_record()), indent=2, ensure_ascii=False, allow_nan=False)
    written = [
        write_text(page, html_page(report)),
        write_text(page.with_suffix(".md"), markdown(report, folder.name)),
        write_text(page.with_suffix(".json"), record + "\n"),
    ]
    for figure in report.figures:
        path = folder / figure.name
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(figure.png)
        except OSError as error:
            raise UserError(
                f"cannot write {path.name}: {error.strerror or error}",
                received=str(path),
                expected="a writable folder with free space",
            ) from error
        written.append(path)
    return tuple(written)
