import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from longtake.evaluation.internal_benchmark.images import (
    check_files,
    pixel_digest,
    scene_name,
    write_images,
)
from longtake.evaluation.internal_benchmark.schema import IMAGES_FILE, ReferenceImage, read_jsonl
from longtake.evaluation.internal_benchmark.suite import read_images
from longtake.runtime.errors import RunDirectoryError, UserError

RULES = [
    "image files can be read",
    "images have the size of their aspect and resolution",
    "pixels have the digest of the manifest",
]


def noise(image: ReferenceImage, seed: int = 0) -> Image.Image:
    """A coarse random picture of the entry's size."""
    draw = np.random.default_rng([seed, *image.id.encode()])
    width, height = image.size()
    small = Image.fromarray(draw.integers(0, 256, (9, 16, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture
def written(tmp_path: Path) -> list[ReferenceImage]:
    return write_images(read_images()[:3], noise, tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_the_digest_covers_pixels_not_compression(tmp_path: Path, mode: str) -> None:
    picture = noise(read_images()[0]).convert(mode)
    rgb = np.asarray(picture.convert("RGB"))
    expected = hashlib.sha256(b"720x720\n" + rgb.tobytes()).hexdigest()
    for level in (0, 9):
        picture.save(tmp_path / "p.png", compress_level=level)
        with Image.open(tmp_path / "p.png") as again:
            assert pixel_digest(again) == expected


def test_the_shape_is_part_of_the_digest() -> None:
    wide = Image.fromarray(np.zeros((2, 8, 3), np.uint8))
    assert pixel_digest(wide) != pixel_digest(wide.transpose(Image.Transpose.ROTATE_90))


def test_a_written_set_is_found_whole(tmp_path: Path, written: list[ReferenceImage]) -> None:
    assert read_jsonl(tmp_path / IMAGES_FILE, ReferenceImage) == written
    checks = check_files(written, tmp_path)
    assert [check.rule for check in checks] == RULES and all(check.passed for check in checks)
    assert [image.sha256 for image in written] == [pixel_digest(noise(i)) for i in written]


def test_another_resolution_changes_sizes_and_manifest(tmp_path: Path) -> None:
    listed = read_images()[3:5]
    found = write_images(listed, noise, tmp_path, "1080p")
    assert [(i.resolution, i.size()) for i in found] == [("1080p", (1920, 1080))] * 2
    assert all(check.passed for check in check_files(found, tmp_path))
    assert not check_files(listed, tmp_path)[1].passed


def test_missing_torn_resized_and_changed_files_are_named(
    tmp_path: Path, written: list[ReferenceImage]
) -> None:
    fourth = write_images(read_images()[3:4], noise, tmp_path)
    images = [*written, *fourth]
    (tmp_path / images[0].file).unlink()
    torn = tmp_path / images[1].file
    torn.write_bytes(torn.read_bytes()[:100])
    noise(images[2]).resize((300, 300)).save(tmp_path / images[2].file)
    noise(images[3], seed=1).save(tmp_path / images[3].file)
    unreadable, resized, changed = check_files(images, tmp_path)
    assert [e.split(":")[0] for e in unreadable.examples] == ["i2v-001", "i2v-002"]
    assert resized.examples == ("i2v-003: 300x300, not 720x720",)
    assert changed.examples == ("i2v-003", "i2v-004")


def test_a_broken_chunk_is_no_crash(tmp_path: Path, written: list[ReferenceImage]) -> None:
    path = tmp_path / written[0].file
    data = bytearray(path.read_bytes())
    data[12:16] = b"\x00\x01\x02\x03"  # the name of the first chunk
    path.write_bytes(data)
    (broken, _, _) = check_files(written, tmp_path)
    assert [example.split(":")[0] for example in broken.examples] == ["i2v-001"]


def test_scene_names() -> None:
    image = read_images()[41]
    assert scene_name(image) == (2025, 41)
    for origin in ("file", "sandbox:1", "sandbox:a:b", "photo:1:2", "sandbox:-1:2"):
        with pytest.raises(UserError, match="i2v-042 cannot be drawn"):
            scene_name(replace(image, origin=origin))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunDirectoryError):
        write_images(read_images()[:1], noise, tmp_path / "file")


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    def fails_late(image: ReferenceImage) -> Image.Image:
        if image.id == "i2v-002":
            raise KeyboardInterrupt
        return noise(image)

    with pytest.raises(KeyboardInterrupt):
        write_images(read_images()[:3], fails_late, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["i2v-001.png"]
