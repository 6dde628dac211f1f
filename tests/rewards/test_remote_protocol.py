"""Wire format: round trips, and what corrupt bodies and tokens raise."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save

from longtake.rewards.contract import Score, VideoBatch
from longtake.rewards.remote_protocol import (
    TOKEN_VARIABLE,
    PayloadError,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    fingerprint_digest,
    read_token,
)
from longtake.runtime.errors import UserError

PROMPTS = ["a red circle", 'quotes " and \n lines', "ünïcode ✓"]


def batch(dtype=torch.float32, fps=8.0, seed=0):
    video = torch.rand(3, 4, 3, 8, 6, generator=torch.Generator().manual_seed(seed))
    video = (video * 255).to(torch.uint8) if dtype == torch.uint8 else video.to(dtype)
    return VideoBatch(video=video, prompts=PROMPTS, fps=fps)


def output():
    return [Score(1 / 3, note="cut"), Score.unscored("ünscored\nbecause"), Score(-1e-30)]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fps", [8.0, torch.tensor([8.0, 15.0, 29.97])])
def test_requests_come_back_bitwise(dtype, fps):
    sent = batch(dtype, fps)
    name, got = decode_request(encode_request("general", sent))
    assert name == "general" and list(got.prompts) == PROMPTS
    assert got.video.dtype == dtype and torch.equal(got.video, sent.video)
    assert torch.equal(got.fps_per_sample(), sent.fps_per_sample())


@pytest.mark.parametrize("strided", [True, False])
def test_a_view_of_a_larger_batch_is_sent_alone(strided):
    video = batch().video.transpose(-1, -2)[::2] if strided else batch().video[:2]
    sent = VideoBatch(video=video, prompts=PROMPTS[:2], fps=8.0)
    body = encode_request("general", sent)
    assert torch.equal(decode_request(body)[1].video, video)
    assert len(body) < video.numel() * 4 + 1000


def test_responses_come_back_bitwise():
    assert decode_response(encode_response(output(), "abc"), 3) == (output(), "abc")


def test_a_truncated_body_is_refused_at_every_length():
    body = encode_request("general", batch())
    for length in [0, 1, 7, 8, 9, 100, len(body) // 2, len(body) - 1]:
        with pytest.raises(PayloadError, match="not safetensors"):
            decode_request(body[:length])


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 64,
        pickle.dumps({"video": 1}),
        b"{}",
        save({}) + b"trailing",
        (2**62).to_bytes(8, "little") + b"{}",
    ],
    ids=["ones", "pickle", "json", "trailing", "huge_header"],
)
def test_other_bytes_are_refused(body):
    with pytest.raises(PayloadError, match="not safetensors"):
        decode_request(body)


def request(**changes):
    clips = batch()
    parts = {"video": clips.video, "fps": clips.fps_per_sample().clone()}
    metadata = {"reward": "general", "prompts": json.dumps(PROMPTS)}
    for key, value in changes.items():
        target = metadata if key in metadata else parts
        if value is None:
            del target[key]
        else:
            target[key] = value
    return save(parts, metadata=metadata)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video": None}, "incomplete"),
        ({"fps": None}, "incomplete"),
        ({"reward": None}, "incomplete"),
        ({"prompts": None}, "incomplete"),
        ({"prompts": "["}, "not a JSON list"),
        ({"prompts": '"abc"'}, "not a JSON list"),
        ({"prompts": '["a", "b"]'}, "captions do not fit"),
        ({"prompts": '["a", "b", 3]'}, "captions do not fit"),
        ({"video": torch.zeros(3, 4, 8, 8)}, "wrong shape"),
        ({"video": torch.zeros(3, 4, 3, 8, 8, dtype=torch.int32)}, "clips cannot be used"),
        ({"fps": torch.tensor([8.0, 8.0])}, "playback rate"),
        ({"fps": torch.tensor([8.0, 0.0, 8.0])}, "playback rate"),
    ],
)
def test_incomplete_requests_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        decode_request(request(**changes))


def test_no_metadata_at_all_is_refused():
    with pytest.raises(PayloadError, match="incomplete"):
        decode_request(save({"video": torch.zeros(1), "fps": torch.zeros(1)}))


def test_responses_must_fit_the_request():
    body = encode_response(output(), "abc")
    with pytest.raises(PayloadError, match="fit the request"):
        decode_response(body, 4)
    with pytest.raises(PayloadError, match="no response"):
        decode_response(body[:-1], 3)


def test_fingerprint_digests_see_values_and_not_order():
    first = fingerprint_digest({"a": 1, "b": [1.5, None]})
    assert first == fingerprint_digest({"b": [1.5, None], "a": 1})
    assert first != fingerprint_digest({"a": 1, "b": [1.25, None]})
    assert len(first) == 64


def test_tokens_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token() is None
    monkeypatch.setenv(TOKEN_VARIABLE, "e" * 32)
    assert read_token() == "e" * 32
    file = tmp_path / "token"
    file.write_text("f" * 40 + "\n")
    assert read_token(file) == "f" * 40


@pytest.mark.parametrize("token", ["", "short", "a" * 40 + " b", "ü" * 40, "a" * 20 + "\nb"])
def test_unusable_tokens_are_refused_and_never_shown(tmp_path, token):
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    with pytest.raises(UserError, match="token cannot be used") as caught:
        read_token(file)
    assert not token or token not in str(caught.value)


def test_an_unreadable_token_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "absent")
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path)
