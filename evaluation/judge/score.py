"""Scores of a judge for files of video: records for the log, on the raters' scale if calibrated.

Controls are inputs made wrong on purpose, to see what a judge really looks at:

    shuffled_prompt  the caption of another prompt: text alignment must fall
    blank            a gray video: everything must fall
    frozen           the first frame repeated: motion quality must fall
    reversed         time runs backwards: shown, without an expectation
    repeat           the same input again: nothing may change

A judge whose scores hardly depend on the prompt (a known failure) looks fine in a correlation and
fails the first control.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longtake.core.video import read_video
from longtake.evaluation.judge.card import CONTROL_MARK, CONTROLS, score_table
from longtake.evaluation.judge.data import RatedClips
from longtake.evaluation.judge.directory import JudgeClip, JudgeDirectory, JudgeModel
from longtake.evaluation.ratings import SampleList, read_ratings
from longtake.evaluation.score import RescoreReport, VideoScores, rescore
from longtake.rewards.contract import Score
from longtake.runtime.errors import UserError
from longtake.runtime.files import prompt_key
from longtake.runtime.progress import progress_bar
from longtake.runtime.rng import derive_key
from longtake.runtime.statistics import FloatArray

MAX_FRAMES = 1000
"""Longer clips are unscored instead of filling the memory."""
BATCH_BYTES = 1 << 28
"""Frames that the judge gets at once: 64 clips of the sandbox, two of 93 frames in 480p."""
GRAY = 128
"""Level of every pixel of a blank video."""

_CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "blank": lambda frames: torch.full_like(frames, GRAY),
    "frozen": lambda frames: frames[:1].expand_as(frames).contiguous(),
    "reversed": lambda frames: frames.flip(0),
}
"""What controls do to frames uint8 [T, 3, H, W]."""


class JudgeScorer:
    """Implements :class:`longtake.evaluation.score.Scorer`.

    ``load`` gives the model when the first clip needs it: a finished log costs no loading.
    ``control`` names one whose change of the frames is applied; empty: none.
    """

    batch = 64

    def __init__(
        self,
        judge: JudgeDirectory,
        load: Callable[[], JudgeModel],
        *,
        calibrated: bool = True,
        control: str = "",
    ) -> None:
        if calibrated and judge.calibration is None:
            raise UserError(
                "the judge is not calibrated",
                received=str(judge.path),
                expected="a judge with calibration.json",
                remedy="run `eval judge calibrate`, or ask for raw scores with --raw",
            )
        self._load, self._change = load, _CHANGES.get(control)
        calibration = judge.calibration if calibrated else None
        self._curves = calibration.curves if calibration else {}
        self.dimensions = judge.dimensions
        self.calibration = calibration.digest if calibration else ""
        # Calibrated, raw and control scores are raters of their own: logs never mix them.
        self.name = judge.name + (f"/{calibration.digest[:8]}" if calibration else "")
        self.name += f"{CONTROL_MARK}{control}" if control else ""

    def score(self, clips: Sequence[tuple[Path, str]]) -> list[VideoScores]:
        """The scores of each video with its caption."""
        scores: list[VideoScores] = [{}] * len(clips)
        shown: dict[int, JudgeClip] = {}
        for number, (video, caption) in enumerate(clips):
            try:
                clip = self._clip(video, caption)
            except UserError as error:
                scores[number] = dict.fromkeys(self.dimensions, Score.unscored(error.what))
                continue
            if sum(c.frames.nbytes for c in [*shown.values(), clip]) > BATCH_BYTES:
                self._judge(shown, scores)
            shown[number] = clip
        self._judge(shown, scores)
        return scores

    def _clip(self, video: Path, caption: str) -> JudgeClip:
        frames, fps = read_video(video, MAX_FRAMES + 1)
        # One frame more than the limit was read: enough to know, without the whole file.
        if len(frames) > MAX_FRAMES:
            raise UserError(f"longer than {MAX_FRAMES} frames")
        if self._change is not None:
            frames = self._change(frames)
        return JudgeClip(frames=frames, fps=fps, caption=caption)

    def _judge(self, shown: dict[int, JudgeClip], scores: list[VideoScores]) -> None:
        if shown:
            verdicts = self._load().judge(list(shown.values()))
            for number, verdict in zip(shown, verdicts, strict=True):
                scores[number] = {
                    name: Score.of(float(self._curves[name](np.array([score.value]))[0]))
                    if name in self._curves and score.value is not None
                    else score
                    for name, score in verdict.items()
                }
            shown.clear()


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

    ``folder`` gets ``scores.jsonl`` and, with controls, ``controls.jsonl``. ``on_progress`` is
    called with the name of the pass, "scores" or a control, and the number of finished samples.
    """
    unknown = sorted(set(controls) - set(CONTROLS))
    if unknown:
        raise UserError(
            "unknown control", received=", ".join(unknown), expected=", ".join(CONTROLS)
        )
    load = functools.cache(lambda: judge.load_model(device))
    # All scorers are made before the weights are loaded, so that what is wrong shows at once.
    scorers = {
        name: JudgeScorer(judge, load, calibrated=calibrated, control=name)
        for name in ("", *dict.fromkeys(controls))
    }
    reports = {}
    for name, scorer in scorers.items():
        listed = shuffle_captions(samples, seed) if name == "shuffled_prompt" else samples
        log = folder / ("controls.jsonl" if name else "scores.jsonl")
        label = name or "scores"
        reports[label] = rescore(listed, scorer, log, functools.partial(on_progress, label))
    return reports


def raw_scores(
    judge: JudgeDirectory, clips: RatedClips, folder: Path, device: torch.device
) -> FloatArray:
    """Scores [n, D] of n rated clips without calibration; NaN = unscored. A log there is kept."""
    with progress_bar("raw scores", len(clips.mean)) as bar:
        score_samples(
            clips.samples,
            judge,
            folder,
            device=device,
            calibrated=False,
            on_progress=lambda _, done: bar.update(done),
        )
    records, _ = read_ratings([folder / "scores.jsonl"])
    return score_table(records, judge.name, clips)


def shuffle_captions(samples: SampleList, seed: int = 0) -> SampleList:
    """Every sample with the caption of another prompt; samples of one prompt get the same one."""
    captions = {prompt_key(item.caption): item.caption for item in samples.samples}
    if len(captions) < 2:
        raise UserError(
            "captions cannot be shuffled",
            received=f"{len(captions)} different captions",
            expected="at least two prompts",
        )
    # Sorted first: the order of the list must not change which caption a sample gets.
    order = sorted(captions)
    random.Random(derive_key(seed, "shuffled captions")).shuffle(order)
    # One cycle through all of them: none stays in its place.
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    moved = (
        dataclasses.replace(item, caption=captions[following[prompt_key(item.caption)]])
        for item in samples.samples
    )
    return dataclasses.replace(samples, samples=tuple(moved))
