"""A byte-level tokenizer with the control tokens of Qwen2-VL: for tests and tiny reward heads.

Like Qwen2's it is a byte-level BPE, so it knows every caption. Without texts to learn from every
UTF-8 byte is one token; with them, words become tokens, and the prompts of tiny reward heads some
four times shorter. Ids: 256 bytes, then what was learned, then the control and reward tokens.
"""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from longtake.rewards.reward_tokenizer import add_reward_tokens
from longtake.rewards.template import CHAT_TOKENS


def byte_tokenizer(
    reward_tokens: Sequence[str] = (), texts: Iterable[str] = (), vocab_size: int = 512
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``vocab_size`` tokens, 6 control tokens and the reward tokens.

    The same arguments give the same tokenizer.

    Args:
        reward_tokens: special tokens of the reward.
        texts: what merges are learned from; with none there are 256 tokens, one per byte.
        vocab_size: bytes and merges, at most.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    learned = list(texts)
    if learned:
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(learned, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    add_reward_tokens(fast, (*CHAT_TOKENS, *reward_tokens))
    return fast
