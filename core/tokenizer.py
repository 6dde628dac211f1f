"""A small umT5-like tokenizer for worlds with their own vocabulary.

A Unigram model with the special ids of T5 (pad 0, end 1, unknown 2) and the end token appended,
saved so that ``AutoTokenizer`` loads it offline like the release's tokenizer. Its pieces are whole
words, scored by frequency, plus single characters for words never seen. The library's own Unigram
trainer is not used: it finds pieces among *distinct* words, so a world of fifty words falls apart
into letters, and its result changes from run to run.
"""

import math
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from longtake.core.text import clean_prompt
from longtake.runtime.errors import UserError

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
_SPACE = "\u2581"
# A word spelt in characters must always lose against the word as one piece.
_CHARACTER_PENALTY = 10.0


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, max_length: int, out_dir: str | Path
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a set of captions and save it to ``out_dir``; deterministic.

    Args:
        captions: training text; cleaned here as prompts are. Their order does not matter.
        vocab_size: upper bound on the number of tokens; rare words beyond it are spelt.
        max_length: ``model_max_length``, in tokens including the end token.
        out_dir: the ``tokenizer`` folder of a checkpoint.

    Raises:
        UserError: no captions, or a vocabulary too small for the characters.
    """
    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    words: Counter[str] = Counter()
    for caption in captions:
        text = normalizer.normalize_str(clean_prompt(caption))
        words.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    if not words:
        raise UserError(
            "a tokenizer needs captions to learn from",
            received="no non-empty caption",
            expected="at least one",
            remedy="pass the captions of the training clips",
        )
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
