"""A reward that another process computes (``rewards serve``), with other pins or on other hardware.

    GET  /v1/health    -> {"status": "ok"}
    GET  /v1/rewards   -> {"rewards": {NAME: {needs_prompt, needs_time, fingerprint, digest}},
                           "max_request_bytes": N}
    POST /v1/score     request:  safetensors, never pickle: ``video`` [B, T, 3, H, W], ``fps`` [B];
                                 metadata ``reward`` and ``prompts`` (a JSON list)
                       response: JSON, ``scores`` = B times [value, reason, note], ``digest``

Errors are {"error": REASON}. With a token, all but the health check want the header
``Authorization: Bearer TOKEN``.

A clip that could not be scored, for whatever reason, is unscored with that reason. Failures that
may pass (no connection, time out, a full queue) are tried again with exponential backoff.
"""

import json
import logging
import os
import re
from pathlib import Path

import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError
from safetensors.torch import save

from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.runtime.config import Config
from longtake.runtime.errors import LongtakeError, UserError

try:
    import httpx
    import tenacity
except ModuleNotFoundError as error:
    raise UserError(
        f"remote rewards need the package {error.name}",
        received="not installed",
        remedy="pip install 'longtake[serve]'",
    ) from error

log = logging.getLogger(__name__)

HEALTH_PATH, REWARDS_PATH, SCORE_PATH = "/v1/health", "/v1/rewards", "/v1/score"
MEDIA_TYPE = "application/octet-stream"
TOKEN_VARIABLE = "LONGTAKE_REWARD_TOKEN"
MIN_TOKEN_LENGTH = 16

_RETRY_STATUS = frozenset({408, 429, 502, 503, 504})
_MAX_RETRY_AFTER_S = 60.0
_HEADER_BYTES = 1 << 16  # room for names, shapes and reasons beside pixels and captions


class ClientConfig(Config):
    """How a remote reward is asked."""

    timeout_s: PositiveFloat = 300.0
    """Longest wait for an answer, scoring included, in one attempt."""
    connect_timeout_s: PositiveFloat = 10.0
    attempts: PositiveInt = 5
    backoff_s: PositiveFloat = 0.5
    """Mean wait before the second attempt is half of this; it doubles with every further one."""
    max_backoff_s: PositiveFloat = 30.0
    max_request_bytes: PositiveInt = 128 * 2**20
    """A batch is split into requests of at most this size; a single clip may use the server's."""


class RemoteFailure(LongtakeError):
    """An attempt that failed; ``may_pass`` says whether another one can succeed."""

    def __init__(self, reason: str, *, may_pass: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass, self.retry_after_s = may_pass, retry_after_s


class _Scorer(BaseModel):
    """A reward of a server, and below it the answers to GET and POST."""

    needs_prompt: bool
    needs_time: bool
    fingerprint: dict[str, object]
    digest: str


class _Description(BaseModel):
    rewards: dict[str, _Scorer]
    max_request_bytes: int


class _Answer(BaseModel):
    scores: list[tuple[float | None, str | None, str]]
    digest: str


class RemoteReward(Reward):
    """A reward of a server, which is asked for it here; the default token is the environment's."""

    def __init__(
        self, url: str, reward: str, *, token: str | None = None, config: ClientConfig | None = None
    ) -> None:
        self.name, self.config = reward, config or ClientConfig()
        self._url = _checked(url)
        token = token or read_token()
        self._headers = {"Content-Type": MEDIA_TYPE}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self._scorer, self._limit = self._describe()
        self.needs_prompt, self.needs_time = self._scorer.needs_prompt, self._scorer.needs_time

    def score(self, batch: VideoBatch) -> list[Score]:
        """Scores of the server, in as many requests as the size of the clips asks for.

        Clips are sent in their dtype: as uint8 they take a quarter of the time of float32. When a
        request has used up its attempts, the clips after it are not sent: each of them would wait
        as long again.
        """
        room = min(self.config.max_request_bytes, self._limit) - _HEADER_BYTES
        captions = max(len(json.dumps(prompt)) for prompt in batch.prompts)
        size = max(1, room // (batch.video[0].nbytes + captions + 8))
        scores: list[Score] = []
        given_up: str | None = None
        for start in range(0, batch.num_samples, size):
            part = batch.select(range(start, min(start + size, batch.num_samples)))
            if given_up is not None:
                scores += [Score.unscored(f"not sent after {given_up}")] * part.num_samples
                continue
            try:
                scores += self._request(part)
            except RemoteFailure as failure:
                reason = f"{self._url}: {failure}"
                scores += [Score.unscored(reason)] * part.num_samples
                given_up = reason if failure.may_pass else None
        return scores

    def _request(self, batch: VideoBatch) -> list[Score]:
        body, known = encode_request(self.name, batch), self._scorer.digest
        try:
            if len(body) > self._limit:
                raise ValueError(
                    f"a clip of {len(body)} bytes is over the server's limit of {self._limit}; "
                    "send uint8, or raise the limit"
                )
            answer = _Answer.model_validate_json(self._ask("POST", SCORE_PATH, body))
            if len(answer.scores) != batch.num_samples:
                raise ValueError(f"{len(answer.scores)} scores for {batch.num_samples} clips")
            if answer.digest != known:
                raise ValueError(
                    f"the scorer changed during the run (fingerprint {known[:12]}, now "
                    f"{answer.digest[:12]}); scores before and after are not comparable"
                )
        except ValueError as error:  # pydantic's are ValueErrors
            raise RemoteFailure(f"request or answer unusable: {error}", may_pass=False) from error
        return [
            Score.unscored(reason or "") if value is None else Score.of(value, note)
            for value, reason, note in answer.scores
        ]

    def _describe(self) -> tuple[_Scorer, int]:
        """The server's reward of this name, and the largest request in bytes."""
        try:
            description = _Description.model_validate_json(self._ask("GET", REWARDS_PATH))
            return description.rewards[self.name], description.max_request_bytes
        except RemoteFailure as error:
            reason = str(error)
        except ValidationError:
            reason = "no answer of a reward server"
        except KeyError:
            reason = f"no {self.name} here, only {', '.join(sorted(description.rewards))}"
        raise UserError(
            "the reward server cannot be used",
            received=f"{self._url}: {reason}",
            expected="a running `rewards serve` with this reward, and its token",
        )

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Body of the answer; RemoteFailure when refused, or still failing at the last attempt."""
        config = self.config
        # The jitter spreads clients that failed at the same moment.
        backoff = tenacity.wait_random_exponential(config.backoff_s, config.max_backoff_s)

        def wait(state: tenacity.RetryCallState) -> float:
            asked = getattr(state.outcome and state.outcome.exception(), "retry_after_s", 0.0)
            return backoff(state) + min(float(asked), _MAX_RETRY_AFTER_S)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: getattr(error, "may_pass", False)),
            stop=tenacity.stop_after_attempt(config.attempts),
            wait=wait,
            before_sleep=tenacity.before_sleep_log(log, logging.WARNING),
            reraise=True,
        )
        return retrying(self._attempt, method, path, body)

    def _attempt(self, method: str, path: str, body: bytes | None) -> bytes:
        config = self.config
        try:
            # The environment's proxies are for other hosts than a reward server.
            with httpx.Client(
                headers=self._headers,
                timeout=httpx.Timeout(config.timeout_s, connect=config.connect_timeout_s),
                trust_env=False,
            ) as client:
                response = client.request(method, f"{self._url}{path}", content=body)
        except httpx.TimeoutException as error:
            raise RemoteFailure("no answer in time", may_pass=True) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise RemoteFailure(f"connection failed: {reason}", may_pass=True) from error
        if response.status_code == 200:
            return response.content
        try:
            reason = str(response.json()["error"]).split("\n", 1)[0]
        except (ValueError, LookupError, TypeError):
            reason = response.reason_phrase
        wait = response.headers.get("Retry-After", "")
        raise RemoteFailure(
            f"status {response.status_code}: {reason}",
            may_pass=response.status_code in _RETRY_STATUS,
            retry_after_s=float(wait) if wait.isdecimal() else 0.0,
        )

    def to(self, device: torch.device | str) -> "RemoteReward":
        """Nothing: the server keeps the model where it is."""
        return self

    def fingerprint(self) -> dict[str, object]:
        """Fingerprint of the server's reward; its address does not move a score."""
        return {"kind": "remote", "name": self.name, "scorer": self._scorer.fingerprint}


def encode_request(reward: str, batch: VideoBatch) -> bytes:
    """Body of a request that ``reward`` scores the clips; their dtype is kept."""
    tensors = {"video": batch.video, "fps": batch.fps_per_sample()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"reward": reward, "prompts": json.dumps(list(batch.prompts))}
    return bytes(save(tensors, metadata))


def read_token(file: Path | None = None) -> str | None:
    """The shared secret from ``file``, or else from the environment; None without either.

    On the command line it would be visible to every user of the machine: there is no such option.
    """
    try:
        token = file.read_text("utf-8").strip() if file else os.environ.get(TOKEN_VARIABLE)
        if token is not None and not re.fullmatch(rf"[!-~]{{{MIN_TOKEN_LENGTH},}}", token):
            raise ValueError(f"{len(token)} characters")  # never the token itself
    except (OSError, ValueError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeError) else error
        raise UserError(
            "the token cannot be used",
            received=f"{reason}, in {file or TOKEN_VARIABLE}",
            expected=f"at least {MIN_TOKEN_LENGTH} printable ASCII characters without spaces",
            remedy="make one with: openssl rand -hex 32",
        ) from error
    return token


def _checked(address: str) -> str:
    """The address without a slash at its end; it holds no secret that a log could show."""
    if not re.fullmatch(r"https?://[^/@?#\s]+(/[^@?#\s]*)?", address):
        raise UserError(
            "the address of the reward server cannot be used",
            received=address.rsplit("@", 1)[-1],  # never a password
            expected="http://HOST:PORT or https://HOST:PORT, without user, password or query",
            remedy="pass the token through the environment",
        )
    return address.rstrip("/")
