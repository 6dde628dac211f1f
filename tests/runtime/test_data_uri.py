"""Files inside a page: exact contents, exact sizes, a budget that holds."""

import base64
from pathlib import Path

import pytest

from longtake.runtime.data_uri import MEDIA, Embedder, data_uri, uri_length


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 1001])
def test_the_length_is_known_before_the_file_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.MP4"
    path.write_bytes(bytes(i % 251 for i in range(size)))
    uri = data_uri(path.read_bytes(), path.suffix)
    assert uri.startswith("data:video/mp4;base64,") and len(uri) == uri_length(path)
    assert base64.b64decode(uri.partition(",")[2]) == path.read_bytes()


def test_embedder_keeps_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"twenty bytes of media")
    exact = Embedder(uri_length(path))
    uri = exact.uri(path)
    assert uri == data_uri(path.read_bytes(), ".png") and exact.uri(path) is None
    assert Embedder(uri_length(path) - 1).uri(path) is None


def test_other_endings_have_no_type(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"x")
    assert ".avi" not in MEDIA
    with pytest.raises(KeyError):
        Embedder(1000).uri(tmp_path / "a.avi")
