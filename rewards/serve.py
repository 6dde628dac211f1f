"""Server of rewards for other processes (``rewards serve``); the wire format is in ``remote.py``.

It speaks plain HTTP; across machines put it behind a TLS proxy or an SSH tunnel. One thread scores,
so that a model is used by one thread only; the number of requests that wait for it is bounded, and
with it the memory of their clips.
"""

import asyncio
import hmac
import ipaddress
import json
import logging
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import NonNegativeInt, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import load
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from longtake.rewards.contract import Reward, Score, VideoBatch, fingerprint_digest
from longtake.rewards.registry import load_rewards, split_sources
from longtake.rewards.remote import (
    HEALTH_PATH,
    MEDIA_TYPE,
    REWARDS_PATH,
    SCORE_PATH,
    TOKEN_VARIABLE,
    read_token,
)
from longtake.rewards.suite import RewardSuite
from longtake.runtime.config import Config
from longtake.runtime.device import pick_device
from longtake.runtime.errors import UserError
from longtake.runtime.files import to_plain

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 64
_DRAIN_S = 5.0  # how long an unread body is thrown away, so that the client sees the answer


class ServerConfig(Config):
    """Address and limits of a reward server."""

    host: str = "127.0.0.1"
    port: NonNegativeInt = 8763
    """0 lets the system choose."""
    queue_size: NonNegativeInt = 8
    """Requests that may wait beside the one that is scored; more get 503 and Retry-After."""
    max_request_bytes: PositiveInt = 512 * 2**20
    """Largest body. 93 frames of 480x832 are 106 MiB as uint8 and 425 MiB as float32."""


class ScoringQueue:
    """The one thread that scores, and the bounded number of requests that wait for it."""

    def __init__(self, rewards: Mapping[str, Reward], size: int, device: torch.device) -> None:
        # A suite of one reward keeps the failure of a clip inside that clip.
        self.suites = {name: RewardSuite({name: (r, 1.0)}) for name, r in rewards.items()}
        self.closing = False
        self._size, self._device = size, device
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._turn = asyncio.Lock()
        self._admitted, self._last_job_s = 0, 1.0

    async def answer(self, request: Request) -> tuple[str, Sequence[Score]]:
        """The reward that the body names, and its scores.

        A request holds a place from before its body is read until it is scored, not until it is
        answered: a client that has its answer and asks again at once must find a place, and one
        that reads slowly must not keep it.
        """
        if self._admitted > self._size:
            wait = {"Retry-After": str(min(60, int(self._last_job_s) + 1))}
            raise HTTPException(503, "too many requests are waiting", wait)
        self._admitted += 1
        try:
            name, batch = await asyncio.to_thread(decode_request, await request.body())
            if name not in self.suites:
                there = ", ".join(sorted(self.suites))
                raise HTTPException(404, f"no reward {name!r} here; there are: {there}")
            async with self._turn:
                if self.closing:
                    raise HTTPException(503, "the server is going down")
                # A client that timed out has asked again elsewhere or will ask again here.
                if await request.is_disconnected():
                    raise HTTPException(499, "the client is gone")
                start = time.monotonic()
                loop = asyncio.get_running_loop()
                scores = await loop.run_in_executor(self.worker, self._score, name, batch)
                self._last_job_s = time.monotonic() - start
                log.info("%s: %d clips in %.2f s", name, len(scores), self._last_job_s)
                return name, scores
        finally:
            self._admitted -= 1

    def _score(self, name: str, batch: VideoBatch) -> Sequence[Score]:
        video = batch.video.to(self._device)
        moved = VideoBatch(video=video, prompts=batch.prompts, fps=batch.fps)
        return self.suites[name].score(moved).rows[name]


def reward_app(
    rewards: Mapping[str, Reward], config: ServerConfig, token: str | None, device: torch.device
) -> FastAPI:
    """The application; ``app.state.queue`` is its :class:`ScoringQueue`."""
    app = FastAPI(openapi_url=None)
    queue = app.state.queue = ScoringQueue(rewards, config.queue_size, device)
    described = {
        name: {
            "needs_prompt": reward.needs_prompt,
            "needs_time": reward.needs_time,
            "fingerprint": (fingerprint := to_plain(reward.fingerprint())),
            "digest": fingerprint_digest(fingerprint),
        }
        for name, reward in rewards.items()
    }

    def check_token(request: Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "replace")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            raise HTTPException(401, f"the token is missing or wrong (see {TOKEN_VARIABLE})")

    @app.get(HEALTH_PATH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(REWARDS_PATH)
    async def describe(request: Request) -> dict[str, Any]:
        check_token(request)
        return {"rewards": described, "max_request_bytes": config.max_request_bytes}

    @app.post(SCORE_PATH)
    async def score(request: Request) -> dict[str, Any]:
        check_token(request)
        # A web page can make a browser post to a loopback address, but not with this type.
        if request.headers.get("Content-Type") != MEDIA_TYPE:
            raise HTTPException(415, f"Content-Type must be {MEDIA_TYPE}")
        length, limit = request.headers.get("Content-Length", ""), config.max_request_bytes
        if not length.isdecimal() or int(length) > limit:
            reason = f"Content-Length is {length or 'missing'}, at most {limit} bytes are accepted"
            raise HTTPException(413 if length.isdecimal() else 411, reason)
        name, scores = await queue.answer(request)
        rows = [[score.value, score.reason, score.note] for score in scores]
        return {"scores": rows, "digest": described[name]["digest"]}

    @app.exception_handler(AnyHTTPException)
    async def refuse(request: Request, error: AnyHTTPException) -> JSONResponse:
        # No query and no headers: either may hold a secret.
        log.info("refused %s %s: %d", request.method, request.url.path, error.status_code)
        # Closing a socket with unread bytes resets the connection, and the client would see the
        # reset and not the reason.
        try:
            async with asyncio.timeout(_DRAIN_S):
                async for _ in request.stream():
                    pass
        except (TimeoutError, ClientDisconnect, RuntimeError):
            log.debug("the body was read before, or does not end")
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> JSONResponse:
        # uvicorn logs the rest, which a client need not see.
        return JSONResponse({"error": f"scoring failed with {type(error).__name__}"}, 500)

    return app


def decode_request(body: bytes) -> tuple[str, VideoBatch]:
    """The reward's name and the clips of :func:`longtake.rewards.remote.encode_request`."""
    try:
        tensors = load(body)
        # `load` drops the metadata; it has checked the length and the JSON of the header.
        (length,) = struct.unpack_from("<Q", body)
        metadata = json.loads(body[8 : 8 + length]).get("__metadata__", {})
        prompts = json.loads(metadata["prompts"])
        batch = VideoBatch(video=tensors["video"], prompts=prompts, fps=tensors["fps"])
        return metadata["reward"], batch
    except (SafetensorError, KeyError, ValueError) as error:  # UserErrors are ValueErrors
        reason = (
            f"the body cannot be used: {error}; expected are complete safetensors with the tensors "
            "video and fps, and as metadata reward and prompts (a JSON list)"
        )
        raise HTTPException(400, reason) from error


@contextmanager
def serving(
    rewards: Mapping[str, Reward],
    config: ServerConfig | None = None,
    *,
    token: str | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[str]:
    """Serve rewards, which are on ``device``, while the block runs; yields the address.

    At its end nothing more is accepted, the running request is answered, waiting ones are refused.
    """
    config = config or ServerConfig()
    listener = _listen(config, has_token=token is not None)
    app = reward_app(rewards, config, token, torch.device(device))
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            lifespan="off",
            log_config=None,
            access_log=False,
            limit_concurrency=_MAX_CONNECTIONS,
            server_header=False,
        )
    )
    thread = threading.Thread(target=server.run, args=([listener],), name="listener")
    thread.start()
    host, port = (str(part) for part in listener.getsockname()[:2])
    try:
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        app.state.queue.closing = server.should_exit = True
        thread.join()
        app.state.queue.worker.shutdown()
        listener.close()


def _listen(config: ServerConfig, *, has_token: bool) -> socket.socket:
    """Bind the address; connections wait until the server runs."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            config.host or "0.0.0.0", config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Whoever reaches the port could run the GPU and read the captions of others.
        if not has_token and not ipaddress.ip_address(str(address[0]).split("%")[0]).is_loopback:
            raise OSError("refusing to serve other machines without a token")
        return socket.create_server(address[:2], family=family, backlog=_MAX_CONNECTIONS)
    except OSError as error:
        raise UserError(
            f"cannot listen: {error.strerror or error}",
            received=f"{config.host}:{config.port}",
            expected="a free port, and an address of this machine: loopback, or with a token",
            remedy=f"choose another --port (0 for any free one); set {TOKEN_VARIABLE}",
        ) from error


def serve(
    reward_names: Sequence[str],
    config: ServerConfig | None = None,
    *,
    token_file: Path | None = None,
    device: str = "auto",
) -> None:
    """Serve rewards ``NAME`` or ``NAME=SOURCE`` until Ctrl-C or SIGTERM (``rewards serve``).

    The running request is finished first; a second signal ends the process at once.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    token = read_token(token_file)
    target = pick_device(device)
    rewards = load_rewards(*split_sources(reward_names), device=str(target))
    stop = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.set()
        for other in previous:
            signal.signal(other, signal.SIG_DFL)

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request_stop) for number in signals}
    try:
        with serving(rewards, config, token=token, device=target) as url:
            guard = "with a token" if token else "without a token"
            log.info("serving %s on %s %s", ", ".join(rewards), url, guard)
            stop.wait()
            log.info("stopping; the running request is finished first")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
