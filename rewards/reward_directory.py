"""A reward directory: everything that fixes the scores of one learned reward, in one folder.

    reward.json   what the reward is, and size and sha256 of every other file
    template.txt  the user text of its prompt
    tokenizer/    with the reward tokens
    model.safetensors, or shards with model.safetensors.index.json

A directory is written beside its place and renamed, so it is whole or not there. Reading it checks
every file: small ones by digest, weights by size and, when asked, by digest.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from longtake.core.weights import check_keys, check_shape, read_json, write_shards
from longtake.rewards.qwen2vl.model import Qwen2VLRewardModel
from longtake.rewards.qwen2vl.weights import WEIGHTS_STEM, empty_reward_model, load_reward_model
from longtake.rewards.reward_spec import RewardSpec
from longtake.rewards.reward_tokenizer import check_tokenizer, load_tokenizer
from longtake.rewards.template import PromptEncoder, PromptTemplate
from longtake.runtime.errors import CheckpointError
from longtake.runtime.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPEC_FILE, TEMPLATE_FILE, TOKENIZER_FOLDER = "reward.json", "template.txt", "tokenizer"
TOKENIZER_FILE = f"{TOKENIZER_FOLDER}/tokenizer.json"
FORMAT = 1
"""Version of ``reward.json``; raised when an older reader would misunderstand it."""
SHARD_BYTES = 2 * 2**30
"""Largest weight file, and with it the memory that writing needs."""


@dataclass(frozen=True, kw_only=True)
class RewardDirectory:
    """A directory that was read and checked; its weights are loaded on demand.

    Args:
        path: of the directory.
        spec: what the reward is.
        recorded: the spec as ``reward.json`` has it: parsed, it gets the defaults of the installed
            transformers.
        template: of its prompt.
        digests: sha256 of every file, by relative path.
        provenance: where it came from, as the writer recorded it.
    """

    path: Path
    spec: RewardSpec
    recorded: Mapping[str, Any]
    template: PromptTemplate
    digests: Mapping[str, str]
    provenance: Mapping[str, Any]

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer, checked against the model."""
        tokenizer = load_tokenizer(self.path / TOKENIZER_FOLDER)
        check_tokenizer(tokenizer, self.spec.model, self.spec.reward_tokens)
        return tokenizer

    def encoder(self) -> PromptEncoder:
        """Captions to token ids."""
        return PromptEncoder(self.template, self.tokenizer(), self.spec.vision)

    def load_model(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Qwen2VLRewardModel:
        """The model in evaluation mode; ``dtype`` is the backbone's, the head is float32."""
        return load_reward_model(self.spec.model, self.path, device, dtype)

    def fingerprint(self) -> dict[str, object]:
        """What fixes the scores: the spec, and digests of template, tokenizer and weights."""
        return {
            **self.recorded,
            "template_sha256": self.digests[TEMPLATE_FILE],
            # Not its tokenizer_config.json, which notes how it was last loaded.
            "tokenizer_sha256": self.digests[TOKENIZER_FILE],
            "weights_sha256": [sha for name, sha in self.digests.items() if _is_weight(name)],
        }


def write_reward_directory(
    path: str | Path,
    spec: RewardSpec,
    template: PromptTemplate,
    tokenizer: "PreTrainedTokenizerFast",
    weights: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    *,
    provenance: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
) -> RewardDirectory:
    """Write a reward directory.

    Args:
        path: a new or empty directory.
        spec: what the reward is.
        template: with the reward tokens of ``spec``.
        tokenizer: that fits the model.
        weights: state dict of the model or (name, tensor) pairs, which are written as they come;
            names as in :class:`~longtake.rewards.qwen2vl.Qwen2VLRewardModel`, any dtype.
        provenance: recorded as it is; JSON types.
        shard_bytes: largest weight file.
        progress: show a bar while the digests are computed.

    Raises:
        CheckpointError: the place is taken, or tokens, template, tokenizer and weights do not fit,
            or a file cannot be written. Nothing is left behind.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise CheckpointError(
            "the place of the reward directory is taken",
            received=str(target),
            expected="a new path or an empty directory",
            remedy="remove it, or choose another path",
        )
    if template.reward_tokens != spec.reward_tokens:
        raise CheckpointError(
            "the template does not fit the reward",
            received=f"reward tokens {template.reward_tokens}",
            expected=str(spec.reward_tokens),
        )
    check_tokenizer(tokenizer, spec.model, spec.reward_tokens)
    temporary = target.absolute().with_name(f".tmp-{target.name}-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        (temporary / TEMPLATE_FILE).write_bytes(template.text.encode("utf-8"))
        tokenizer.save_pretrained(temporary / TOKENIZER_FOLDER)
        pairs = weights.items() if isinstance(weights, Mapping) else weights
        write_shards(_fitting(pairs, spec, target), temporary, WEIGHTS_STEM, shard_bytes)
        record = {
            "format": FORMAT,
            **spec.to_dict(),
            "provenance": dict(provenance or {}),
            "files": _file_records(temporary, progress),
        }
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        (temporary / SPEC_FILE).write_text(text, encoding="utf-8")
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the reward directory cannot be written: {error}",
            received=str(target),
            remedy="check the free space and the permissions; nothing was left behind",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_reward_directory(target)


def write_in_bfloat16(source: RewardDirectory, path: str | Path) -> RewardDirectory:
    """Copy a reward with its backbone in bfloat16 (half the size), as GPUs load it anyway.

    Args:
        source: the reward.
        path: a new or empty directory.

    Raises:
        CheckpointError: the place is taken or cannot be written.
    """
    return write_reward_directory(
        path,
        source.spec,
        source.template,
        source.tokenizer(),
        source.load_model(dtype=torch.bfloat16).state_dict(),
        provenance=source.provenance,
    )


def read_reward_directory(path: str | Path, *, verify_weights: bool = False) -> RewardDirectory:
    """Read and check a reward directory; the weights stay on the disk.

    Args:
        path: the directory.
        verify_weights: compare the sha256 of the weights too, at the speed of the disk.

    Raises:
        CheckpointError: missing, cut or changed files, all in one message, or a ``reward.json``
            that cannot be used.
    """
    root = Path(path)
    missing = [name for name in (SPEC_FILE, TEMPLATE_FILE) if not (root / name).is_file()]
    if not (root / TOKENIZER_FOLDER).is_dir():
        missing.append(f"{TOKENIZER_FOLDER}/")
    if not any(root.glob(f"{WEIGHTS_STEM}*.safetensors")):
        missing.append(f"{WEIGHTS_STEM}.safetensors")
    if SPEC_FILE in missing:
        raise _incomplete(root, [f"{name} is missing" for name in missing])
    record = read_json(root / SPEC_FILE)
    if record.get("format") != FORMAT:
        raise CheckpointError(
            "the format of the reward directory is not known",
            received=f"format {record.get('format')!r} in {root / SPEC_FILE}",
            expected=str(FORMAT),
            remedy="update longtake, or import the reward again",
        )
    files = _checked_records(record.pop("files", None), root)
    problems = [f"{name} is missing" for name in missing if name not in files]
    digests = {name: str(entry["sha256"]) for name, entry in files.items()}
    for name, entry in files.items():
        problem = _problem(root / name, entry, verify_weights or not _is_weight(name))
        if problem:
            problems.append(f"{name} {problem}")
    if problems:
        raise _incomplete(root, problems)
    provenance = record.pop("provenance", {})
    del record["format"]
    spec = RewardSpec.from_dict(record, root / SPEC_FILE)
    text = (root / TEMPLATE_FILE).read_bytes().decode("utf-8")
    return RewardDirectory(
        path=root,
        spec=spec,
        recorded=record,
        template=PromptTemplate(text=text, reward_tokens=spec.reward_tokens),
        digests=digests,
        provenance=provenance if isinstance(provenance, Mapping) else {},
    )


def _fitting(
    pairs: Iterable[tuple[str, Tensor]], spec: RewardSpec, target: Path
) -> Iterator[tuple[str, Tensor]]:
    """The pairs, after a check that they are the tensors of the model."""
    expected = empty_reward_model(spec.model).state_dict()
    seen: set[str] = set()
    for name, tensor in pairs:
        if name not in expected:
            check_keys([*expected, name], expected, target)
        check_shape(name, tensor, expected[name].shape, target)
        seen.add(name)
        yield name, tensor
    check_keys(seen, expected, target)


def _file_records(root: Path, progress: bool) -> dict[str, dict[str, object]]:
    files = sorted(file for file in root.rglob("*") if file.is_file())
    records: dict[str, dict[str, object]] = {}
    with progress_bar("digests", len(files)) if progress else nullcontext() as bar:
        for file in files:
            name = file.relative_to(root).as_posix()
            records[name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            if bar is not None:
                bar.update(len(records))
    return records


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_weight(name: str) -> bool:
    return name.endswith(".safetensors")


def _problem(file: Path, entry: Mapping[str, object], digest: bool) -> str | None:
    if not file.is_file():
        return "is missing"
    if file.stat().st_size != entry["bytes"]:
        return f"has {file.stat().st_size} bytes, not {entry['bytes']}"
    if digest and _sha256(file) != entry["sha256"]:
        return "was changed (sha256)"
    return None


def _checked_records(files: object, root: Path) -> dict[str, Mapping[str, object]]:
    """The ``files`` of a reward.json; paths that leave the directory are not accepted."""
    records = dict(files) if isinstance(files, Mapping) else {}
    usable = all(
        isinstance(entry, Mapping)
        and {"bytes", "sha256"} <= entry.keys()
        and not Path(name).is_absolute()
        and ".." not in Path(name).parts
        for name, entry in records.items()
    )
    complete = {TEMPLATE_FILE, TOKENIZER_FILE} <= records.keys() and any(map(_is_weight, records))
    if not (usable and complete):
        raise CheckpointError(
            "reward.json does not list its files",
            received=str(root / SPEC_FILE),
            expected='"files": {"relative path": {"bytes": size, "sha256": digest}}',
            remedy="import the reward again",
        )
    return records


def _incomplete(root: Path, problems: list[str]) -> CheckpointError:
    return CheckpointError(
        "the reward directory is incomplete or damaged" if root.is_dir() else "no such reward",
        received=f"{root}: " + "; ".join(problems),
        expected=f"{SPEC_FILE}, {TEMPLATE_FILE}, {TOKENIZER_FOLDER}/ and the weights, unchanged",
        remedy="copy the directory again, or import the reward again",
    )
