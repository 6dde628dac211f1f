"""Remote rewards end to end, over real sockets on the loopback interface, with real rewards."""

import json
import logging
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest
import tenacity
import torch
from safetensors.torch import save

from longtake.rewards import remote as remote_client
from longtake.rewards.contract import Reward, VideoBatch
from longtake.rewards.registry import load_rewards, load_suite
from longtake.rewards.remote import (
    MEDIA_TYPE,
    TOKEN_VARIABLE,
    ClientConfig,
    RemoteReward,
    encode_request,
    read_token,
)
from longtake.rewards.serve import ServerConfig, decode_request, serving
from longtake.rewards.suite import RewardSuite
from longtake.runtime.errors import ConfigError, UserError

NAMES = ("general", "percentile", "motion_quality", "text_alignment")
TOKEN = "correct-horse-battery-staple"
PROMPTS = ["a red circle moves left", "two blue squares", "", 'ünïcode "✓"\n', "x"]
GUARD_S = 300.0  # ends a test that hangs; no test waits for it
QUICK = ClientConfig(timeout_s=GUARD_S, connect_timeout_s=GUARD_S, attempts=3, backoff_s=0.001)


class Observed:
    """An analytic reward that counts its batches, may wait at a gate and may fail on a caption."""

    needs_prompt = True
    needs_time = True

    def __init__(self, inner="text_alignment", fail=None):
        self.inner = load_rewards([inner])[inner]
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
    video = (video * 255).to(torch.uint8) if dtype == torch.uint8 else video.to(dtype)
    return VideoBatch(video=video, prompts=PROMPTS[:num], fps=torch.arange(1, num + 1) * 4.0)


@contextmanager
def served(reward=None, token=None, port=0, **config):
    """The address of a server of one reward, which is called text_alignment."""
    reward = reward or Observed()
    with serving({"text_alignment": reward}, ServerConfig(port=port, **config), token=token) as url:
        try:
            yield url
        finally:
            reward.gate.set()


def remote(url, name="text_alignment", token=None, **config):
    return RemoteReward(url, name, token=token, config=QUICK.replace(**config))


def post(url, body, path="/v1/score", **headers):
    headers = {"Content-Type": MEDIA_TYPE, **headers}
    return httpx.post(url + path, content=body, headers=headers, timeout=GUARD_S)


def in_background(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def assert_unscored(scores, num, words):
    assert len(scores) == num
    for score in scores:
        assert score.value is None and words in score.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_remote_scores_are_local_scores(dtype):
    clips = batch(dtype=dtype)
    with serving(load_rewards(NAMES), ServerConfig(port=0)) as url:
        table = {name: (remote(url, name), 1.0) for name in NAMES}
        assert all(isinstance(reward, Reward) for reward, _ in table.values())
        far = RewardSuite(table).score(clips)
    local = load_suite(dict.fromkeys(NAMES, 1.0))
    assert far.rows == local.score(clips).rows
    for name, reward in local.rewards.items():
        there = table[name][0]
        assert (there.needs_prompt, there.needs_time) == (reward.needs_prompt, reward.needs_time)
        assert there.fingerprint()["scorer"] == json.loads(json.dumps(reward.fingerprint()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
def test_requests_come_back_bitwise(dtype):
    video = batch(4, dtype=dtype).video.transpose(-1, -2)[::2]  # a view, sent alone
    sent = VideoBatch(video=video, prompts=PROMPTS[2:4], fps=torch.tensor([8.0, 29.97]))
    body = encode_request("general", sent)
    name, got = decode_request(body)
    assert name == "general" and list(got.prompts) == PROMPTS[2:4]
    assert got.video.dtype == dtype and torch.equal(got.video, video)
    assert torch.equal(got.fps_per_sample(), sent.fps_per_sample())
    assert len(body) < video.nbytes + 1000


def request(**changes):
    """A request with parts exchanged or (None) left out."""
    clips = batch(3)
    parts = {"video": clips.video, "fps": clips.fps_per_sample()}
    metadata = {"reward": "text_alignment", "prompts": json.dumps(PROMPTS[:3])}
    for key, value in changes.items():
        target = metadata if key in metadata else parts
        target[key] = value
        if value is None:
            del target[key]
    return save(parts, metadata=metadata)


WHOLE = encode_request("text_alignment", batch())
REFUSED = {
    "no video": (request(video=None), "cannot be used"),
    "half a list": (request(prompts="["), "cannot be used"),
    "two captions": (request(prompts='["a", "b"]'), "cannot be scored"),
    "shape": (request(video=torch.zeros(3, 4, 8, 8)), "cannot be scored"),
    "dtype": (request(video=torch.zeros(3, 4, 3, 8, 8, dtype=torch.int32)), "cannot be scored"),
    "rate": (request(fps=torch.tensor([8.0, 0.0, 8.0])), "cannot be scored"),
    "pickle": (pickle.dumps({"video": 1}), "cannot be used"),
    "cut": (WHOLE[:-1], "cannot be used"),
}


def test_wrong_payloads_are_refused_and_the_server_lives_on():
    chunked = {"content": iter([b"x"]), "headers": {"Content-Type": MEDIA_TYPE}}
    with served(max_request_bytes=100_000) as url:
        for name, (body, words) in REFUSED.items():
            answer = post(url, body)
            assert answer.status_code == 400 and words in answer.json()["error"], name
        for status, answer in (
            (404, httpx.get(url)),
            (404, post(url, WHOLE, path="/v1/other")),
            (404, post(url, encode_request("hps", batch()))),
            (405, httpx.delete(f"{url}/v1/score")),
            (411, httpx.post(f"{url}/v1/score", **chunked)),
            (413, post(url, b"x" * 20_000_000)),
            (415, post(url, WHOLE, **{"Content-Type": "text/plain"})),
        ):
            assert answer.status_code == status and answer.json()["error"]
        assert httpx.get(f"{url}/v1/health").json() == {"status": "ok"}
        with pytest.raises(UserError, match="text_alignment"):
            remote(url, "hps")
    with served(max_request_bytes=15_000) as url:
        assert_unscored(remote(url).score(batch(2)), 2, "over the server's limit of 15000")
        assert remote(url).score(batch(2, dtype=torch.uint8))[1].value is not None


def test_batches_are_split_by_size():
    reward = Observed()
    clips = batch()
    with served(reward) as url:
        whole = remote(url).score(clips)
        split = remote(url, max_request_bytes=2 * clips.video[0].nbytes + (1 << 16) + 200).score(
            clips
        )
        remote(url, max_request_bytes=1).score(clips)
    assert reward.sizes == [5, 2, 2, 1] + [1] * 5 and whole == split
    assert len(reward.threads) == 1  # the model is used by one thread


def test_failing_clips_cost_only_themselves(caplog):
    clips = batch()
    clips.video[1, 0, 0, 0, 0] = math.nan
    fail = {PROMPTS[3]: ValueError("no such star"), "x": AttributeError("secret detail")}
    with served(Observed(fail=fail)) as url:
        scores = remote(url).score(clips.select([0, 1, 2, 3]))
        assert [score.value is None for score in scores] == [False, True, False, True]
        assert "not finite" in scores[1].reason and scores[3].reason == "ValueError: no such star"
        # An error that no scorer should have is the server's: its log tells, the client does not.
        assert_unscored(remote(url).score(clips), 5, "status 500: scoring failed with Attr")
    assert "secret detail" in caplog.text


def test_tokens(caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    with served(token=TOKEN) as url:
        for token in ("x" * 20, TOKEN[:-1], TOKEN + "x"):
            with pytest.raises(UserError, match="status 401") as caught:
                remote(url, token=token)
            assert TOKEN not in str(caught.value)
        assert remote(url, token=TOKEN).score(batch(1))[0].value is not None
        for header in ("", TOKEN, "bearer x", "Basic abc", b"Bearer \xe9"):
            assert post(url, WHOLE, Authorization=header).status_code == 401
        assert httpx.get(f"{url}/v1/rewards?token={TOKEN}").status_code == 401
        assert httpx.get(f"{url}/v1/health").status_code == 200
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        assert remote(url).score(batch(1))[0].value is not None
    lines = [r.getMessage() for r in caplog.records if r.name.startswith(("uvicorn", "longtake"))]
    assert any("401" in line for line in lines) and not any(TOKEN in line for line in lines)


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token() is None
    file = tmp_path / "token"
    file.write_text("f" * 40 + "\n")
    monkeypatch.setenv(TOKEN_VARIABLE, "e" * 32)
    assert (read_token(), read_token(file)) == ("e" * 32, "f" * 40)
    for token in ("", "short", "a" * 40 + " b", "ü" * 40):
        file.write_text(token, encoding="utf-8")
        with pytest.raises(UserError, match="token cannot be used") as caught:
            read_token(file)
        assert not token or token not in str(caught.value)
    with pytest.raises(UserError, match="token cannot be used"):
        read_token(tmp_path)


def test_addresses():
    for host in ("0.0.0.0", "", "::"):
        with pytest.raises(UserError, match="without a token"), served(host=host):
            pass
    with pytest.raises(UserError, match="cannot listen"), served(host="no such host"):
        pass
    with served(token=TOKEN, host="0.0.0.0") as url:
        port = urlsplit(url).port
        with pytest.raises(UserError, match="cannot listen"), served(port=port):
            pass
        there = remote(f"http://localhost:{port}/", token=TOKEN)
        assert there.score(batch(1))[0].value is not None
    for url in ("localhost:8000", "ftp://localhost", "http://", "http://user:hunter2@localhost:1"):
        with pytest.raises(UserError, match="address of the reward server") as caught:
            remote(url)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="queue_size"):
        ServerConfig(queue_size=-1)


def test_late_requests_are_not_scored():
    reward = Observed()
    with served(reward) as url:
        patient, hasty = remote(url), remote(url, timeout_s=0.3, attempts=2)
        reward.gate.clear()
        thread, results = in_background(lambda: patient.score(batch(4)))
        assert reward.entered.wait(GUARD_S)
        assert_unscored(hasty.score(batch(2)), 2, "no answer in time")
        hasty.config = hasty.config.replace(max_request_bytes=1)
        reasons = [score.reason for score in hasty.score(batch(3))]
        assert "no answer in time" in reasons[0]
        assert all(text.startswith("not sent after") for text in reasons[1:])
        reward.gate.set()
        thread.join(GUARD_S)
        assert patient.score(batch(1))[0].value is not None  # behind what the hasty one left
    assert results[0][3].value is not None and reward.sizes == [4, 1]


def test_a_full_queue_answers_503_and_a_retry_succeeds(monkeypatch):
    reward = Observed()
    with served(reward, queue_size=0) as url:
        first, second = remote(url), remote(url)
        reward.gate.clear()
        thread, results = in_background(lambda: first.score(batch()))
        assert reward.entered.wait(GUARD_S)
        answer = post(url, WHOLE)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
        waits = []

        def first_one_finishes(seconds):
            waits.append(seconds)
            reward.gate.set()
            thread.join(GUARD_S)

        monkeypatch.setattr(tenacity.nap.time, "sleep", first_one_finishes)
        assert second.score(batch()) == results[0] if results else second.score(batch())
        assert waits[0] >= 1  # Retry-After is honoured


def test_a_server_that_is_gone_comes_back_and_must_be_the_same():
    with served() as url:
        port, reward = urlsplit(url).port, remote(url)
        expected = reward.score(batch())
    assert_unscored(reward.score(batch()), 5, "connection failed")
    with pytest.raises(UserError, match="connection failed"):
        remote(url)
    with served(port=port):
        assert reward.score(batch()) == expected
    with served(Observed("general"), port=port):
        assert_unscored(reward.score(batch()), 5, "scorer changed during the run")


BROKEN = {
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", "connection failed"),
    "garbage": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "answer unusable"),
    "gateway": (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "status 502: Bad Gat"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_answers_are_unscored(monkeypatch, case):
    answer, words = BROKEN[case]
    with served() as url:
        reward = remote(url)
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
        reward._url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert_unscored(reward.score(batch(2)), 2, words)


SCRIPT = """
import sys, time
from pathlib import Path
from longtake.rewards import registry, serve
from longtake.sandbox.analytic_rewards import General

folder = Path(sys.argv[1])
class Slow(General):
    def score(self, batch):
        (folder / "entered").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        return super().score(batch)
serve.load_rewards = lambda *names, **options: {"general": Slow()}
serve.serve(["general"], serve.ServerConfig(port=0), device="cpu")
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
        while "serving general on http://127.0.0.1:" not in line:
            assert line, "the server ended"
            line = process.stderr.readline()
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


def test_an_interrupted_server_finishes_the_running_request(tmp_path):
    with server_process(tmp_path) as (process, url):
        reward = RemoteReward(url, "general", token=TOKEN, config=QUICK)
        thread, results = in_background(lambda: reward.score(batch()))
        wait_for(tmp_path / "entered", process)
        process.send_signal(signal.SIGTERM)
        log = ""
        while "stopping" not in log:
            log += process.stderr.readline()
        (tmp_path / "go").touch()
        assert process.wait(GUARD_S) == 0
        thread.join(GUARD_S)
        log += process.stderr.read()
    assert all(score.value is not None for score in results[0])
    assert TOKEN not in log and "Traceback" not in log and "general: 5 clips in" in log
