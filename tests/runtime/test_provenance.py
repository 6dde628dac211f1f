import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.runtime import provenance


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(("git", "-C", root, *identity, *arguments), check=True, capture_output=True)


def test_record_is_json_and_names_what_matters(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    record = provenance.collect({"prompts": tmp_path / "prompts.txt"})
    assert json.loads(json.dumps(record)) == record
    assert (
        record["packages"]["torch"].split("+")[0] == __import__("torch").__version__.split("+")[0]
    )
    assert record["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert record["argv"] == sys.argv
    assert record["hardware"]["cores"] >= 1 and record["hardware"]["cpu"]
    assert record["digests"]["prompts"] == hashlib.sha256(b"a red circle\n").hexdigest()


def test_git_state_follows_the_checkout(tmp_path: Path) -> None:
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    state = provenance.git_state(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert provenance.git_state(tmp_path) == {"commit": state["commit"], "dirty": True}


def test_an_installed_copy_is_not_the_surrounding_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    inner = tmp_path / "site-packages" / "longtake"
    inner.mkdir(parents=True)
    assert provenance.git_state(inner) == {"commit": None, "dirty": None}


def test_works_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(tmp_path) == {"commit": None, "dirty": None}
