"""CLIP text-image alignment of frames, through open_clip (optional: the extra ``clip``).

Every frame is compared with the caption by the cosine of their embeddings, and the frame scores
become a clip score by :mod:`longtake.rewards.frames`. Frames go through open_clip's own Pillow
transform, so a frame scores exactly as an image file does in open_clip. Models come from files
that the user has; nothing is downloaded.
"""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.core.weights import read_json
from longtake.rewards.contract import RewardOutput, VideoBatch
from longtake.rewards.frames import Aggregation, Rounding, aggregate, all_frames, even_frames
from longtake.runtime.errors import CheckpointError, ConfigError, UserError
from longtake.runtime.files import digest, to_plain

VERSION = 1
"""Raised with every change that moves a score."""

CONFIG_FILE = "open_clip_config.json"
COSINE_SCALE = 100.0

Scale = Literal["cosine", "logit"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

_LOADING_ERRORS = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError,
                   SafetensorError, pickle.UnpicklingError)  # fmt: skip
"""What open_clip and torch raise on files and configurations that they cannot use."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Settings of a CLIP reward; all of them enter the fingerprint."""

    scale: Scale = "cosine"
    """``cosine``: 100 times the cosine, comparable between models, without the clamp at 0 of the
    published CLIPScore. ``logit``: the model's own exp(logit_scale) * cosine + logit_bias."""
    how: Aggregation = "mean"
    """How frame scores become a clip score."""
    fraction: float = 0.3
    """Share of the frames for ``top_fraction``."""
    rounding: Rounding = "floor"
    """How the share becomes a number of frames."""
    num_frames: int | None = None
    """Frames spread evenly over the clip; None scores all of them."""
    frames_per_pass: int = 32
    """Frames per forward; bounds the memory."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the weights, by open_clip's names."""

    def __post_init__(self) -> None:
        for key, known in (("scale", get_args(Scale)), ("precision", tuple(_DTYPES))):
            if getattr(self, key) not in known:
                raise ConfigError(
                    f"{key} is unknown", received=getattr(self, key), expected=", ".join(known)
                )
        if self.frames_per_pass < 1:
            raise ConfigError(
                "frames_per_pass must be positive", received=self.frames_per_pass, expected=">= 1"
            )


class ClipReward:
    """Alignment of frames with the caption; implements the Reward protocol.

    Build it with :func:`load_clip_reward`.

    Args:
        name: column name.
        model: an open_clip model.
        tokenizer: texts -> token ids [N, context].
        preprocess: Pillow image -> normalised tensor [3, h, w].
        source: what fixes the model (digest, architecture, versions), for the fingerprint.
        config: settings.
    """

    needs_prompt = True
    needs_time = False

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        preprocess: Any,
        source: Mapping[str, object],
        config: ClipConfig,
    ) -> None:
        self.name = name
        self.config = config
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._source = dict(source)

    @torch.inference_mode()
    def score(self, batch: VideoBatch) -> RewardOutput:
        """One score per clip; clips without a caption are unscored.

        The side results are ``per_frame`` [B, F] and ``caption_truncated`` [B], 1 where the caption
        is longer than the text context, so that its end did not count.
        """
        unique = dict.fromkeys(batch.prompts)
        captions = {text: self._encode_caption(text) for text in unique if text.strip()}
        truncated = {text: self._is_truncated(text) for text in captions}
        chosen = (
            all_frames(batch.num_frames)
            if self.config.num_frames is None
            else even_frames(batch.num_frames, self.config.num_frames)
        )
        per_frame = torch.full((batch.num_samples, len(chosen)), torch.nan)
        # Clip by clip and caption by caption: a score is bitwise independent of its batch.
        for index, caption in enumerate(batch.prompts):
            if caption in captions:
                frames = batch.video[index, chosen.to(batch.video.device)]
                per_frame[index] = self._frame_scores(frames, captions[caption])
        score = aggregate(
            per_frame,
            self.config.how,
            fraction=self.config.fraction,
            rounding=self.config.rounding,
        )
        flags = [float(truncated.get(caption, False)) for caption in batch.prompts]
        output = RewardOutput.from_scores(
            score, {"per_frame": per_frame, "caption_truncated": torch.tensor(flags)}
        )
        reasons = [
            reason if caption in captions else "the clip has no caption"
            for caption, reason in zip(batch.prompts, output.reasons, strict=True)
        ]
        return RewardOutput(score=output.score, valid=output.valid, aux=output.aux, reasons=reasons)

    def _encode_caption(self, caption: str) -> Tensor:
        """Unit embedding [D] of one caption."""
        tokens = self._tokenizer([caption]).to(self._device)
        return F.normalize(self._model.encode_text(tokens).float(), dim=-1)[0]

    def _is_truncated(self, caption: str) -> bool:
        """Whether the tokens change when the context has room for one more.

        Padding is on the right, so a caption that fits keeps its tokens in a longer context.
        """
        length = self._tokenizer.context_length
        tokens = self._tokenizer([caption])
        longer = self._tokenizer([caption], context_length=length + 1)
        return not torch.equal(tokens, longer[:, :length])

    def _frame_scores(self, frames: Tensor, caption: Tensor) -> Tensor:
        """Scores [F] on the CPU of frames [F, 3, H, W] against a unit embedding [D]."""
        images = [Image.fromarray(f) for f in to_uint8(frames).cpu().permute(0, 2, 3, 1).numpy()]
        parts = []
        for start in range(0, len(images), self.config.frames_per_pass):
            chunk = images[start : start + self.config.frames_per_pass]
            pixels = torch.stack([self._preprocess(image) for image in chunk])
            features = self._model.encode_image(
                pixels.to(self._device, _DTYPES[self.config.precision])
            )
            parts.append(F.normalize(features.float(), dim=-1) @ caption)
        cosine = torch.cat(parts).cpu()
        if self.config.scale == "cosine":
            return COSINE_SCALE * cosine
        bias = self._model.logit_bias
        scale = float(self._model.logit_scale.float().exp())
        return scale * cosine + (0.0 if bias is None else float(bias))

    @property
    def _device(self) -> torch.device:
        return torch.device(self._model.logit_scale.device)

    def to(self, device: torch.device | str) -> Self:
        """Move the model."""
        self._model.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """Digest of the weights, preprocessing, versions and every setting."""
        record = {"kind": "clip", "name": self.name, "version": VERSION, **self._source}
        return dict(to_plain({**record, **asdict(self.config)}))


def load_clip_reward(
    model: str | Path,
    weights: str | Path | None = None,
    *,
    name: str = "clip",
    config: ClipConfig | None = None,
    device: torch.device | str = "cpu",
) -> ClipReward:
    """Load an open_clip model from files.

    Args:
        model: a folder in open_clip's layout (``open_clip_config.json``, weights, and the tokenizer
            files where the configuration names a tokenizer), which also carries the preprocessing;
            or the name of an architecture, together with ``weights``. OpenAI's weights need the
            names that end in ``-quickgelu``.
        weights: weights file for an architecture (safetensors, or a state dict that torch loads
            with ``weights_only``).
        name: column name.
        config: settings; the defaults when None.
        device: where the model goes.

    Raises:
        UserError: open_clip is not installed or does not import.
        CheckpointError: missing, truncated or unfit files, an unknown architecture, or a model
            that would need a download.
    """
    open_clip = _import_open_clip()
    config = config or ClipConfig()
    folder = Path(model)
    if folder.is_dir():
        identifier, digested = f"local-dir:{folder}", folder
        settings = read_json(folder / CONFIG_FILE).get("model_cfg")
        architecture = "local-dir"
    else:
        identifier = architecture = str(model)
        settings = open_clip.get_model_config(architecture) if ":" not in architecture else None
        digested = _weights_file(open_clip, architecture, settings, weights)
    if not isinstance(settings, dict) or not isinstance(settings.get("text_cfg"), dict):
        raise CheckpointError(
            "the folder has no open_clip model configuration",
            received=str(folder / CONFIG_FILE),
            expected="model_cfg with embed_dim, vision_cfg and text_cfg",
            remedy="copy the file again from its source",
        )
    _check_offline(settings["text_cfg"], identifier)
    try:
        loaded, preprocess = open_clip.create_model_from_pretrained(
            identifier,
            # An absolute path, because a bare name could be one of open_clip's download tags.
            None if folder.is_dir() else str(digested.resolve()),
            precision=config.precision,
            device=str(device),
        )
        tokenizer = open_clip.get_tokenizer(identifier)
    except _LOADING_ERRORS as error:
        raise CheckpointError(
            f"open_clip cannot load the model: {_short(error)}",
            received=str(digested),
            expected=f"a complete open_clip checkpoint of {architecture}",
            remedy="check that the weights belong to this architecture, or copy them again",
        ) from error
    source = {
        "architecture": architecture,
        "weights_sha256": digest(digested),
        "preprocess": open_clip.get_model_preprocess_cfg(loaded),
        "open_clip": open_clip.__version__,
    }
    return ClipReward(name, loaded, tokenizer, preprocess, source, config)


def _import_open_clip() -> Any:
    # Not at the top: open_clip and torchvision are optional, and torchvision raises a RuntimeError
    # when it was built for another torch.
    try:
        return import_module("open_clip")
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "the CLIP reward needs open_clip, which does not import",
            received=_short(error),
            expected="open_clip_torch and a torchvision that fits the installed torch",
            remedy="pip install 'longtake[clip]' (in a checkout: pip install -e '.[clip]')",
        ) from error


def _weights_file(
    open_clip: Any, architecture: str, settings: object, weights: str | Path | None
) -> Path:
    if settings is None:
        near = [known for known in open_clip.list_models() if architecture.lower() in known.lower()]
        raise CheckpointError(
            "neither a folder nor an open_clip architecture",
            received=architecture,
            expected=f"a folder with {CONFIG_FILE}, or a name such as "
            + ", ".join(near[:4] or ["ViT-B-32", "ViT-L-14-quickgelu"]),
            remedy="download the model first; longtake reads local files only",
        )
    if weights is None or not Path(weights).is_file():
        raise CheckpointError(
            f"the weights of {architecture} are not there",
            received=None if weights is None else str(weights),
            expected="a weights file",
            remedy="pass the path of the weights; tags of pretrained weights are not downloaded",
        )
    return Path(weights)


def _check_offline(text_config: Mapping[str, object], identifier: str) -> None:
    """Refuse what open_clip would fetch from a hub: text towers and tokenizers by name."""
    tower = text_config.get("hf_model_name")
    if tower and not Path(str(tower)).is_dir():
        raise CheckpointError(
            "open_clip would download the text tower's configuration",
            received=f"hf_model_name={tower}",
            expected="the path of a local folder with that model's config.json",
            remedy=f"set hf_model_name to a local folder in {CONFIG_FILE}",
        )
    if text_config.get("hf_tokenizer_name") and not identifier.startswith("local-dir:"):
        raise CheckpointError(
            "open_clip would download the tokenizer of this architecture",
            received=identifier,
            expected=f"a folder with {CONFIG_FILE}, weights and tokenizer files",
            remedy="pass the folder of the model instead of its architecture",
        )


def _short(error: BaseException) -> str:
    """The first two lines: load_state_dict names the first missing keys in the second."""
    lines = [line.strip() for line in str(error).strip().splitlines()[:2]]
    text = " ".join(lines) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."
