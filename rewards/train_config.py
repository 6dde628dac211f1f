"""Every setting of the training of a head, with unit, range and source; torch is not imported.

Defaults are the public recipes' where they are known: VideoAlign (arXiv 2501.13918 and its training
script) for the video heads, HPSv3 (arXiv 2508.03789) for the image head.
"""

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from longtake.runtime.config import Config

Method = Literal["lora", "full"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["float32", "bfloat16"]
LossKind = Literal["bradley_terry_ties", "bradley_terry", "uncertainty"]


class LoraSettings(Config):
    """LoRA on the linear layers of the language model (method ``lora``)."""

    rank: PositiveInt = 64
    """VideoAlign: 64."""
    alpha: PositiveFloat = 128.0
    """The update is scaled by alpha / rank. VideoAlign: 128."""
    dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the inputs dropped in training. VideoAlign: 0.05."""


class HeadTrainingConfig(Config):
    """What the trainings of rewards and of the judge have in common."""

    base: str = ""
    """Reward directory to start from; it gives the model, the prompt and the preprocessing."""
    dimensions: tuple[str, ...]
    """What is trained together."""
    method: Method = "lora"
    lora: LoraSettings = LoraSettings()
    """Settings of method lora; an unmerged LoRA of the base is trained on with its own rank."""
    train_vision: bool = True
    """Train the vision tower, all of it. VideoAlign and HPSv3: yes."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon trains the hidden matrices, AdamW the rest, at the same rate."""
    learning_rate: PositiveFloat = 2e-6
    """Reached after the warm-up. VideoAlign and HPSv3: 2e-6 for everything."""
    schedule: Schedule = "constant"
    """The rate after the warm-up; cosine falls to 0 at the last update. Both papers: constant."""
    warmup_share: float = Field(default=0.05, ge=0, lt=1)
    """Share of the updates in which the rate rises linearly. Both papers: 0.05."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    micro_batch: PositiveInt = 1
    """Rows (pairs, clips) per forward. Changes memory and speed, not the update (dropout apart)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, much less memory."""
    eval_every: PositiveInt = 100
    """Updates between validations; a checkpoint is written at each."""
    patience: NonNegativeInt = 0
    """Training stops after so many validations in a row without a lower loss; 0 never stops."""
    precision: Precision = "bfloat16"
    """Of the frozen weights and, by autocast, of the products. Whatever is trained keeps float32
    weights: updates of 2e-6 vanish in bfloat16."""
    workers: NonNegativeInt = 0
    """Processes that decode and resize clips for a GPU; on a CPU they would only compete with the
    model."""
    seed: int = 0
    """Names every draw: the split, the order, the LoRA, dropout and the noise of the loss."""
    trackers: tuple[str, ...] = ()
    """Trackers beside metrics.jsonl: tensorboard | wandb | trackio."""

    @model_validator(mode="after")
    def _dimensions_differ(self) -> Self:
        if not self.dimensions or len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError(f"dimensions {self.dimensions}: one or more different names")
        return self


class PairDataConfig(Config):
    """Which pairs are trained on and how they are split."""

    train: str = ""
    """File of pairs: VideoAlign's CSV (.csv) or HPSv3's list (.json)."""
    root: str | None = None
    """Folder that the paths in the files are relative to; null is the folder of the file."""
    validation: str | None = None
    """File of validation pairs; null splits ``train`` by prompt."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Expected share of the prompts that validate, when ``validation`` is null."""
    min_confidence: float = Field(default=0.95, ge=0, le=1)
    """Pairs of a .json file below it are dropped. HPSv3: 0.95."""
    frames_per_clip: PositiveInt = 4
    """Frames of a clip that an image reward (HPSv3) is trained on; each is a pair of its own, and
    the mean over the frames decides in validation."""
    general_prompt: bool = False
    """Every second frame of a clip is shown to an image reward with the fixed prompt of
    ``hpsv3_general`` in the place of its caption. HPSv3 was trained on captions alone."""
    cache_mib: NonNegativeInt = 2048
    """Memory for resized frames, so that a clip is decoded once, MiB."""


class RewardTrainingConfig(HeadTrainingConfig):
    """Training of the head, the reward-token rows and the backbone of one reward."""

    data: PairDataConfig = PairDataConfig()
    dimensions: tuple[str, ...] = ("MQ",)
    """Dimensions trained together: VQ, MQ, TA of a video reward; one label column of an image
    reward (Overall for HPSv3's files). The report trains MQ and TA apart."""
    color_mode: Literal["rgb", "bt601", "bt601_trunc", "mean"] | None = None
    """How clips are shown. Null is the report's choice (section 3.3.2): gray for MQ, else the
    base's. Recorded in the result; scoring refuses another one."""
    loss: LossKind | None = None
    """Null takes the published one of the head (ties for VideoAlign's, uncertainty for HPSv3's)."""
    tie_factor: float = Field(default=5.0, gt=1)
    """k of bradley_terry_ties. VideoAlign: 5."""
    uncertainty_draws: PositiveInt = 1000
    """Draws per pair of the uncertainty loss. HPSv3: 1000."""
    epochs: PositiveFloat = 2.0
    """Passes over the training pairs. VideoAlign: 2 (paper)."""
    max_updates: PositiveInt | None = None
    """Ends training after so many updates; overrides ``epochs``."""
    batch_pairs: PositiveInt = 32
    """Pairs per update, a multiple of ``micro_batch``. VideoAlign: 32 (paper)."""
    group_by_prompt: bool = False
    """Pairs of one prompt come one after the other, so that a clip of several pairs is scored once
    per forward. Faster when prompts have many pairs and ``micro_batch`` holds several of them;
    updates are then less varied. The public trainers shuffle the pairs."""
    patience: NonNegativeInt = 5
    export_public: bool = True
    """Also write the layout of the public loader (VideoAlign's PEFT layout, HPSv3's flat one)."""

    @model_validator(mode="after")
    def _batch_is_cut(self) -> Self:
        if self.batch_pairs % self.micro_batch:
            raise ValueError(f"batch_pairs: a multiple of micro_batch, {self.micro_batch}")
        return self
