"""Wire format of remote rewards: safetensors bodies with JSON in the header, never pickle.

    GET  /v1/health    -> {"status": "ok"}
    GET  /v1/rewards   -> {"rewards": {NAME: {needs_prompt, needs_time, fingerprint, digest}},
                           "max_request_bytes": N}
    POST /v1/score     request:  tensors ``video`` [B, T, 3, H, W] and ``fps`` [B];
                                 metadata ``reward`` and ``prompts`` (a JSON list)
                       response: JSON, ``scores`` = B times [value, reason, note], ``digest``

Errors are JSON, {"error": REASON}. With a token, all but the health check want the header
``Authorization: Bearer TOKEN``.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from longtake.rewards.contract import Score, VideoBatch
from longtake.runtime.errors import UserError

HEALTH_PATH = "/v1/health"
REWARDS_PATH = "/v1/rewards"
SCORE_PATH = "/v1/score"
MEDIA_TYPE = "application/octet-stream"

TOKEN_VARIABLE = "LONGTAKE_REWARD_TOKEN"
MIN_TOKEN_LENGTH = 16


class PayloadError(UserError):
    """A request or a response that is not what this module writes."""


def encode_request(reward: str, batch: VideoBatch) -> bytes:
    """Body of a request that ``reward`` scores the clips; their dtype is kept."""
    tensors = {"video": batch.video, "fps": batch.fps_per_sample()}
    return _pack(tensors, {"reward": reward, "prompts": json.dumps(list(batch.prompts))})


def decode_request(body: bytes) -> tuple[str, VideoBatch]:
    """The reward's name and the clips.

    Raises:
        PayloadError: not safetensors, truncated, or a part is missing.
        UserError: clips, captions or playback rates that no reward accepts.
    """
    tensors, metadata = _unpack(body, ("video", "fps"), ("reward", "prompts"))
    prompts = _json_list(metadata["prompts"], "prompts")
    return metadata["reward"], VideoBatch(
        video=tensors["video"], prompts=prompts, fps=tensors["fps"]
    )


def encode_response(scores: Sequence[Score], digest: str) -> bytes:
    """Body of a response.

    Args:
        scores: of the clips of the request.
        digest: :func:`fingerprint_digest` of the reward that made them.
    """
    rows = [[score.value, score.reason, score.note] for score in scores]
    return json.dumps({"scores": rows, "digest": digest}).encode()


def decode_response(body: bytes, num_samples: int) -> tuple[list[Score], str]:
    """The scores and the digest of the reward that made them.

    Raises:
        PayloadError: not the JSON of a response, or not ``num_samples`` scores.
    """
    try:
        content = json.loads(body)
        scores = [
            Score.unscored(str(reason)) if value is None else Score.of(float(value), str(note))
            for value, reason, note in content["scores"]
        ]
        digest = str(content["digest"])
    except (ValueError, LookupError, TypeError) as error:
        raise PayloadError(
            f"the body is no response: {error}", received=f"{len(body)} bytes"
        ) from error
    if len(scores) != num_samples:
        raise PayloadError(
            "the response does not fit the request",
            received=f"{len(scores)} scores",
            expected=f"{num_samples} scores",
        )
    return scores, digest


def fingerprint_digest(fingerprint: Mapping[str, object]) -> str:
    """SHA-256 of a fingerprint in canonical JSON."""
    text = json.dumps(fingerprint, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_token(file: Path | None = None) -> str | None:
    """The shared secret from ``file``, or else from the environment; None without either.

    A token on the command line would be visible to every user of the machine, so there is no such
    option.

    Raises:
        UserError: an unreadable file, or a token that is short or not printable ASCII.
    """
    source = f"the variable {TOKEN_VARIABLE}"
    token = os.environ.get(TOKEN_VARIABLE)
    if file is not None:
        source = str(file)
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(
                "the token cannot be read", received=source, expected="a readable text file"
            ) from error
    if token is None:
        return None
    if len(token) < MIN_TOKEN_LENGTH or not all("!" <= letter <= "~" for letter in token):
        raise UserError(
            "the token cannot be used",
            received=f"{len(token)} characters in {source}",  # never the token itself
            expected=f"at least {MIN_TOKEN_LENGTH} printable ASCII characters without spaces",
            remedy="make one with: openssl rand -hex 32",
        )
    return token


def _pack(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return bytes(save(plain, metadata=metadata))


def _unpack(
    body: bytes, names: tuple[str, ...], keys: tuple[str, ...]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        tensors = load(body)
    except SafetensorError as error:
        raise PayloadError(
            f"the body is not safetensors: {error}",
            received=f"{len(body)} bytes",
            expected="a complete safetensors file",
        ) from error
    # `load` drops the metadata; it has checked the length and the JSON of the header.
    (length,) = struct.unpack_from("<Q", body)
    metadata = json.loads(body[8 : 8 + length]).get("__metadata__", {})
    missing = [name for name in names if name not in tensors]
    missing += [key for key in keys if key not in metadata]
    if missing:
        raise PayloadError(
            "the body is incomplete",
            received=f"tensors {sorted(tensors)}, metadata {sorted(metadata)}",
            expected=", ".join(missing),
        )
    return tensors, metadata


def _json_list(text: str, key: str) -> list[str]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise PayloadError(f"{key} is not a JSON list", received=text[:80], expected="a JSON list")
    return value
