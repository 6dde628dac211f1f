"""Names of random draws as integers, without torch: plans and seeds need no more than this."""

import hashlib


def derive_key(seed: int, *path: int | str) -> int:
    """Hash (seed, path) into a 63-bit non-negative integer.

    The encoding tags each part with its type, so ``("1",)`` and ``(1,)`` differ, and separates the
    parts, so ``("ab", "c")`` and ``("a", "bc")`` differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (int(seed), *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)
