"""CLIP text-image alignment of frames, through open_clip (optional: the extra ``clip``).

The score of a clip is 100 times the mean cosine of its frames with the caption: comparable between
models, and without the clamp at 0 of the published CLIPScore. Frames go through open_clip's own
Pillow transform, so a frame scores exactly as an image file does in open_clip. Models come from
files that the user has; nothing is downloaded.
"""

import pickle
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from longtake.core.video import to_uint8
from longtake.core.weights import read_json
from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import digest, to_plain

# Raised with every change that moves a score.
VERSION = 1
CONFIG_FILE = "open_clip_config.json"
# Frames per forward; bounds the memory.
FRAMES_PER_PASS = 32
CUT_CAPTION = "the caption is longer than the text context of CLIP, and was cut"

# What open_clip and torch raise on files and configurations that they cannot use.
_LOADING_ERRORS = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError,
                   SafetensorError, pickle.UnpicklingError)  # fmt: skip


class ClipReward(Reward):
    """Alignment of frames with the caption; ``source`` is what fixes the model."""

    needs_prompt = True
    needs_time = False

    def __init__(
        self, model: Any, tokenizer: Any, preprocess: Any, source: Mapping[str, object]
    ) -> None:
        self._model = model.eval()
        self._tokenizer, self._preprocess, self._source = tokenizer, preprocess, source

    @torch.inference_mode()
    def score(self, batch: VideoBatch) -> Sequence[Score]:
        """One score per clip; clips without a caption are unscored, cut captions are noted."""
        texts = {text: self._embedding(text) for text in {*batch.prompts} if text.strip()}
        # Clip by clip and caption by caption: a score is bitwise independent of its batch.
        return [
            Score.of(
                float(self._frame_scores(video, texts[caption]).mean()),
                CUT_CAPTION if self._is_cut(caption) else "",
            )
            if caption in texts
            else Score.unscored("the clip has no caption")
            for video, caption in zip(batch.video, batch.prompts, strict=True)
        ]

    def _embedding(self, caption: str) -> Tensor:
        """Unit embedding [D] of one caption."""
        tokens = self._tokenizer([caption]).to(self._model.logit_scale.device)
        return F.normalize(self._model.encode_text(tokens).float(), dim=-1)[0]

    def _is_cut(self, caption: str) -> bool:
        # Padding is on the right: a caption that fits keeps its tokens in a longer context.
        length = self._tokenizer.context_length
        longer = self._tokenizer([caption], context_length=length + 1)
        return not torch.equal(self._tokenizer([caption]), longer[:, :length])

    def _frame_scores(self, frames: Tensor, caption: Tensor) -> Tensor:
        """Scores [F] on the CPU of frames [F, 3, H, W] against a unit embedding [D]."""
        pictures = to_uint8(frames).cpu().permute(0, 2, 3, 1).numpy()
        cosines = []
        for start in range(0, len(pictures), FRAMES_PER_PASS):
            chunk = pictures[start : start + FRAMES_PER_PASS]
            pixels = torch.stack([self._preprocess(Image.fromarray(picture)) for picture in chunk])
            features = self._model.encode_image(pixels.to(caption.device))
            cosines.append(F.normalize(features.float(), dim=-1) @ caption)
        return 100.0 * torch.cat(cosines).cpu()

    def to(self, device: torch.device | str) -> Self:
        """Move the model."""
        self._model.to(device)
        return self

    def fingerprint(self) -> dict[str, object]:
        """Digest of the weights, preprocessing and versions."""
        return dict(to_plain({"kind": "clip", "version": VERSION, **self._source}))


def load_clip(folder: str | Path, device: torch.device | str = "cpu") -> ClipReward:
    """Load an open_clip model from a folder in open_clip's own layout.

    That is ``open_clip_config.json``, which also holds the preprocessing, the weights, and the
    tokenizer files where the configuration names a tokenizer.
    """
    # Not at the top: open_clip and torchvision are optional, and torchvision raises a RuntimeError
    # when it was built for another torch.
    try:
        open_clip = import_module("open_clip")
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "the CLIP reward needs open_clip, which does not import",
            received=_short(error),
            expected="open_clip_torch and a torchvision that fits the installed torch",
            remedy="pip install 'longtake[clip]' (in a checkout: pip install -e '.[clip]')",
        ) from error
    path = Path(folder)
    settings: Any = read_json(path / CONFIG_FILE).get("model_cfg")
    identifier = f"local-dir:{path}"
    try:
        tower = settings["text_cfg"].get("hf_model_name")
        # open_clip would download the configuration of the text tower, and say nothing.
        if tower and not Path(str(tower)).is_dir():
            raise ValueError(f"hf_model_name={tower} in {CONFIG_FILE} is no local folder")
        model, preprocess = open_clip.create_model_from_pretrained(identifier, device=str(device))
        tokenizer = open_clip.get_tokenizer(identifier)
    except _LOADING_ERRORS as error:
        raise CheckpointError(
            f"open_clip cannot load the model: {_short(error)}",
            received=str(path),
            expected=f"a complete open_clip checkpoint with model_cfg in {CONFIG_FILE}, and local "
            "files alone",
            remedy="copy the folder again from its source",
        ) from error
    source = {
        "weights_sha256": digest(path),
        "preprocess": open_clip.get_model_preprocess_cfg(model),
        "open_clip": open_clip.__version__,
    }
    return ClipReward(model, tokenizer, preprocess, source)


def _short(error: BaseException) -> str:
    """The first two lines: load_state_dict names the first missing keys in the second."""
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
    return text[:300] or type(error).__name__
