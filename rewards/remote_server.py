"""Server of remote rewards (``rewards serve``): what is served, to whom, and for how long.

It speaks plain HTTP; across machines put it behind a TLS proxy or an SSH tunnel.
"""

import hmac
import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import torch

from longtake.rewards.contract import Reward, Score, VideoBatch
from longtake.rewards.registry import load_rewards, split_sources
from longtake.rewards.remote_http import listen
from longtake.rewards.remote_protocol import fingerprint_digest, read_token
from longtake.rewards.remote_queue import ScoringQueue
from longtake.rewards.suite import RewardSuite
from longtake.runtime.device import pick_device
from longtake.runtime.errors import ConfigError
from longtake.runtime.files import to_plain

log = logging.getLogger(__name__)

_POLL_S = 0.1  # how long closing may go unnoticed
_CLOSING_S = 5.0  # how long the last answers may take to be sent


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits of a reward server."""

    host: str = "127.0.0.1"
    """Address to listen on. Anything but a loopback address needs a token."""
    port: int = 8763
    """TCP port; 0 lets the system choose."""
    queue_size: int = 8
    """Requests that may wait beside the one that is scored; more get 503 and Retry-After."""
    max_request_bytes: int = 512 * 2**20
    """Largest body. 93 frames of 480x832 are 106 MiB as uint8 and 425 MiB as float32."""
    max_connections: int = 64
    """Open connections; more are closed at once."""
    idle_timeout_s: float = 30.0
    """A connection on which no byte arrives for so long is closed."""

    def __post_init__(self) -> None:
        for key, least in (("queue_size", 0), ("max_request_bytes", 1), ("max_connections", 1)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"{key} cannot be used", received=getattr(self, key), expected=f">= {least}"
                )


class RewardServer:
    """Serves named rewards until :meth:`close`; a context manager that starts and closes.

    Args:
        rewards: name -> reward, on their device.
        config: address and limits.
        token: shared secret that requests must carry; None asks for none.
        device: where the clips go before they are scored.

    Raises:
        UserError: an address that is not loopback without a token, or that cannot be bound.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        config: ServerConfig | None = None,
        *,
        token: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config or ServerConfig()
        # A suite of one reward keeps the failure of a clip inside that clip.
        self.suites = {name: RewardSuite({name: (reward, 1.0)}) for name, reward in rewards.items()}
        fingerprints = {name: to_plain(reward.fingerprint()) for name, reward in rewards.items()}
        self.digests = {name: fingerprint_digest(fp) for name, fp in fingerprints.items()}
        self.description = {
            "rewards": {
                name: {
                    "needs_prompt": reward.needs_prompt,
                    "needs_time": reward.needs_time,
                    "fingerprint": fingerprints[name],
                    "digest": self.digests[name],
                }
                for name, reward in rewards.items()
            },
            "max_request_bytes": self.config.max_request_bytes,
        }
        self.queue = ScoringQueue(self.config.queue_size)
        self.device = torch.device(device)
        self._token = token
        self._listener = listen(self, has_token=token is not None)
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(_POLL_S,), name="listener"
        )

    @property
    def url(self) -> str:
        """Address of the server, with the port that was bound."""
        host, port = (str(part) for part in self._listener.server_address[:2])
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def is_allowed(self, authorization: str | None) -> bool:
        """Whether the Authorization header carries the token (in constant time)."""
        if self._token is None:
            return True
        given = (authorization or "").encode("utf-8", "replace")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())

    def score(self, name: str, batch: VideoBatch) -> list[Score]:
        """Score on the calling thread; a reward that raises leaves its samples unscored."""
        video = batch.video.to(self.device)
        moved = VideoBatch(video=video, prompts=batch.prompts, fps=batch.fps)
        return list(self.suites[name].score(moved).rows[name])

    def start(self) -> None:
        """Accept requests on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Stop accepting, answer the running request, refuse the waiting ones, free the port."""
        if self._thread.is_alive():
            self._listener.shutdown()
            self._thread.join()
        self.queue.close()
        self._listener.wait_until_idle(_CLOSING_S)
        self._listener.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def serve(
    reward_names: Sequence[str],
    config: ServerConfig | None = None,
    *,
    token_file: Path | None = None,
    device: str = "auto",
) -> None:
    """Serve registered rewards until Ctrl-C or SIGTERM (``rewards serve``).

    The running request is finished first; a second signal ends the process at once.

    Args:
        reward_names: ``NAME`` or ``NAME=SOURCE`` (:mod:`longtake.rewards.registry`).
        config: address and limits.
        token_file: file with the token; without it the environment is asked.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: unknown reward, unusable token or address.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    token = read_token(token_file)
    target = pick_device(device)
    plain, sources = split_sources(reward_names)
    rewards = load_rewards(plain, sources, device=str(target))
    server = RewardServer(rewards, config, token=token, device=target)
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        for other in previous:
            signal.signal(other, signal.SIG_DFL)

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request_stop) for number in signals}
    try:
        with server:
            guard = "with a token" if token else "without a token"
            log.info("serving %s on %s %s", ", ".join(rewards), server.url, guard)
            stop.wait()
            log.info("stopping; the running request is finished first")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
