"""Text: prompts to umT5 embeddings (cleaned, padded, cached), and a tokenizer of our own.

The DiT attends to umT5 states of a fixed length with a mask (report section 3.1). Prompts are
cleaned as the public release cleans them: mojibake repaired, HTML entities resolved twice,
whitespace collapsed. Each distinct prompt is encoded in a forward of its own, so its embedding
does not depend on which other prompts share the batch.

Embeddings are cached in memory and optionally on disk, keyed by (encoder digest, cleaned prompt).
A disk entry carries a sha256 of prompt and values: one that cannot be read or does not match is
treated as absent, because a cache must never be the reason a run fails or a wrong embedding is
used.
"""

import hashlib
import html
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ftfy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from longtake.core.weights import digest_tensors, fill_model, read_json, write_shards
from longtake.runtime.errors import CheckpointError, UserError
from longtake.runtime.files import replacing

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


class EmbeddingCache:
    """Embeddings [n, Dc] of prompts without their padding.

    ``folder`` None keeps them in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._memory: dict[tuple[str, str], Tensor] = {}

    @property
    def is_persistent(self) -> bool:
        """Whether entries are kept on disk."""
        return self._folder is not None

    def get(self, digest: str, prompt: str, shape: tuple[int, int]) -> Tensor | None:
        """The stored embedding on the CPU, or None when absent, corrupt or of another shape."""
        found = self._memory.get((digest, prompt))
        if found is None and self._folder is not None:
            found = _read_entry(self._path(digest, prompt), prompt)
        if found is None or tuple(found.shape) != shape:
            return None
        self._memory[digest, prompt] = found
        return found

    def put(self, digest: str, prompt: str, embedding: Tensor) -> None:
        """Store an embedding; a disk that cannot be written leaves the memory entry only."""
        stored = embedding.detach().to("cpu", copy=True).contiguous()
        self._memory[digest, prompt] = stored
        if self._folder is None:
            return
        # One key only: safetensors writes several in an order that changes from run to run.
        metadata = {"sha256": _checksum(prompt, stored)}
        with (
            suppress(OSError, SafetensorError),
            replacing(self._path(digest, prompt)) as temporary,
        ):
            save_file({"embedding": stored}, temporary, metadata=metadata)

    def clear(self) -> None:
        """Forget the entries in memory; those on disk stay, under their encoder's digest."""
        self._memory.clear()

    def _path(self, digest: str, prompt: str) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(prompt.encode()).hexdigest()
        return self._folder / digest[:16] / f"{name}.safetensors"


def _read_entry(path: Path, prompt: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            embedding = file.get_tensor("embedding")
    except (OSError, SafetensorError):
        return None
    return embedding if metadata.get("sha256") == _checksum(prompt, embedding) else None


def _checksum(prompt: str, tensor: Tensor) -> str:
    sha = hashlib.sha256(prompt.encode() + b"\0")
    sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


class TextEncoder(nn.Module):
    """umT5 encoder with its tokenizer and an embedding cache.

    ``tokenizer`` appends the end token; ``cache_dir`` None keeps embeddings in memory only.
    """

    def __init__(
        self, tokenizer: Any, model: UMT5EncoderModel, cache_dir: str | Path | None = None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model = model
        stated = int(tokenizer.model_max_length)
        self.max_length = stated if stated < _UNSTATED_LENGTH else RELEASE_MAX_LENGTH
        self.cache = EmbeddingCache(None if cache_dir is None else Path(cache_dir))
        self._digest: str | None = None

    @property
    def dim(self) -> int:
        """Width Dc of the embeddings."""
        return int(self.model.config.d_model)

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both int64 [B, L], of cleaned prompts, padded to ``max_length``.

        A longer prompt is cut; its last kept token is still the end token.
        """
        assert prompts and not isinstance(prompts, str), "a list of prompts"
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
        """Embeddings and mask of prompts, from the cache where possible.

        Returns:
            embeds [B, 1, L, Dc] on the encoder's device and dtype, zero after the mask;
            mask [B, L] int64.
        """
        token_ids, mask = self.tokenize(prompts)
        digest = self.digest() if self.cache.is_persistent else ""
        rows: dict[str, Tensor] = {}
        for row, prompt in enumerate(prompts):
            key = clean_prompt(prompt)
            if key in rows:
                continue
            length = int(mask[row].sum())
            found = self.cache.get(digest, key, (length, self.dim))
            if found is None:
                found = self.embed(token_ids[row : row + 1], mask[row : row + 1])[0, 0, :length]
                self.cache.put(digest, key, found)
            rows[key] = found
        parameter = next(self.model.parameters())
        embeds = parameter.new_zeros((len(prompts), 1, self.max_length, self.dim))
        for row, prompt in enumerate(prompts):
            found = rows[clean_prompt(prompt)]
            embeds[row, 0, : len(found)] = found.to(embeds)
        return embeds, mask

    def clear_cache(self) -> None:
        """Forget embeddings in memory; call it after changing the encoder's weights."""
        self.cache.clear()
        self._digest = None

    def digest(self) -> str:
        """sha256 of the encoder weights, token table and length; computed once."""
        if self._digest is None:
            vocabulary = repr(sorted(self.tokenizer.get_vocab().items()))
            header = f"{self.max_length}:{vocabulary}".encode()
            state = dict(self.model.state_dict())
            state["longtake.tokenizer"] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
            self._digest = digest_tensors(state)
        return self._digest

    @classmethod
    def from_pretrained(
        cls,
        checkpoint_dir: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        cache_dir: str | Path | None = None,
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
        return cls(tokenizer, model, cache_dir)

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

    Args:
        captions: training text; cleaned here as prompts are. Their order does not matter.
        vocab_size: upper bound on the number of tokens; rare words beyond it are spelt.
        max_length: ``model_max_length``, in tokens including the end token.
        out_dir: the ``tokenizer`` folder of a checkpoint.
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
