"""Attention over parts of the keys, merged into attention over all of them."""

import math

from torch import Tensor


def merge_into(o: Tensor, lse: Tensor, part_o: Tensor, part_lse: Tensor) -> None:
    """Add the result over further keys to the result so far, in place.

    With softmax weights w = exp(lse) and w' = exp(part_lse): o <- (w o + w' o') / (w + w') and
    lse <- log(w + w'), computed relative to the larger one. A query that saw no key so far, or
    sees none in this part (lse -inf, output 0), keeps the other result bit for bit.

    Args:
        o: output over the keys so far, [..., D] in float32 or float64; overwritten.
        lse: its natural-log log-sum-exp [...] in the same type; overwritten.
        part_o: output over other keys, [..., D].
        part_lse: its log-sum-exp [...].
    """
    top = lse.maximum(part_lse)
    top = top.masked_fill(top == -math.inf, 0.0)  # -inf - -inf would be NaN
    weight, part_weight = (lse - top).exp(), (part_lse - top).exp()
    total = weight + part_weight
    lse.copy_(top + total.log())
    total = total.masked_fill(total == 0, 1.0)
    o.mul_((weight / total)[..., None]).add_(part_o * (part_weight / total)[..., None])
