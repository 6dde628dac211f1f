"""A judge as a scorer of video files: records for the log, on the raters' scale if calibrated."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.core.video import read_video
from longtake.evaluation.judge.contract import JudgeClip, JudgeModel, Verdict
from longtake.evaluation.judge.controls import CONTROLS, VIDEO_CONTROLS, shuffle_captions
from longtake.evaluation.judge.judge_directory import JudgeDirectory
from longtake.evaluation.judge.score_log import CONTROL_MARK
from longtake.evaluation.ratings import SampleList
from longtake.evaluation.score import RescoreReport, VideoScores, rescore
from longtake.runtime.errors import UserError

MAX_FRAMES = 1000
"""Longer clips are unscored instead of filling the memory."""
BATCH = 64
"""Clips that the judge gets at once, if they are small: see :data:`BATCH_BYTES`."""
BATCH_BYTES = 1 << 28
"""Frames that the judge gets at once; a larger clip goes alone."""
KEPT_BYTES = 1 << 30
"""Frames that are kept for the controls, which show the same clips again."""


class Videos:
    """Decoded videos; the first ones are kept, as far as the memory reaches.

    Args:
        num_bytes: memory for frames.
    """

    def __init__(self, num_bytes: int = 0) -> None:
        self._left = num_bytes
        self._kept: dict[Path, tuple[Tensor, float]] = {}

    def read(self, path: Path) -> tuple[Tensor, float]:
        """Frames uint8 [T, 3, H, W], at most one more than :data:`MAX_FRAMES`, and their rate.

        Raises:
            UserError: as :func:`longtake.core.video.read_video`.
        """
        if path in self._kept:
            return self._kept[path]
        found = read_video(path, MAX_FRAMES + 1)
        if found[0].nbytes <= self._left:
            self._left -= found[0].nbytes
            self._kept[path] = found
        return found


class JudgeScorer:
    """Implements :class:`longtake.evaluation.score.Scorer`.

    Args:
        judge: the directory.
        model: loaded from it.
        calibrated: apply its calibration; raw scores are for fitting one.
        control: name of a control whose change of the frames is applied; empty: none.
        videos: where frames come from; None reads each clip.

    Attributes:
        batch: clips that are scored together.

    Raises:
        UserError: calibrated scores of a judge without calibration, or an unknown control.
    """

    batch = BATCH

    def __init__(
        self,
        judge: JudgeDirectory,
        model: JudgeModel,
        *,
        calibrated: bool = True,
        control: str = "",
        videos: Videos | None = None,
    ) -> None:
        if calibrated and judge.calibration is None:
            raise UserError(
                "the judge is not calibrated",
                received=str(judge.path),
                expected="a judge with calibration.json",
                remedy="run `eval judge calibrate`, or ask for raw scores with --raw",
            )
        if control and control not in CONTROLS:
            raise UserError("unknown control", received=control, expected=", ".join(CONTROLS))
        self._model = model
        self._videos = videos or Videos()
        self._curves = judge.calibration.curves if calibrated and judge.calibration else {}
        self._change = VIDEO_CONTROLS.get(control)
        self.dimensions = judge.dimensions
        self.calibration = ""
        self.name = judge.name
        if calibrated and judge.calibration is not None:
            self.calibration = judge.calibration.digest
            self.name += f"/{self.calibration[:8]}"
        if control:
            self.name += f"{CONTROL_MARK}{control}"

    def score(self, clips: Sequence[tuple[Path, str]]) -> list[VideoScores]:
        """What is found of each video with its caption."""
        found: list[VideoScores | None] = []
        shown: list[JudgeClip] = []
        places: list[int] = []

        def judge() -> None:
            for place, verdict in zip(places, self._model.judge(shown), strict=True):
                found[place] = self._points(verdict)
            shown.clear()
            places.clear()

        for video, caption in clips:
            found.append(None)
            clip = self._clip(video, caption)
            if isinstance(clip, str):
                found[-1] = dict.fromkeys(self.dimensions, (None, clip))
                continue
            if shown and sum(c.frames.nbytes for c in [*shown, clip]) > BATCH_BYTES:
                judge()
            shown.append(clip)
            places.append(len(found) - 1)
        if shown:
            judge()
        return [item for item in found if item is not None]

    def _clip(self, video: Path, caption: str) -> JudgeClip | str:
        """What the judge is shown, or why it cannot be."""
        try:
            frames, fps = self._videos.read(video)
        except UserError as error:
            return str(error.what)
        if len(frames) > MAX_FRAMES:
            return f"longer than {MAX_FRAMES} frames"
        if self._change is not None:
            frames = self._change(frames)
        return JudgeClip(frames=frames, fps=fps, caption=caption)

    def _points(self, verdict: Verdict) -> VideoScores:
        found: dict[str, tuple[float | None, str]] = {}
        for name, score in zip(self.dimensions, verdict.scores, strict=True):
            if score is None or not math.isfinite(score):
                found[name] = (None, verdict.reason or "the judge gives no finite score")
                continue
            curve = self._curves.get(name)
            found[name] = (score if curve is None else float(curve(np.array([score]))[0]), "")
        return found


def score_samples(
    samples: SampleList,
    judge: JudgeDirectory,
    folder: Path,
    *,
    device: torch.device,
    calibrated: bool = True,
    controls: Sequence[str] = (),
    seed: int = 0,
    on_progress: Callable[[str, int], None] = lambda name, done: None,
) -> dict[str, RescoreReport]:
    """Score a list of samples, and again under each control; what a log has is kept.

    Args:
        samples: with captions and videos.
        judge: the directory.
        folder: gets ``scores.jsonl`` and, with controls, ``controls.jsonl``.
        device: of the model.
        calibrated: scores on the raters' scale.
        controls: names of :data:`longtake.evaluation.judge.controls.CONTROLS`.
        seed: of the shuffled captions.
        on_progress: called with the name of the pass and the number of finished samples.

    Returns:
        "scores" and the controls -> what was done.

    Raises:
        UserError: an uncalibrated judge, an unknown control, or a log that cannot be written.
    """
    # All arguments are checked before the weights are loaded.
    names = ["", *dict.fromkeys(controls)]
    model = _Lazy(judge, device)
    videos = Videos(KEPT_BYTES if controls else 0)
    scorers = {
        name: JudgeScorer(judge, model, calibrated=calibrated, control=name, videos=videos)
        for name in names
    }
    reports = {}
    for name, scorer in scorers.items():
        listed = shuffle_captions(samples, seed) if name == "shuffled_prompt" else samples
        label = name or "scores"
        log = folder / ("controls.jsonl" if name else "scores.jsonl")
        reports[label] = rescore(
            listed,
            scorer,
            log,
            lambda done, label=label: on_progress(label, done),  # type: ignore[misc]
        )
    return reports


class _Lazy:
    """A model that is loaded when the first clip needs it: a finished log costs no loading."""

    def __init__(self, judge: JudgeDirectory, device: torch.device) -> None:
        self._judge, self._device = judge, device
        self._model: JudgeModel | None = None
        self.dimensions = judge.dimensions

    def judge(self, clips: Sequence[JudgeClip]) -> list[Verdict]:
        if self._model is None:
            self._model = self._judge.load_model(self._device)
        return self._model.judge(clips)

    def to(self, device: torch.device) -> "_Lazy":
        self._device, self._model = device, None
        return self
