"""Building a reward directory from the published files of HPSv3 or VideoReward (VideoAlign).

Needed are the weights, the user's copy of the public source and the tokenizer of Qwen2-VL.
Everything is checked by name and shape before anything large is read; the weights then pass through
memory one shard at a time.

The files. HPSv3 is one flat state dict. VideoReward is a folder with ``model_config.json`` and
``checkpoint-<step>/model.pth``, a whole PEFT state dict. A ``.pth`` file is a pickle, which may
hold code: it is opened with torch's restricted unpickler and mapped into memory; a file that needs
more than tensors is refused, not trusted.

The prompt. A reward model depends on its prompt to the byte, and the public prompts are other
people's text, so they are not stored here. The user points at the package that they have (a wheel,
a checkout, one file); its sources are parsed with ``ast``, never imported. Which string is the
template is decided by its sha256 alone: names and files move between versions, the text does not.
"""

import ast
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

import longtake
from longtake.core.weights import check_keys, check_shape, check_unique, read_json
from longtake.rewards.directory import RewardDirectory, write_reward_directory
from longtake.rewards.frames import FrameSampler
from longtake.rewards.model_inputs import (
    PLACEHOLDER,
    PromptTemplate,
    add_reward_tokens,
    check_tokenizer,
    load_tokenizer,
)
from longtake.rewards.pixels import HPSV3_PIXELS, VIDEOALIGN_PIXELS, PixelConfig
from longtake.rewards.qwen2vl.config import (
    RewardModelConfig,
    backbone_config,
    hpsv3_config,
    videoreward_config,
)
from longtake.rewards.qwen2vl.layers import infer_head
from longtake.rewards.qwen2vl.weights import (
    EMBEDDING,
    LM_HEAD,
    current_key,
    empty_reward_model,
    merge_lora,
)
from longtake.rewards.spec import DIMENSIONS, ColorMode, Normalization, RewardKind, RewardSpec
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import text_digest
from longtake.runtime.progress import progress_bar

CONFIG_FILE, FULL_FILE = "model_config.json", "model.pth"
# What torch and safetensors raise on files that are cut, or hold more than tensors.
_UNREADABLE = (OSError, RuntimeError, EOFError, KeyError, TypeError,
               SafetensorError, pickle.UnpicklingError)  # fmt: skip
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
# Settings of the public trainer that change the function of the model; others were never used.
_PUBLISHED = (
    ("data_config", "prompt_template_type", "detailed_special"),
    ("data_config", "sample_type", "uniform"),
    ("model_config", "reward_token", "special"),
    ("peft_lora_config", "use_rslora", False),
)
_LORA_DOWN, _LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"
_MAX_SOURCE_BYTES = 4 << 20  # a larger .py file is data, not a module with a prompt


@dataclass(frozen=True, kw_only=True)
class TemplateDigest:
    """What identifies a published template: its UTF-8 text with the placeholder in it."""

    sha256: str
    characters: int
    reward_tokens: tuple[str, ...]
    """Tokens that the text holds, in this order."""
    name: str


TEMPLATES: dict[RewardKind, TemplateDigest] = {
    # Two constants of the package, the instruction followed by the suffix.
    "hpsv3": TemplateDigest(
        sha256="f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
        characters=2590,
        reward_tokens=("<|Reward|>",),
        name="HPSv3 instruction and reward-token suffix (hpsv3 1.0.0)",
    ),
    "videoreward": TemplateDigest(
        sha256="fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
        characters=3997,
        reward_tokens=("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"),
        name="VideoAlign detailed_special (KwaiVGI/VideoAlign)",
    ),
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on the disk: its shape, known without reading it, and how to read a copy."""

    shape: torch.Size
    source: Path
    load: Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class VideoRewardConfig:
    """What a ``model_config.json`` fixes; None where the file does not tell."""

    pixels: PixelConfig
    sampler: FrameSampler
    normalization: dict[str, Normalization]
    lora_alpha: float | None
    output_dim: int | None


def import_reward(
    kind: RewardKind,
    weights: str | Path,
    source: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    color_mode: ColorMode = "rgb",
    backbone: str | Path | None = None,
    template: TemplateDigest | None = None,
) -> RewardDirectory:
    """Build the reward directory ``out``, a new or empty one; after an error nothing is left there.

    ``weights`` are HPSv3's file, or VideoReward's folder with
    ``model_config.json`` and ``checkpoint-<step>/`` (None: the largest step). A LoRA is folded into
    the weights, in float32 and rounded once. ``source`` is the wheel, checkout or ``.py`` file of
    the public code; reward tokens that the tokenizer lacks are added. ``color_mode`` is what the
    weights were trained on. Of another size than the published model are those with a ``backbone``
    (its ``config.json``), and of another prompt those with a ``template``.
    """
    if kind == "hpsv3" and step is not None:
        raise UserError("HPSv3 is one file", received=f"step={step}", expected="no step")
    prompt = read_template(source, template or TEMPLATES[kind])
    words = load_tokenizer(tokenizer)
    added = add_reward_tokens(words, prompt.reward_tokens)
    public: VideoRewardConfig | None = None
    if kind == "hpsv3":
        place = Path(weights)
        tensors = open_weights(place)
    else:
        place = step_folder(Path(weights), step)
        public = read_config(place.parent / CONFIG_FILE)
        tensors = open_weights(place / FULL_FILE)
    # From headers alone, before gigabytes are read.
    stored = _model_config(kind, tensors, backbone, public, place)
    expected = empty_reward_model(stored).state_dict()
    # The files hold lm_head, on which no score depends.
    head = tensors.pop(LM_HEAD, None)
    check_keys(tensors, expected, place)
    for name, tensor in {**tensors, **({EMBEDDING: head} if head else {})}.items():
        meta = torch.empty(tensor.shape, device="meta")
        check_shape(name, meta, expected[name].shape, tensor.source)
    check_tokenizer(words, stored, prompt.reward_tokens)
    spec = RewardSpec(
        kind=kind,
        model=stored.replace(lora_rank=0),
        reward_tokens=prompt.reward_tokens,
        pixels=HPSV3_PIXELS if public is None else public.pixels,
        sampler=None if public is None else public.sampler,
        color_mode=color_mode,
        normalization={} if public is None else public.normalization,
    )
    scaling = stored.lora_alpha / stored.lora_rank if stored.lora_rank else 0.0
    return write_reward_directory(
        out,
        spec,
        prompt,
        words,
        _read(tensors, scaling, f"import {kind}"),
        provenance={
            "longtake": longtake.__version__,
            "weights": sorted({tensor.source.name for tensor in tensors.values()}),
            "checkpoint": place.name,
            "source": Path(source).name,
            "reward_tokens_added": added,
            "lora_merged": stored.lora_rank > 0,
        },
    )


def _model_config(
    kind: RewardKind,
    tensors: Mapping[str, StoredTensor],
    backbone: str | Path | None,
    public: VideoRewardConfig | None,
    place: Path,
) -> RewardModelConfig:
    """Configuration of the model as it is stored, with its LoRA when there is one."""
    head = infer_head({name: tensor.shape for name, tensor in tensors.items()})
    rows = {"shared_linear": 1, "diagonal_linear": 3}.get(head)
    output_dim = rows if public is None or public.output_dim is None else public.output_dim
    ranks = {int(t.shape[0]) for name, t in tensors.items() if name.endswith(_LORA_DOWN)}
    alpha = None if public is None else public.lora_alpha
    is_other = (head == "ranknet") != (kind == "hpsv3") or output_dim != rows
    # The rank is in the shapes, but only the configuration knows the scale.
    if is_other or len(ranks) > 1 or (ranks and alpha is None):
        raise CheckpointError(
            "the weights are of another reward" if is_other else "the scale of the LoRA is unknown",
            received=f"{place}: a {head} head, output_dim {output_dim} in its configuration; LoRA "
            f"of ranks {sorted(ranks)}, lora_alpha {alpha}",
            expected="ranknet for hpsv3; for videoreward a linear head with output_dim rows, and a "
            f"LoRA of one rank with lora_alpha in {CONFIG_FILE}",
            remedy="import them as the other kind, or copy the checkpoint again from its source",
        )
    fields: dict[str, Any] = {"lora_rank": ranks.pop(), "lora_alpha": alpha} if ranks else {}
    published = hpsv3_config() if kind == "hpsv3" else videoreward_config(head)
    if backbone is not None:
        sizes = backbone_config(read_json(Path(backbone)))
        if EMBEDDING in tensors:  # training fits the vocabulary to the tokenizer
            sizes.text_config.vocab_size = int(tensors[EMBEDDING].shape[0])
        vocab = sizes.text_config.vocab_size
        # The reward tokens are appended, so theirs are the last rows.
        fields["backbone"] = sizes
        fields["reward_token_ids"] = tuple(range(vocab - len(published.reward_token_ids), vocab))
    return published.replace(**fields)


def _read(
    tensors: Mapping[str, StoredTensor], scaling: float, description: str
) -> Iterator[tuple[str, Tensor]]:
    """Read tensor by tensor, LoRA factors merged into their layers."""
    with progress_bar(description, len(tensors)) as bar:
        for done, (name, tensor) in enumerate(tensors.items(), start=1):
            # One layer at a time: base, down and up are all that is in memory.
            if name.endswith(".base_layer.weight"):
                layer = name.removesuffix(".base_layer.weight")
                parts = [name, f"{layer}{_LORA_DOWN}", f"{layer}{_LORA_UP}"]
                loaded = {part: tensors[part].load() for part in parts}
                yield from merge_lora(loaded, scaling).items()
            elif ".lora_" not in name:
                yield name.replace(".base_layer.", "."), tensor.load()
            bar.update(done)


def step_folder(root: Path, step: int | None) -> Path:
    """The folder ``checkpoint-<step>``; the largest step when None.

    The public loader takes the largest one also when the step is not there.
    """
    numbered = {
        int(match[1]): folder
        for folder in (root.iterdir() if root.is_dir() else ())
        if (match := re.fullmatch(r"checkpoint-(\d+)", folder.name)) and folder.is_dir()
    }
    number = max(numbered, default=None) if step is None else step
    if number not in numbered:
        raise CheckpointError(
            "the checkpoint step is not there",
            received=f"step {number} in {root}",
            expected=f"{CONFIG_FILE} and checkpoint-<step>/, steps {sorted(numbered) or 'none'}",
            remedy=f"pass the folder that holds {CONFIG_FILE}, and a step that is there or none",
        )
    return numbered[number]


def read_config(path: Path) -> VideoRewardConfig:
    """Read a ``model_config.json``; another use than the published one is refused."""
    config: dict[str, Any] = read_json(path)
    try:
        for part, key, published in _PUBLISHED:
            value = (config.get(part) or {}).get(key, published)
            if value != published:
                raise ValueError(f"{key} is {value!r}, only {published!r} is supported")
        data, model, lora, inference = (
            config.get(f"{name}_config") or {}
            for name in ("data", "model", "peft_lora", "inference")
        )
        alpha, rows = lora.get("lora_alpha"), model.get("output_dim")
        return VideoRewardConfig(
            # The lower limit of the area is a constant of the public code, not of the file.
            pixels=VIDEOALIGN_PIXELS.replace(
                max_pixels=int(data.get("max_frame_pixels", VIDEOALIGN_PIXELS.max_pixels))
            ),
            sampler=FrameSampler(
                target_fps=float(data.get("fps") or 2.0), num_frames=data.get("num_frames")
            ),
            normalization={
                name: Normalization(mean=inference[f"{name}_mean"], std=inference[f"{name}_std"])
                for name in DIMENSIONS
                if f"{name}_mean" in inference
            },
            lora_alpha=None if alpha is None else float(alpha),
            output_dim=None if rows is None else int(rows),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} cannot be used: {error}",
            received=str(path),
            expected="the file of a published VideoReward checkpoint",
            remedy="copy the file again from its source",
        ) from error


def open_weights(path: Path) -> dict[str, StoredTensor]:
    """Tensors of one file of any key layout by their current names, in the order of the file."""
    try:
        stored = _open_pickle(path) if path.suffix in PICKLE_SUFFIXES else _open_safetensors(path)
    except _UNREADABLE as error:
        # The telling line of torch's long message is the one that names the object.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
        raise CheckpointError(
            f"cannot read {path.name}: {(named or lines or [type(error).__name__])[0]}",
            received=str(path),
            expected=f"a complete .safetensors file or state dict ({', '.join(PICKLE_SUFFIXES)}) "
            "that holds tensors only; code in it is never run",
            remedy="copy the file again from its source; a broken copy is often truncated",
        ) from error
    check_unique({name: current_key(name) for name in stored}, path)
    return {current_key(name): tensor for name, tensor in stored.items()}


def _open_safetensors(path: Path) -> dict[str, StoredTensor]:
    file: Any = safe_open(path, framework="pt")  # stays open with the tensors that refer to it
    return {
        name: StoredTensor(
            torch.Size(file.get_slice(name).get_shape()),
            path,
            partial(_copy, partial(file.get_tensor, name), name),
        )
        for name in file.keys()  # noqa: SIM118 (safe_open is not iterable)
    }


def _open_pickle(path: Path) -> dict[str, StoredTensor]:
    """A pickled state dict, also one below a top-level ``model``."""
    # Mapped, so that a 16 GB file is not read whole.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    entries = content.items() if isinstance(content, Mapping) else [("the file", content)]
    others = [f"{k} ({type(v).__name__})" for k, v in entries if not isinstance(v, Tensor)]
    if others:
        raise TypeError(f"it is no state dict, but holds {', '.join(others[:4])}")
    return {
        str(k): StoredTensor(v.shape, path, partial(_copy, v.detach, str(k))) for k, v in entries
    }


def _copy(load: Callable[[], Tensor], name: str) -> Tensor:
    tensor = load()
    # A quantised copy has the same names and shapes, and would be scaled wrongly without a word.
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise CheckpointError(f"tensor {name} is quantised", received=str(tensor.dtype))
    return tensor.detach().clone()


def read_template(source: str | Path, expected: TemplateDigest) -> PromptTemplate:
    """The template in a wheel, a directory or a ``.py`` file of the public package.

    A template is one string constant, or the concatenation of two of the same file.
    """
    path = Path(source)
    near: list[str] = []
    files = list(_python_files(path))
    for name, code in files:
        if PLACEHOLDER not in code:
            continue  # parsing is slow, and both halves of a template lie in one file
        strings = _strings(code)
        lengths = ((head, tail) for head in strings for tail in strings)
        pairs = (a + b for a, b in lengths if len(a) + len(b) == expected.characters)
        for text in (*strings, *pairs):
            if PLACEHOLDER not in text:
                continue
            digest = text_digest(text)
            if digest == expected.sha256:
                return PromptTemplate(text=text, reward_tokens=expected.reward_tokens)
            near.append(f"{name} ({len(text)} characters, sha256 {digest[:12]}...)")
    raise UserError(
        f"the prompt template is not in the source: {expected.name}",
        received=f"{path}: {len(files)} Python files; templates: {'; '.join(near[-4:]) or 'none'}",
        expected=f"{expected.characters} characters with sha256 {expected.sha256}",
        remedy="point --source at the wheel or checkout that belongs to the weights, unmodified",
    )


def _strings(code: str) -> list[str]:
    """All string constants of a module; none when it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in other people's strings
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return []  # Python 2, a template of another engine, a generated file: not our business
    values = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return [value for value in values if isinstance(value, str)]


def _python_files(path: Path) -> Iterator[tuple[str, str]]:
    """(name, code) of every Python source in a wheel, a directory or a file."""
    if path.is_dir():
        for file in sorted(path.rglob("*.py")):
            if file.stat().st_size <= _MAX_SOURCE_BYTES:
                yield file.relative_to(path).as_posix(), _decode(file.read_bytes())
        return
    if path.suffix == ".py" and path.is_file():
        yield path.name, _decode(path.read_bytes())
        return
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
            remedy="download it (for example `pip download --no-deps hpsv3`) and pass its path",
        ) from error


def _decode(data: bytes) -> str:
    # Python reads sources with any line ending as "\n", and a digest must not depend on a checkout.
    return data.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
