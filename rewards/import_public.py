"""Building a reward directory from the published files of HPSv3 or VideoReward (VideoAlign).

Needed are the weights, the user's copy of the public source and the tokenizer of Qwen2-VL.
Everything is checked by name and shape before anything large is read; the weights then pass through
memory one shard at a time.

The prompt. A reward model depends on its prompt to the byte, and the public prompts are other
people's text, so they are not stored here. The user points at the package that they have (a wheel,
a checkout, one file); its sources are parsed with ``ast``, never imported. Which string is the
template is decided by its sha256 alone: names and files move between versions, the text does not.
"""

import ast
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import longtake
from longtake.core.weights import check_keys, read_json
from longtake.rewards.directory import RewardDirectory, write_reward_directory
from longtake.rewards.model_inputs import (
    PLACEHOLDER,
    PromptTemplate,
    add_reward_tokens,
    check_tokenizer,
    load_tokenizer,
    text_digest,
)
from longtake.rewards.pixels import HPSV3_PIXELS
from longtake.rewards.published_files import (
    CONFIG_FILE,
    StoredTensor,
    VideoRewardConfig,
    open_hpsv3,
    open_videoreward,
    read_config,
    step_folder,
)
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
    empty_reward_model,
    merge_lora,
)
from longtake.rewards.spec import ColorMode, RewardKind, RewardSpec
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.progress import progress_bar

_LORA_DOWN, _LORA_UP = ".lora_A.default.weight", ".lora_B.default.weight"
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


def import_reward(
    kind: RewardKind,
    weights: str | Path,
    source: str | Path,
    tokenizer: str | Path,
    out: str | Path,
    *,
    step: int | None = None,
    base: str | Path | None = None,
    merge: bool = True,
    color_mode: ColorMode = "rgb",
    backbone: str | Path | None = None,
    template: TemplateDigest | None = None,
) -> RewardDirectory:
    """Build the reward directory ``out``.

    Args:
        kind: ``hpsv3`` or ``videoreward``.
        weights: HPSv3: the file (or a folder with it). VideoReward: the folder with
            ``model_config.json`` and ``checkpoint-<step>/``.
        source: wheel, checkout or ``.py`` file of the public code.
        tokenizer: directory of the Qwen2-VL tokenizer; reward tokens that it lacks are added.
        out: new or empty directory.
        step: VideoReward checkpoint; None is the largest.
        base: VideoReward whose LoRA is stored apart: folder of the Qwen2-VL base model.
        merge: fold a LoRA into the weights (in float32, rounded once). False keeps the factors,
            for parity with the public model, whose bfloat16 scores differ at the 1e-2 level.
        color_mode: what the weights were trained on; the published ones are ``rgb``.
        backbone: ``config.json`` of a backbone of another size than the published one.
        template: digest of another template than the published one.

    After an error nothing is left at ``out``.
    """
    if kind == "hpsv3" and (step is not None or base is not None):
        raise UserError(
            "HPSv3 is one file", received=f"step={step}, base={base}", expected="neither of them"
        )
    prompt = read_template(source, template or TEMPLATES[kind])
    words = load_tokenizer(tokenizer)
    added = add_reward_tokens(words, prompt.reward_tokens)
    public: VideoRewardConfig | None = None
    if kind == "hpsv3":
        place = Path(weights)
        tensors = open_hpsv3(place)
    else:
        place = step_folder(Path(weights), step)
        public = read_config(place.parent / CONFIG_FILE)
        tensors = open_videoreward(place, None if base is None else Path(base))
    # From headers alone, before gigabytes are read.
    stored = _model_config(kind, tensors, backbone, public, place)
    _check_tensors(tensors, stored, place)
    check_tokenizer(words, stored, prompt.reward_tokens)
    spec = RewardSpec(
        kind=kind,
        model=stored.replace(lora_rank=0) if merge else stored,
        reward_tokens=prompt.reward_tokens,
        pixels=HPSV3_PIXELS if public is None else public.pixels,
        sampler=None if public is None else public.sampler,
        color_mode=color_mode,
        normalization={} if public is None else public.normalization,
    )
    tensors.pop(LM_HEAD, None)
    scaling = stored.lora_alpha / stored.lora_rank if stored.lora_rank and merge else None
    return write_reward_directory(
        out,
        spec,
        prompt,
        words,
        _read(tensors, scaling, f"import {kind}"),
        provenance={
            "longtake": longtake.__version__,
            "weights": sorted({str(tensor.source.name) for tensor in tensors.values()}),
            "checkpoint": place.name,
            "source": Path(source).name,
            "reward_tokens_added": added,
            "lora_merged": scaling is not None,
        },
        progress=True,
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
    if (head == "ranknet") != (kind == "hpsv3") or output_dim != rows:
        raise CheckpointError(
            "the weights are of another reward",
            received=f"a {head} head in {place}, output_dim {output_dim} in its configuration",
            expected="ranknet for hpsv3; for videoreward a linear head with output_dim rows",
            remedy="import them as the other kind, with the configuration that belongs to them",
        )
    fields: dict[str, Any] = {}
    ranks = {int(t.shape[0]) for name, t in tensors.items() if name.endswith(_LORA_DOWN)}
    if ranks:
        alpha = None if public is None else public.lora_alpha
        if len(ranks) != 1 or alpha is None:
            raise CheckpointError(
                "the scale of the LoRA is not clear",
                received=f"ranks {sorted(ranks)}, lora_alpha {alpha} for {place}",
                expected=f"one rank, and lora_alpha in {CONFIG_FILE}",
                remedy="copy the checkpoint again from its source",
            )
        fields |= {"lora_rank": ranks.pop(), "lora_alpha": alpha}
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


def _check_tensors(
    tensors: Mapping[str, StoredTensor], config: RewardModelConfig, place: Path
) -> None:
    """Names and shapes against the model; ``lm_head`` may be there and is checked and dropped."""
    expected = empty_reward_model(config).state_dict()
    check_keys(tensors.keys() - {LM_HEAD}, expected, place)
    shapes = {name: tensor.shape for name, tensor in expected.items()}
    shapes[LM_HEAD] = shapes[EMBEDDING]
    wrong = [
        f"{name} {tuple(tensor.shape)}, not {tuple(shapes[name])}"
        for name, tensor in tensors.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise CheckpointError(
            "the weights do not fit the model",
            received=f"{place}: {len(wrong)} wrong shapes: " + "; ".join(wrong[:4]),
            expected="the shapes of the published model, or of the given backbone",
            remedy="pass the config.json of this backbone, or the published weights",
        )


def _read(
    tensors: Mapping[str, StoredTensor], scaling: float | None, description: str
) -> Iterator[tuple[str, Tensor]]:
    """Read and convert tensor by tensor; with a ``scaling``, LoRA factors are merged."""
    with progress_bar(description, len(tensors)) as bar:
        for done, (name, tensor) in enumerate(tensors.items(), start=1):
            if scaling is None:
                yield name, tensor.load()
            # One layer at a time: base, down and up are all that is in memory.
            elif name.endswith(".base_layer.weight"):
                layer = name.removesuffix(".base_layer.weight")
                parts = [name, f"{layer}{_LORA_DOWN}", f"{layer}{_LORA_UP}"]
                loaded = {part: tensors[part].load() for part in parts}
                yield from merge_lora(loaded, scaling).items()
            elif ".lora_" not in name:
                yield name.replace(".base_layer.", "."), tensor.load()
            bar.update(done)


def read_template(source: str | Path, expected: TemplateDigest) -> PromptTemplate:
    """The template in a wheel, a directory or a ``.py`` file of the public package.

    A template is one string constant, or the concatenation of two of the same file.
    """
    path = Path(source)
    near: list[str] = []
    files = 0
    for name, code in _python_files(path):
        files += 1
        if PLACEHOLDER not in code:
            continue  # parsing is slow, and both halves of a template lie in one file
        strings = _strings(code)
        pairs = (
            head + tail
            for head in strings
            for tail in strings
            if len(head) + len(tail) == expected.characters
        )
        for text in (*strings, *pairs):
            if PLACEHOLDER not in text:
                continue
            digest = text_digest(text)
            if digest == expected.sha256:
                return PromptTemplate(text=text, reward_tokens=expected.reward_tokens)
            near.append(f"{name} ({len(text)} characters, sha256 {digest[:12]}...)")
    raise UserError(
        f"the prompt template is not in the source: {expected.name}",
        received=f"{path}: {files} Python files"
        + ("; templates found: " + "; ".join(near[-4:]) if near else ", no template in them"),
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
