"""The tokenizer of a reward: loaded offline, with its reward tokens, checked against the model."""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longtake.core.weights import read_json
from longtake.rewards.qwen2vl.config import RewardModelConfig
from longtake.rewards.template import CHAT_TOKENS, TURN_END, VISION_END, VISION_PADS, VISION_START
from longtake.runtime.errors import CheckpointError


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a local directory; nothing is downloaded and no code of it is run.

    Args:
        folder: a model or tokenizer directory that transformers' ``AutoTokenizer`` reads, or one
            with a bare ``tokenizer.json``.

    Raises:
        CheckpointError: missing or unreadable files.
    """
    path = Path(folder)
    expected = "a directory with tokenizer.json or with vocab.json and merges.txt"
    if not path.is_dir():
        raise CheckpointError(
            "the tokenizer directory is not there",
            received=str(path),
            expected=expected,
            remedy="copy the tokenizer files of Qwen2-VL-Instruct into one folder",
        )
    single = path / "tokenizer.json"
    try:
        if single.is_file():
            read_json(single)  # the tokenizers library raises a bare Exception on a cut file
        if (path / "tokenizer_config.json").is_file() or not single.is_file():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        else:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(single))
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(
            f"the tokenizer cannot be read: {error}",
            received=str(path),
            expected=expected,
            remedy="copy the files again from their source",
        ) from error
    return tokenizer


def add_reward_tokens(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[str]) -> int:
    """Append the reward tokens that the tokenizer lacks, as special tokens; how many there were."""
    missing = [token for token in tokens if token not in tokenizer.get_added_vocab()]
    tokenizer.add_tokens(missing, special_tokens=True)
    return len(missing)


def check_tokenizer(
    tokenizer: PreTrainedTokenizerFast, config: RewardModelConfig, reward_tokens: Sequence[str]
) -> None:
    """Compare the tokenizer with the model.

    Raises:
        CheckpointError: listing all of: chat or reward tokens that are missing or have another id
            than the model expects, and a vocabulary that is not as large as the embedding.
    """
    added = tokenizer.get_added_vocab()
    backbone = config.backbone
    wanted = {
        **dict.fromkeys(CHAT_TOKENS),
        VISION_START: backbone.vision_start_token_id,
        VISION_END: backbone.vision_end_token_id,
        VISION_PADS["image"]: backbone.image_token_id,
        VISION_PADS["video"]: backbone.video_token_id,
        **dict(zip(reward_tokens, config.reward_token_ids, strict=True)),
    }
    problems = [
        f"{token} is missing" if token not in added else f"{token} has id {added[token]}, not {id_}"
        for token, id_ in wanted.items()
        if token not in added or (id_ is not None and added[token] != id_)
    ]
    rows = backbone.text_config.vocab_size
    if len(tokenizer) != rows:
        problems.append(f"{len(tokenizer)} tokens for {rows} embedding rows")
    if problems:
        raise CheckpointError(
            "the tokenizer does not fit the model",
            received="; ".join(problems),
            expected="the tokenizer that the model was trained with",
            remedy=f"use the tokenizer of Qwen2-VL-Instruct (a turn ends with {TURN_END}), to "
            "which only the reward tokens are added",
        )
