"""Remote rewards end to end, over real sockets on the loopback interface, with real rewards."""

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
import torch

from longtake.rewards import remote_client
from longtake.rewards.contract import Reward, VideoBatch
from longtake.rewards.registry import load_rewards, load_suite
from longtake.rewards.remote_client import ClientConfig, RemoteReward, backoff_seconds
from longtake.rewards.remote_protocol import MEDIA_TYPE, TOKEN_VARIABLE, encode_request
from longtake.rewards.remote_server import RewardServer, ServerConfig
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import ConfigError, UserError
from longtake.sandbox.analytic_rewards import General as general
from longtake.sandbox.analytic_rewards import TextAlignment as text_alignment

NAMES = ("general", "percentile", "motion_quality", "text_alignment")
TOKEN = "correct-horse-battery-staple"
PROMPTS = [
    "a red circle moves left",
    "a blue square moves up",
    "a cyan cross moves down",
    "a green triangle moves left",
    "a white circle moves right",
]
GUARD_S = 300  # ends a test that hangs; no test waits for it
QUICK = ClientConfig(timeout_s=GUARD_S, connect_timeout_s=GUARD_S, attempts=3, backoff_s=0.001)


class Observed:
    """An analytic reward that counts its batches, may wait at a gate and may fail on a caption."""

    needs_prompt = True
    needs_time = True

    def __init__(self, inner=None, fail=None):
        self.inner = inner or text_alignment()
        self.name = self.inner.name
        self.fail = fail or {}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.sizes = []
        self.threads = set()

    def score(self, batch):
        self.sizes.append(batch.num_samples)
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(GUARD_S)
        for prompt in batch.prompts:
            if prompt in self.fail:
                raise self.fail[prompt]
        return self.inner.score(batch)

    def to(self, device):
        return self

    def fingerprint(self):
        return self.inner.fingerprint()


def batch(num=5, seed=0, dtype=torch.float32):
    video = torch.rand(num, 6, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    video = (video * 255).to(torch.uint8) if dtype == torch.uint8 else video
    return VideoBatch(video=video, prompts=PROMPTS[:num], fps=torch.arange(1, num + 1) * 4.0)


@contextmanager
def serving(*rewards, token=None, port=0, **config):
    table = {reward.name: reward for reward in rewards or (Observed(),)}
    with RewardServer(table, ServerConfig(port=port, **config), token=token) as server:
        try:
            yield server
        finally:
            for reward in table.values():
                if isinstance(reward, Observed):
                    reward.gate.set()


def valid(scores):
    return [score.value is not None for score in scores]


def reasons_of(scores):
    return [score.reason for score in scores]


def remote(server, name="text_alignment", token=None, **config):
    return RemoteReward(server.url, name, token=token, config=replace(QUICK, **config))


def ask(server, method, path, body=None, **headers):
    """One raw request: (status, headers, content)."""
    parts = urlsplit(server.url)
    connection = HTTPConnection(parts.hostname, parts.port, timeout=GUARD_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def post(server, body, **headers):
    return ask(server, "POST", "/v1/score", body, **{"Content-Type": MEDIA_TYPE, **headers})


def reason(content):
    return json.loads(content)["error"]


def in_background(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def assert_unscored(output, num, words):
    assert valid(output) == [False] * num
    for text in reasons_of(output):
        assert words in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_remote_scores_are_local_scores_bitwise(dtype):
    clips = batch(dtype=dtype)
    with serving(*load_rewards(NAMES).values()) as server:
        table = {name: (remote(server, name), 1.0) for name in NAMES}
        assert all(isinstance(reward, Reward) for reward, _ in table.values())
        far = RewardSuite(table).score(clips)
    near = load_suite(dict.fromkeys(NAMES, 1.0)).score(clips)
    assert torch.equal(far.scores, near.scores) and near.scores.isfinite().all()
    assert far.rows == near.rows


def test_properties_and_fingerprint_are_the_servers():
    local = load_rewards(["general"])["general"]
    with serving(local) as server:
        reward = remote(server, "general")
        assert (reward.needs_prompt, reward.needs_time) == (local.needs_prompt, local.needs_time)
        assert reward.fingerprint()["scorer"] == json.loads(json.dumps(local.fingerprint()))
        assert reward.to("cpu") is reward


def test_batches_are_split_by_size():
    reward = Observed()
    clips = batch()
    clip_bytes = clips.video[0].numel() * 4
    with serving(reward) as server:
        whole = remote(server).score(clips)
        assert reward.sizes == [5]
        split = remote(server, max_request_bytes=2 * clip_bytes + (1 << 16) + 200).score(clips)
        assert reward.sizes == [5, 2, 2, 1]
        remote(server, max_request_bytes=1).score(clips)
        assert reward.sizes[4:] == [1] * 5
    assert whole == split
    assert len(reward.threads) == 1  # the model is used by one thread


def test_a_clip_over_the_servers_limit_is_unscored_and_the_rest_goes_on():
    with serving(max_request_bytes=15_000) as server:
        reward = remote(server)
        assert_unscored(reward.score(batch(2)), 2, "over the server's limit of 15000")
        assert all(valid(reward.score(batch(2, dtype=torch.uint8))))


def test_a_failing_clip_costs_only_itself():
    with serving(Observed(fail={PROMPTS[3]: ValueError("no such star")})) as server:
        output = remote(server).score(batch())
    assert valid(output) == [True, True, True, False, True]
    assert reasons_of(output)[3] == "ValueError: no such star"


def test_nan_clips_are_unscored():
    clips = batch()
    clips.video[1, 0, 0, 0, 0] = math.nan
    with serving() as server:
        output = remote(server).score(clips)
    assert valid(output) == [True, False, True, True, True]
    assert "not finite" in reasons_of(output)[1]


def test_an_unforeseen_error_is_a_500_and_the_server_lives_on(caplog):
    reward = Observed(fail={PROMPTS[4]: AttributeError("secret detail")})
    with serving(reward) as server:
        assert_unscored(
            remote(server).score(batch()), 5, "status 500: reward text_alignment failed"
        )
        assert reward.sizes == [5]  # not tried again
        assert all(valid(remote(server).score(batch(4))))
    assert "secret detail" in caplog.text  # the server's log has it, the client does not


def test_wrong_token(caplog):
    caplog.set_level(logging.DEBUG)
    clips = batch()
    with serving(token=TOKEN) as server:
        for token in (None, "x" * 20, TOKEN[:-1], TOKEN + "x"):
            with pytest.raises(UserError, match="status 401") as caught:
                remote(server, token=token)
            assert TOKEN not in str(caught.value)
        reward = remote(server, token=TOKEN)
        assert all(valid(reward.score(clips)))
        reward._endpoint._headers["Authorization"] = "Bearer " + "y" * 20
        assert_unscored(reward.score(clips), 5, "status 401")
        body = encode_request("text_alignment", clips)
        for header in ("", TOKEN, "bearer x", "Basic abc", "Bearer é"):
            assert post(server, body, Authorization=header)[0] == 401
        assert ask(server, "GET", "/v1/rewards")[0] == 401
        assert ask(server, "GET", "/v1/health")[0] == 200
        ask(server, "GET", f"/v1/rewards?token={TOKEN}")
    lines = [record.getMessage() for record in caplog.records if "remote_http" in record.name]
    assert any("401" in line for line in lines)
    assert not any(TOKEN in line for line in lines)


def test_the_token_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with serving(token=TOKEN) as server:
        assert all(valid(remote(server).score(batch(1))))


def test_other_addresses_need_a_token():
    for host in ("0.0.0.0", "", "::"):
        with pytest.raises(UserError, match="without a token"):
            RewardServer({"general": general()}, ServerConfig(host=host, port=0))
    with serving(token=TOKEN, host="0.0.0.0") as server:
        port = urlsplit(server.url).port
        there = RemoteReward(f"http://127.0.0.1:{port}", "text_alignment", token=TOKEN)
        assert all(valid(there.score(batch(1))))
    with serving(host="localhost") as server:
        assert all(valid(remote(server).score(batch(1))))


def test_unusable_addresses_are_refused():
    with pytest.raises(UserError, match="cannot be resolved"):
        RewardServer({"general": general()}, ServerConfig(host="no such host", port=0))
    with serving() as server:
        port = urlsplit(server.url).port
        with pytest.raises(UserError, match="cannot listen"):
            RewardServer({"general": general()}, ServerConfig(port=port))
    for url in ("localhost:8000", "ftp://localhost", "http://", "http://localhost:99999"):
        with pytest.raises(UserError, match="address of the reward server"):
            RemoteReward(url, "general", config=QUICK)
    with pytest.raises(UserError, match="more than an address") as caught:
        RemoteReward("http://user:hunter2@localhost:1", "general", config=QUICK)
    assert "hunter2" not in str(caught.value)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="queue_size"):
        ServerConfig(queue_size=-1)
    with pytest.raises(ConfigError, match="attempts"):
        ClientConfig(attempts=0)


def test_unknown_rewards_are_refused():
    with serving() as server:
        with pytest.raises(UserError, match="text_alignment"):
            remote(server, "hps")
        status, _, content = post(server, encode_request("hps", batch()))
    assert status == 404 and "'hps'" in reason(content) and "text_alignment" in reason(content)


def test_oversize_bodies_are_refused_unread():
    with serving(max_request_bytes=50_000) as server:
        status, _, content = post(server, b"x" * 20_000_000)
        assert status == 413 and "50000" in reason(content)
        assert ask(server, "GET", "/v1/health")[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 404),
        ("POST", "/v1/other", {"Content-Type": MEDIA_TYPE}, 404),
        ("POST", "/v1/score", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/score", {"Content-Type": MEDIA_TYPE, "Content-Length": "-1"}, 411),
        ("DELETE", "/v1/score", {}, 501),
    ],
)
def test_other_requests_are_refused(method, path, headers, status):
    with serving() as server:
        assert ask(server, method, path, b"abc", **headers)[0] == status


def raw(server, data, half_close=True):
    """Send bytes and return everything that comes back."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=GUARD_S) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_truncated_and_malformed_payloads():
    body = encode_request("text_alignment", batch())
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_TYPE}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with serving() as server:
        answer = raw(server, head + body[:1000])
        assert b" 400 " in answer and f"ends after 1000 of {len(body)}".encode() in answer
        assert b" 400 " in raw(server, b"nonsense\r\n\r\n")
        for broken in (body[:-1], b"\x80\x04pickle", b""):
            status, _, content = post(server, broken)
            assert status == 400 and "not safetensors" in reason(content)
        assert all(valid(remote(server).score(batch())))


def test_a_silent_connection_is_closed():
    with serving(idle_timeout_s=0.2) as server:
        assert raw(server, b"POST /v1/score HTTP/1.1\r\nContent-Le", half_close=False) == b""
        head = f"POST /v1/score HTTP/1.1\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: 9\r\n\r\n"
        assert raw(server, head.encode() + b"abc", half_close=False) == b""


def test_connections_are_bounded():
    with serving(max_connections=2) as server:
        parts = urlsplit(server.url)
        idle = [socket.create_connection((parts.hostname, parts.port)) for _ in range(2)]
        with pytest.raises(UserError, match="connection failed"):
            remote(server, attempts=1)
        for connection in idle:
            connection.close()
        assert all(valid(remote(server, attempts=20, backoff_s=0.1).score(batch(1))))


def test_a_slow_server_times_out_and_the_late_requests_are_not_scored():
    reward = Observed()
    with serving(reward) as server:
        patient, hasty = remote(server), remote(server)
        hasty.config = hasty._endpoint._config = replace(QUICK, timeout_s=0.3, attempts=2)
        reward.gate.clear()
        thread, results = in_background(lambda: patient.score(batch(4)))
        assert reward.entered.wait(GUARD_S)
        assert_unscored(hasty.score(batch(2)), 2, "no answer in time")
        hasty.config = replace(hasty.config, max_request_bytes=1)
        reasons = reasons_of(hasty.score(batch(3)))
        assert "no answer in time" in reasons[0]
        assert all(text.startswith("not sent after") for text in reasons[1:])
        reward.gate.set()
        thread.join(GUARD_S)
        assert all(valid(patient.score(batch(1))))  # behind what the hasty one left
    assert all(valid(results[0])) and reward.sizes == [4, 1]


def test_a_full_queue_answers_503_and_a_retry_succeeds(monkeypatch):
    reward = Observed()
    with serving(reward, queue_size=0) as server:
        first, second = remote(server), remote(server)
        reward.gate.clear()
        thread, results = in_background(lambda: first.score(batch()))
        assert reward.entered.wait(GUARD_S)
        status, headers, content = post(server, encode_request("text_alignment", batch()))
        assert status == 503 and int(headers["Retry-After"]) >= 1
        assert "too many requests" in reason(content)
        waits = []

        def first_one_finishes(seconds):
            waits.append(seconds)
            reward.gate.set()
            thread.join(GUARD_S)

        monkeypatch.setattr(remote_client.time, "sleep", first_one_finishes)
        output = second.score(batch())
        assert all(valid(output)) and output == results[0]
        assert waits and waits[0] >= 1  # Retry-After is honoured


def test_waiting_requests_are_scored_in_turn():
    reward = Observed()
    with serving(reward, queue_size=2) as server:
        clients = [remote(server) for _ in range(3)]
        reward.gate.clear()
        results = {}
        threads = [
            threading.Thread(target=lambda i=i: results.update({i: clients[i].score(batch(i + 1))}))
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        reward.gate.set()
        for thread in threads:
            thread.join(GUARD_S)
    assert sorted(reward.sizes) == [1, 2, 3] and len(reward.threads) == 1
    assert all(valid(results[i]) == [True] * (i + 1) for i in range(3))


def test_a_server_that_is_gone_and_comes_back(monkeypatch):
    with serving() as server:
        reward = remote(server)
        port = urlsplit(server.url).port
        expected = reward.score(batch())
    assert_unscored(reward.score(batch()), 5, "connection failed")
    with pytest.raises(UserError, match="connection failed"):
        remote(server)
    revived = []

    def restart(seconds):
        if not revived:
            revived.append(RewardServer({"text_alignment": Observed()}, ServerConfig(port=port)))
            revived[0].start()

    monkeypatch.setattr(remote_client.time, "sleep", restart)
    try:
        assert reward.score(batch()) == expected
    finally:
        revived[0].close()


def test_a_scorer_that_changes_during_the_run_is_refused():
    with serving() as server:
        reward = remote(server)
        port = urlsplit(server.url).port
        assert all(valid(reward.score(batch())))
    with serving(Observed(text_alignment(noise_seed=1)), port=port):
        assert_unscored(reward.score(batch()), 5, "scorer changed during the run")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "cut off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "unreadable answer"),
        (b"HTTP/1.1 200 OK\r\n", "unreadable answer"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "status 502: Bad Gateway"),
        (b"nonsense", "connection failed"),
        (b"", "connection failed"),
    ],
    ids=["cut", "garbage", "no_body", "gateway", "no_http", "closed"],
)
def test_broken_answers_are_unscored(monkeypatch, answer, words):
    with serving() as server:
        reward = remote(server)
    # The stand-in reads no HTTP, so a mark tells it where the request ends.
    monkeypatch.setattr(
        remote_client, "encode_request", lambda *parts: encode_request(*parts) + b"end"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply():
            with suppress(OSError):  # closed below when fewer attempts are made
                for _ in range(reward.config.attempts):
                    connection, _ = listener.accept()
                    with connection:
                        while not connection.recv(1 << 20).endswith(b"end"):
                            pass
                        connection.sendall(answer)

        threading.Thread(target=reply, daemon=True).start()
        reward._endpoint._port = listener.getsockname()[1]
        assert_unscored(reward.score(batch(2)), 2, words)


def test_backoff_doubles_within_bounds():
    config = ClientConfig(backoff_s=0.5, max_backoff_s=3.0)
    assert [backoff_seconds(i, 1.0, config) for i in range(5)] == [0.5, 1, 2, 3, 3]
    assert backoff_seconds(2, 0.25, config) == 0.5 and backoff_seconds(9, 0.0, config) == 0


SCRIPT = """
import os, sys, time
from pathlib import Path
from longtake.sandbox.analytic_rewards import General as general
from longtake.rewards import remote_server
from longtake.rewards.remote_server import ServerConfig, serve

folder = Path(sys.argv[1])
reward = general()
score = reward.score
def slow(batch):
    (folder / "entered").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return score(batch)
reward.score = slow
remote_server.load_rewards = lambda *a, **k: {"general": reward}
serve(["general"], ServerConfig(port=0), device="cpu")
"""


@contextmanager
def server_process(folder):
    """(process, address) of a server in a process of its own, whose reward waits for a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", TOKEN_VARIABLE: TOKEN},
    )
    try:
        line = process.stderr.readline()
        assert "serving general on http://127.0.0.1:" in line, line + process.stderr.read()
        yield process, next(word for word in line.split() if word.startswith("http"))
    finally:
        process.kill()
        process.wait(20)
        process.stderr.close()


def wait_for(path, process):
    pause = threading.Event()
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None
        pause.wait(0.01)
    raise AssertionError(f"{path} did not appear")


def test_a_server_killed_in_the_middle_of_a_request(tmp_path):
    with server_process(tmp_path) as (process, url):
        reward = RemoteReward(url, "general", token=TOKEN, config=QUICK)
        thread, results = in_background(lambda: reward.score(batch()))
        wait_for(tmp_path / "entered", process)
        process.send_signal(signal.SIGKILL)
        thread.join(GUARD_S)
    assert_unscored(results[0], 5, "connection failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_request_finish(tmp_path, number):
    with server_process(tmp_path) as (process, url):
        reward = RemoteReward(url, "general", token=TOKEN, config=QUICK)
        thread, results = in_background(lambda: reward.score(batch()))
        wait_for(tmp_path / "entered", process)
        process.send_signal(number)
        log = ""
        while "stopping" not in log:
            log += process.stderr.readline()
        (tmp_path / "go").touch()
        thread.join(GUARD_S)
        assert process.wait(GUARD_S) == 0
        log += process.stderr.read()
    assert all(valid(results[0]))
    assert results[0] == load_rewards(["general"])["general"].score(batch())
    assert TOKEN not in log and "POST /v1/score' 200" in log and "Traceback" not in log


def test_a_second_signal_ends_the_server_at_once(tmp_path):
    with server_process(tmp_path) as (process, url):
        reward = RemoteReward(url, "general", token=TOKEN, config=QUICK)
        thread, results = in_background(lambda: reward.score(batch()))
        wait_for(tmp_path / "entered", process)
        process.send_signal(signal.SIGTERM)
        while "stopping" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(GUARD_S) == -signal.SIGTERM
        thread.join(GUARD_S)
    assert_unscored(results[0], 5, "connection failed")
