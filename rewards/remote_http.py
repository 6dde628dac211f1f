"""HTTP side of the reward server: connections, limits, tokens and answers.

It is built on the standard library: a request is tens of megabytes and seconds of scoring, so a
thread per connection is enough, and a web framework would add nothing but a dependency.
"""

import ipaddress
import json
import logging
import select
import socket
import socketserver
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from longtake.rewards.contract import Score
from longtake.rewards.remote_protocol import (
    HEALTH_PATH,
    MEDIA_TYPE,
    REWARDS_PATH,
    SCORE_PATH,
    TOKEN_VARIABLE,
    decode_request,
    encode_response,
)
from longtake.rewards.remote_queue import QueueClosed, QueueFull
from longtake.runtime.errors import UserError

if TYPE_CHECKING:
    from longtake.rewards.remote_server import RewardServer

log = logging.getLogger(__name__)

_LINGER_S = 5.0  # how long an unread body is thrown away, so that the client sees the answer
_CHUNK = 1 << 16


class Listener(ThreadingHTTPServer):
    """A thread for each of a bounded number of connections."""

    request_queue_size = 64
    allow_reuse_port = False  # a second server on the port would take a share of the requests

    def __init__(
        self, app: "RewardServer", family: socket.AddressFamily, address: tuple[str, int]
    ) -> None:
        self.app = app
        self.address_family = family
        self._places = threading.BoundedSemaphore(app.config.max_connections)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without looking up the name of the address, which may wait for a name server."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread, or close it when there are too many."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection on its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def wait_until_idle(self, timeout_s: float) -> None:
        """Wait until every connection is closed, but not longer than ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        for _ in range(self.app.config.max_connections):
            if not self._places.acquire(timeout=max(0.0, deadline - time.monotonic())):
                log.warning("closing with open connections")
                return

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection early, a client that went away in most cases."""
        log.warning("a connection broke off", exc_info=True)


class _Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    """One connection, one request."""

    server: Listener
    protocol_version = "HTTP/1.1"
    server_version = "longtake"
    sys_version = ""
    _has_unread_body = False

    @property
    def app(self) -> "RewardServer":
        return self.server.app

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.app.config.idle_timeout_s)

    def do_GET(self) -> None:
        if self.path == HEALTH_PATH:
            self._answer_json(HTTPStatus.OK, {"status": "ok"})
        elif not self.app.is_allowed(self.headers["Authorization"]):
            self._refuse_token()
        elif self.path == REWARDS_PATH:
            self._answer_json(HTTPStatus.OK, self.app.description)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"nothing here; see {REWARDS_PATH}")

    def do_POST(self) -> None:
        self._has_unread_body = True
        if not self.app.is_allowed(self.headers["Authorization"]):
            self._refuse_token()
        elif self.path != SCORE_PATH:
            self._refuse(HTTPStatus.NOT_FOUND, f"nothing here; clips go to {SCORE_PATH}")
        # A web page can make a browser post to a loopback address, but not with this type.
        elif self.headers["Content-Type"] != MEDIA_TYPE:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Content-Type must be {MEDIA_TYPE}")
        elif not (length := self.headers["Content-Length"] or "").isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "Content-Length must be a number of bytes")
        elif int(length) > (limit := self.app.config.max_request_bytes):
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {length} bytes, at most {limit} are accepted; send fewer clips",
            )
        else:
            self._score(int(length))

    def _score(self, length: int) -> None:
        """Score the body and answer, with the place in the queue given back before the answer.

        A client that has its answer and asks again at once must find the place free, and one that
        reads slowly must not keep it.
        """
        try:
            with self.app.queue.place():
                output, digest = self._scored(length)
        except QueueFull as error:
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE, str(error), retry_after_s=error.retry_after_s
            )
        except _Refused as error:
            self._refuse(error.status, str(error))
        else:
            if output is not None:
                self._answer(HTTPStatus.OK, MEDIA_TYPE, encode_response(output, digest))

    def _scored(self, length: int) -> tuple[list[Score] | None, str]:
        """Scores of the clips in the body, None for a client that is gone, and the digest."""
        body = self.rfile.read(length)
        self._has_unread_body = False
        if len(body) < length:
            raise _Refused(
                HTTPStatus.BAD_REQUEST, f"the body ends after {len(body)} of {length} bytes"
            )
        try:
            name, batch = decode_request(body)
        except UserError as error:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from error
        del body
        if name not in self.app.suites:
            known = ", ".join(sorted(self.app.suites))
            raise _Refused(HTTPStatus.NOT_FOUND, f"no reward {name!r} here; there are: {known}")

        def job() -> list[Score] | None:
            # A client that timed out has asked again elsewhere or will ask again here.
            return None if self._is_abandoned() else self.app.score(name, batch)

        try:
            future = self.app.queue.submit(job)
            failure = future.exception()
        except (QueueClosed, CancelledError) as error:
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is going down") from error
        if failure is not None:
            log.error("reward %s failed", name, exc_info=failure)
            reason = f"reward {name} failed with {type(failure).__name__}"
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
        return future.result(), self.app.digests[name]

    def _is_abandoned(self) -> bool:
        """Whether the client has closed the connection; called while this thread waits."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def _refuse_token(self) -> None:
        self._refuse(
            HTTPStatus.UNAUTHORIZED, f"the token is missing or wrong (see {TOKEN_VARIABLE})"
        )

    def _refuse(self, status: HTTPStatus, reason: str, retry_after_s: int | None = None) -> None:
        """Answer with the reason and throw away what the client may still be sending.

        Closing a socket with unread bytes resets the connection, and the client would see the reset
        and not the reason.
        """
        self._answer_json(status, {"error": reason}, retry_after_s)
        if not self._has_unread_body:
            return
        deadline = time.monotonic() + _LINGER_S
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_LINGER_S)
            while self.rfile.read1(_CHUNK) and time.monotonic() < deadline:
                pass

    def _answer_json(
        self, status: HTTPStatus, content: object, retry_after_s: int | None = None
    ) -> None:
        self._answer(status, "application/json", json.dumps(content).encode(), retry_after_s)

    def _answer(
        self, status: HTTPStatus, media_type: str, body: bytes, retry_after_s: int | None = None
    ) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if retry_after_s is not None:
            self.send_header("Retry-After", str(retry_after_s))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        # No headers and no query: either may hold a secret. Quoted, so that it stays one line.
        status = code.value if isinstance(code, HTTPStatus) else code
        asked = f"{self.command} {getattr(self, 'path', '-')}".split("?", 1)[0]
        log.info("%s %.100r %s", self.client_address[0], asked, status)

    def log_message(self, format: str, *args: object) -> None:
        # The base class would put the request line here, with its query.
        log.info("%s sent a request that is malformed or too slow", self.client_address[0])


def listen(app: "RewardServer", *, has_token: bool) -> Listener:
    """Bind the address of ``app.config``; nothing is accepted before ``serve_forever``.

    Raises:
        UserError: an address that other machines can reach without a token, or one that does not
            resolve or cannot be bound.
    """
    config = app.config
    try:
        found = socket.getaddrinfo(
            config.host or "0.0.0.0", config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise UserError(
            f"the address cannot be resolved: {error}",
            received=config.host,
            expected="a host name or an IP address of this machine",
        ) from error
    family, _, _, _, address = found[0]
    if not has_token and not _is_loopback(str(address[0])):
        raise UserError(
            "refusing to serve other machines without a token",
            received=config.host or "every address",
            expected="a loopback address, or a token",
            remedy=f"set {TOKEN_VARIABLE} or pass --token-file",
        )
    try:
        return Listener(app, family, (str(address[0]), int(address[1])))
    except OSError as error:
        raise UserError(
            f"cannot listen: {error.strerror or error}",
            received=f"{config.host}:{config.port}",
            expected="a free port of this machine",
            remedy="choose another --port, or --port 0 for any free one",
        ) from error


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%", 1)[0]).is_loopback
