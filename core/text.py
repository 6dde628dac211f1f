"""Text: prompts to umT5 embeddings (cleaned, padded, cached), and a tokenizer of our own.

The DiT attends to umT5 states of a fixed length with a mask (report section 3.1). Prompts are
cleaned as the public release cleans them: mojibake repaired, HTML entities resolved twice,
whitespace collapsed. Each distinct prompt is encoded in a forward of its own, so its embedding
does not depend on which other prompts share the batch.
"""

import html
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longtake.core.weights import fill_model, read_json, write_shards
from longtake.runtime.errors import CheckpointError, UserError

RELEASE_MAX_LENGTH = 512
# transformers writes an astronomically large model_max_length when a tokenizer states none.
_UNSTATED_LENGTH = 1_000_000
_TIED_TABLE = "encoder.embed_tokens.weight"
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
_SPACE = "\u2581"
# A word spelt in characters must always lose against the word as one piece.
_CHARACTER_PENALTY = 10.0


def clean_prompt(prompt: str) -> str:
    """Repair encoding, unescape HTML twice, collapse runs of whitespace and strip.

    Two unescapes because web captions often carry ``&amp;amp;``.
    """
    repaired = html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()
    return re.sub(r"\s+", " ", repaired).strip()


class TextEncoder(nn.Module):
    """umT5 encoder with a tokenizer that appends the end token; embeddings are kept in memory."""

    def __init__(self, tokenizer: Any, model: UMT5EncoderModel) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        stated = int(tokenizer.model_max_length)
        self.max_length = stated if stated < _UNSTATED_LENGTH else RELEASE_MAX_LENGTH
        # Cleaned prompt -> [n, Dc] without padding, on the CPU: a run asks for few prompts often.
        self._cache: dict[str, Tensor] = {}

    @property
    def dim(self) -> int:
        """Width Dc of the embeddings."""
        return int(self.model.config.d_model)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both int64 [B, L], of cleaned prompts, padded to ``max_length``.

        A longer prompt is cut; its last kept token is still the end token.
        """
        assert prompts and not isinstance(prompts, str), "a list of prompts"
        # Always the full length: the mask, not the shape, says where a prompt ends.
        batch = self.tokenizer(
            [clean_prompt(prompt) for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = self._device
        return batch["input_ids"].to(device), batch["attention_mask"].to(device, torch.int64)

    def unknown_words(self, prompt: str) -> list[str]:
        """Words that the tokenizer can only spell: the encoder was never trained on them.

        A word in several pieces is no sign of that, a word in single letters is.
        """
        words = dict.fromkeys(re.findall(r"[^\W\d_]{2,}", clean_prompt(prompt)))
        unknown = self.tokenizer.unk_token
        return [
            word
            for word in words
            if all(
                len(piece.strip(_SPACE)) <= 1 or piece == unknown
                for piece in self.tokenizer.tokenize(word)
            )
        ]

    def embed(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Embeddings [B, 1, L, Dc], zero after the mask; keeps gradients (for pretraining)."""
        states = self.model(input_ids=token_ids, attention_mask=mask).last_hidden_state
        # torch.where instead of a product: a NaN in a padded row must not survive as 0 * NaN.
        keep = mask[:, :, None].bool()
        return torch.where(keep, states, states.new_zeros(()))[:, None]  # [B, 1, L, Dc]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 1, L, Dc] in the encoder's dtype, zero after the mask, and mask [B, L]."""
        token_ids, mask = self.tokenize(prompts)
        parameter = next(self.model.parameters())
        embeds = parameter.new_zeros((len(prompts), 1, self.max_length, self.dim))
        for row, prompt in enumerate(map(clean_prompt, prompts)):
            length = int(mask[row].sum())
            if prompt not in self._cache:
                # Alone: in a batch its rounding would depend on the company.
                states = self.embed(token_ids[row : row + 1], mask[row : row + 1])
                self._cache[prompt] = states[0, 0, :length].to("cpu", copy=True)
            embeds[row, 0, :length] = self._cache[prompt].to(embeds)
        return embeds, mask

    def clear_cache(self) -> None:
        """Forget embeddings; call it after changing the encoder's weights."""
        self._cache.clear()

    @classmethod
    def from_pretrained(
        cls,
        checkpoint_dir: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "TextEncoder":
        """Load ``tokenizer/`` and ``text_encoder/`` of a checkpoint directory, offline."""
        root = Path(checkpoint_dir)
        for part in ("tokenizer", "text_encoder"):
            if not (root / part).is_dir():
                raise CheckpointError(
                    f"{part} folder not found",
                    received=str(root),
                    expected=f"{root / part}",
                    remedy="point to a complete checkpoint directory",
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer", local_files_only=True)
            config = UMT5Config.from_dict(read_json(root / "text_encoder" / "config.json"))
            with torch.device("meta"):
                model = UMT5EncoderModel(config)
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            raise CheckpointError(
                f"the text encoder cannot be loaded: {error}",
                received=str(root),
                expected="tokenizer/ and text_encoder/ as transformers saves them",
                remedy="copy both folders again from their source",
            ) from error
        # The encoder reads the shared token table; files carry it once or twice.
        tied = {_TIED_TABLE: "shared.weight"}
        fill_model(model, root / "text_encoder", "model", device, dtype, tied=tied)
        return cls(tokenizer, model)

    def save_pretrained(self, checkpoint_dir: str | Path) -> None:
        """Write ``tokenizer/`` and ``text_encoder/`` into the checkpoint directory."""
        root = Path(checkpoint_dir)
        self.tokenizer.save_pretrained(root / "tokenizer")
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.save_pretrained(root / "text_encoder")
        state = {k: v for k, v in self.model.state_dict().items() if k != _TIED_TABLE}
        write_shards(state, root / "text_encoder", "model")

    @property
    def _device(self) -> torch.device:
        parameter: Tensor = next(self.model.parameters())
        return parameter.device


def new_text_encoder(
    vocab_size: int,
    d_model: int = 64,
    *,
    num_layers: int = 2,
    num_heads: int = 4,
    d_ff: int | None = None,
    seed: int = 0,
) -> UMT5EncoderModel:
    """A randomly initialised small umT5 encoder for the sandbox.

    ``d_model`` is the embedding width Dc, ``d_ff`` by default twice that. The global random state
    is left as it was.
    """
    assert d_model % num_heads == 0, (d_model, num_heads)
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=d_model // num_heads,
        d_ff=2 * d_model if d_ff is None else d_ff,
        num_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UMT5EncoderModel(config)


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, max_length: int, out_dir: str | Path
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a set of captions and save it to ``out_dir``; deterministic.

    Captions are cleaned here as prompts are; their order does not matter. Rare words beyond
    ``vocab_size`` tokens are spelt. ``max_length`` counts tokens, the end token included.
    """
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(clean_prompt(caption))
        words.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    assert words, "no caption to learn from"
    tokenizer = Tokenizer(models.Unigram(_pieces(words, vocab_size), unk_id=2))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}",
        pair=f"$A {EOS} $B {EOS}",
        special_tokens=[(EOS, 1)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=max_length,
    )
    fast.save_pretrained(out_dir)
    return fast


def _pieces(words: Counter[str], vocab_size: int) -> list[tuple[str, float]]:
    """Vocabulary in id order with log-probability scores: specials, characters, words."""
    total = sum(words.values())
    alphabet = set(string.ascii_lowercase + string.digits + string.punctuation + _SPACE)
    characters = sorted(alphabet | set("".join(words)))
    specials = [(PAD, 0.0), (EOS, 0.0), (UNK, 0.0)]
    room = vocab_size - len(specials) - len(characters)
    if room < 0:
        raise UserError(
            "the vocabulary is smaller than the alphabet of the captions",
            received=vocab_size,
            expected=f">= {vocab_size - room}",
            remedy="raise vocab_size",
        )
    ranked = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    kept = [(word, math.log(count / total)) for word, count in ranked if len(word) > 1][:room]
    floor = math.log(1 / total) - _CHARACTER_PENALTY
    return specials + [(character, floor) for character in characters] + kept
