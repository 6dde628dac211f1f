"""A byte-level tokenizer with the control tokens of Qwen2-VL: for tests and tiny reward heads.

Every UTF-8 byte is one token, so it needs no training and knows every caption; captions of the
sandbox are short enough. Ids: 256 bytes, then the control tokens, then the reward tokens.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longtake.rewards.reward_tokenizer import add_reward_tokens
from longtake.rewards.template import CHAT_TOKENS


def byte_tokenizer(reward_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of 262 tokens plus the reward tokens; the same one in every call."""
    bytes_in_order = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(bytes_in_order)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    add_reward_tokens(fast, (*CHAT_TOKENS, *reward_tokens))
    return fast
