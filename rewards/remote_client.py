"""A reward that another process computes (``rewards serve``), with other pins or on other hardware.

A clip that could not be scored, for whatever reason, is unscored with that reason. Failures that
may pass (no connection, time out, a full queue) are tried again with exponential backoff.
"""

import json
import logging
import random
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Self
from urllib.parse import urlsplit

import torch

from longtake.rewards.contract import Score, VideoBatch
from longtake.rewards.remote_protocol import (
    MEDIA_TYPE,
    REWARDS_PATH,
    SCORE_PATH,
    decode_response,
    encode_request,
    read_token,
)
from longtake.runtime.errors import ConfigError, LongtakeError, UserError

log = logging.getLogger(__name__)
_jitter = random.Random()  # moves no score, so it needs no key; the global state stays untouched

_RETRY_STATUS = frozenset({408, 429, 502, 503, 504})
_MAX_RESPONSE_BYTES = 256 * 2**20
_MAX_RETRY_AFTER_S = 60.0
_HEADER_BYTES = 1 << 16  # room for names, shapes and reasons beside pixels and captions


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How a remote reward is asked."""

    timeout_s: float = 300.0
    """Longest wait for an answer, scoring included, in one attempt."""
    connect_timeout_s: float = 10.0
    """Longest wait for the connection."""
    attempts: int = 5
    """Attempts per request."""
    backoff_s: float = 0.5
    """Mean wait before the second attempt is half of this; it doubles with every further one."""
    max_backoff_s: float = 30.0
    """Upper bound of one wait, unless the server asks for more."""
    max_request_bytes: int = 128 * 2**20
    """A batch is split into requests of at most this size (or the server's limit, if lower); a
    single clip may use the server's limit."""

    def __post_init__(self) -> None:
        for key in ("timeout_s", "connect_timeout_s", "attempts", "max_request_bytes"):
            if not getattr(self, key) > 0:
                raise ConfigError(
                    f"{key} must be positive", received=getattr(self, key), expected="> 0"
                )


class RemoteFailure(LongtakeError):
    """An attempt that failed.

    Args:
        reason: what went wrong, one line.
        may_pass: whether another attempt can succeed.
        retry_after_s: least wait that the server asks for.
    """

    def __init__(self, reason: str, *, may_pass: bool, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        self.retry_after_s = retry_after_s


def backoff_seconds(attempt: int, uniform: float, config: ClientConfig) -> float:
    """Wait after failed attempt 0, 1, ...: uniform * min(max_backoff_s, backoff_s * 2^attempt).

    ``uniform`` in [0, 1) spreads clients that failed at the same moment over the whole interval.
    """
    return uniform * min(config.max_backoff_s, config.backoff_s * 2.0**attempt)


class RemoteReward:
    """One reward of a server; implements the Reward protocol.

    Making one asks the server for its rewards.

    Args:
        url: address of the server, http:// or https://.
        reward: name of the reward on the server, and the column name here.
        token: shared secret; by default the one in the environment.
        config: time limits, attempts, sizes.

    Raises:
        UserError: a malformed address, a server that does not answer or refuses the token, or one
            that does not have the reward.
    """

    def __init__(
        self,
        url: str,
        reward: str,
        *,
        token: str | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        self.name = reward
        self.config = config or ClientConfig()
        self._endpoint = _Endpoint(url, token or read_token(), self.config)
        self._scorer = self._endpoint.describe(reward)
        self.needs_prompt = self._scorer.needs_prompt
        self.needs_time = self._scorer.needs_time

    def score(self, batch: VideoBatch) -> list[Score]:
        """Scores of the server, in as many requests as the size of the clips asks for.

        Clips are sent in their dtype: as uint8 they take a quarter of the time of float32. When a
        request has used up its attempts, the clips after it are not sent: each of them would wait
        as long again.
        """
        scores: list[Score] = []
        done = 0
        given_up: str | None = None
        for size in self._request_sizes(batch):
            rows = range(done, done + size)
            done += size
            if given_up is not None:
                scores += [Score.unscored(f"not sent after {given_up}")] * size
                continue
            try:
                part = batch if size == batch.num_samples else batch.select(rows)
                scores += self._score_request(part)
            except RemoteFailure as failure:
                reason = f"{self._endpoint.shown}: {failure}"
                scores += [Score.unscored(reason)] * size
                given_up = reason if failure.may_pass else None
        return scores

    def _request_sizes(self, batch: VideoBatch) -> list[int]:
        """Numbers of clips of the requests; at least one clip each."""
        room = max(1, min(self.config.max_request_bytes, self._scorer.limit) - _HEADER_BYTES)
        clip_bytes = batch.video[0].numel() * batch.video.element_size()
        sizes: list[int] = []
        used = room
        for prompt in batch.prompts:
            needed = clip_bytes + len(json.dumps(prompt)) + 8
            if used + needed > room:
                sizes.append(0)
                used = 0
            sizes[-1] += 1
            used += needed
        return sizes

    def _score_request(self, batch: VideoBatch) -> list[Score]:
        body = encode_request(self.name, batch)
        if len(body) > self._scorer.limit:
            raise RemoteFailure(
                f"a clip of {len(body)} bytes is over the server's limit of {self._scorer.limit}; "
                "send uint8 or raise the limit of the server",
                may_pass=False,
            )
        answer = self._endpoint.ask("POST", SCORE_PATH, body)
        try:
            scores, digest = decode_response(answer, batch.num_samples)
        except UserError as error:
            raise RemoteFailure(f"unreadable answer: {error.what}", may_pass=False) from error
        if digest != self._scorer.digest:
            raise RemoteFailure(
                f"the scorer changed during the run (fingerprint {self._scorer.digest[:12]}, now "
                f"{digest[:12]}); scores before and after are not comparable",
                may_pass=False,
            )
        return scores

    def to(self, device: torch.device | str) -> Self:
        """Nothing: the server keeps the model where it is."""
        return self

    def fingerprint(self) -> dict[str, object]:
        """Fingerprint of the server's reward; its address does not move a score."""
        return {"kind": "remote", "name": self.name, "scorer": self._scorer.fingerprint}


@dataclass(frozen=True, kw_only=True)
class _Scorer:
    """A reward of the server: its properties, and the largest request in bytes."""

    needs_prompt: bool
    needs_time: bool
    fingerprint: dict[str, object]
    digest: str
    limit: int


class _Endpoint:
    """Requests to one server, with attempts."""

    def __init__(self, url: str, token: str | None, config: ClientConfig) -> None:
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UserError(
                "the address of the reward server cannot be used",
                received=url.rsplit("@", 1)[-1],
                expected="http://HOST:PORT or https://HOST:PORT",
            )
        if parts.username or parts.password or parts.query:
            raise UserError(
                "the address of the reward server holds more than an address",
                received=f"{parts.scheme}://...@{parts.hostname}",
                expected="http://HOST:PORT without user, password or query",
                remedy="pass the token through the environment",
            )
        self.shown = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._config = config

    def describe(self, reward: str) -> _Scorer:
        """What the server says about one of its rewards."""
        try:
            content = json.loads(self.ask("GET", REWARDS_PATH))
            found = {
                name: _Scorer(
                    needs_prompt=bool(record["needs_prompt"]),
                    needs_time=bool(record["needs_time"]),
                    fingerprint=dict(record["fingerprint"]),
                    digest=str(record["digest"]),
                    limit=int(content["max_request_bytes"]),
                )
                for name, record in content["rewards"].items()
            }
        except RemoteFailure as failure:
            raise UserError(
                "the reward server cannot be used",
                received=f"{self.shown}: {failure}",
                expected="a running `rewards serve`, and its token",
            ) from failure
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                "the address does not answer as a reward server",
                received=self.shown,
                expected="the address of a running `rewards serve`",
            ) from error
        if reward not in found:
            raise UserError(
                "the server does not have the reward",
                received=reward,
                expected=", ".join(sorted(found)),
                remedy="use one of the names above, or start the server with this one",
            )
        return found[reward]

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Body of the answer.

        Raises:
            RemoteFailure: refused, or still failing after the last attempt.
        """
        for attempt in range(self._config.attempts):
            try:
                return self._attempt(method, path, body)
            except RemoteFailure as failure:
                if not failure.may_pass or attempt + 1 == self._config.attempts:
                    raise
                wait = backoff_seconds(attempt, _jitter.random(), self._config)
                wait += min(failure.retry_after_s, _MAX_RETRY_AFTER_S)
                log.warning(
                    "%s: %s; attempt %d of %d follows in %.1f s",
                    self.shown, failure, attempt + 2, self._config.attempts, wait,
                )  # fmt: skip
                time.sleep(wait)
        raise AssertionError("there is at least one attempt")

    def _attempt(self, method: str, path: str, body: bytes | None) -> bytes:
        connection = self._kind(self._host, self._port, timeout=self._config.connect_timeout_s)
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = MEDIA_TYPE
        try:
            connection.connect()
            connection.sock.settimeout(self._config.timeout_s)
            try:
                connection.request(method, self._path + path, body, headers)
            except ConnectionError:
                log.debug("the server answers before it has read the clips")
            return _read(connection.getresponse())
        except TimeoutError as error:
            raise RemoteFailure("no answer in time", may_pass=True) from error
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise RemoteFailure(f"connection failed: {reason}", may_pass=True) from error
        finally:
            connection.close()


def _read(response: HTTPResponse) -> bytes:
    body = response.read(_MAX_RESPONSE_BYTES + 1)
    if response.status == 200:
        if response.length:  # http.client tells a short body only when it reads without a limit
            raise RemoteFailure("the answer was cut off or too long", may_pass=True)
        return body
    try:
        reason = str(json.loads(body)["error"]).split("\n", 1)[0]
    except (ValueError, LookupError, TypeError):
        reason = response.reason
    wait = response.headers.get("Retry-After", "")
    raise RemoteFailure(
        f"status {response.status}: {reason}",
        may_pass=response.status in _RETRY_STATUS,
        retry_after_s=float(wait) if wait.isdecimal() else 0.0,
    )
