"""Text encoder, tokenizer and embedding cache."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, UMT5EncoderModel

from longtake.core.text import TextEncoder, clean_prompt, new_text_encoder, train_tokenizer
from longtake.runtime.errors import CheckpointError, UserError

GOLDEN = Path(__file__).parents[1] / "data" / "schedules.json"
CAPTIONS = [
    f"A {size} {colour} {shape} moves {way}."
    for size in ("small", "large")
    for colour in ("red", "blue")
    for shape in ("circle", "square")
    for way in ("left", "right")
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint")
    tokenizer = train_tokenizer(CAPTIONS, 128, 16, root / "tokenizer")
    model = new_text_encoder(len(tokenizer), 16, num_layers=2, num_heads=2, seed=3)
    TextEncoder(tokenizer, model.eval()).save_pretrained(root)
    return root


@pytest.fixture
def encoder(checkpoint: Path) -> TextEncoder:
    return TextEncoder.from_pretrained(checkpoint)


@pytest.mark.parametrize(("raw", "cleaned"), json.loads(GOLDEN.read_text())["prompt_clean"])
def test_prompt_cleaning_reproduces_the_release(raw: str, cleaned: str) -> None:
    assert clean_prompt(raw) == cleaned


def test_tokenizer_has_the_special_ids_of_t5_and_whole_words(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "tokenizer", local_files_only=True)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    ids = tokenizer(CAPTIONS[0]).input_ids
    words = ["▁a", "▁small", "▁red", "▁circle", "▁moves", "▁left", ".", "</s>"]
    assert tokenizer.convert_ids_to_tokens(ids) == words
    unseen = tokenizer("a zebra \u4e00").input_ids
    assert unseen[-1] == 1 and 2 in unseen  # letters are spelt, unknown characters become <unk>


def test_tokenizer_does_not_depend_on_caption_order(tmp_path: Path) -> None:
    vocabularies = [
        train_tokenizer(captions, 128, 16, tmp_path / str(i)).get_vocab()
        for i, captions in enumerate((CAPTIONS, CAPTIONS[::-1], iter(CAPTIONS)))
    ]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]


def test_tokenizer_spells_words_beyond_its_budget(tmp_path: Path) -> None:
    full = train_tokenizer(CAPTIONS, 128, 32, tmp_path / "full")
    small = train_tokenizer(CAPTIONS, len(full) - 5, 32, tmp_path / "small")
    assert len(small) == len(full) - 5
    caption = CAPTIONS[0].lower()
    assert small.decode(small(caption).input_ids, skip_special_tokens=True) == caption
    with pytest.raises(UserError, match="alphabet"):
        train_tokenizer(CAPTIONS, 10, 32, tmp_path / "none")


def test_encode_shapes_mask_and_zeros(encoder: TextEncoder) -> None:
    embeds, mask = encoder.encode([CAPTIONS[0], ""])
    assert embeds.shape == (2, 1, 16, 16) and mask.shape == (2, 16)
    assert mask.dtype == torch.int64 and mask.sum(1).tolist() == [8, 1]
    assert not embeds[0, 0, 8:].any() and not embeds[1, 0, 1:].any()
    assert embeds[0, 0, :8].abs().sum(-1).min() > 0


def test_encode_equals_the_transformers_model(encoder: TextEncoder, checkpoint: Path) -> None:
    reference = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder").eval()
    ids, mask = encoder.tokenize(CAPTIONS[:1])
    with torch.no_grad():
        states = reference(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(
        encoder.encode(CAPTIONS[:1])[0][0, 0, :8], states[0, :8], atol=1e-5, rtol=1e-5
    )


def test_embedding_does_not_depend_on_the_batch(checkpoint: Path) -> None:
    alone = TextEncoder.from_pretrained(checkpoint).encode([CAPTIONS[3]])[0]
    together = TextEncoder.from_pretrained(checkpoint).encode(CAPTIONS)[0]
    assert torch.equal(alone[0], together[3])


def test_long_prompts_are_cut_and_keep_the_end_token(encoder: TextEncoder) -> None:
    ids, mask = encoder.tokenize(["red " * 50])
    assert ids.shape == (1, 16) and mask.all() and ids[0, -1] == 1


def test_cleaning_happens_before_the_cache(encoder: TextEncoder) -> None:
    encoder.encode(["a red  circle"])
    calls: list[int] = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    encoder.encode(["  a red circle ", "a red circle"])
    assert not calls
    encoder.clear_cache()
    encoder.encode(["a red circle"])
    assert len(calls) == 1


def test_embed_keeps_gradients(encoder: TextEncoder) -> None:
    encoder.model.requires_grad_(True)
    encoder.embed(*encoder.tokenize(CAPTIONS[:2])).sum().backward()
    assert encoder.model.shared.weight.grad.abs().max() > 0


def test_new_encoder_is_seeded_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    first, second, other = (new_text_encoder(20, 16, num_heads=2, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.shared.weight, second.shared.weight)
    assert not torch.equal(first.shared.weight, other.shared.weight)


def test_broken_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextEncoder.from_pretrained(tmp_path)
    encoder = TextEncoder.from_pretrained(checkpoint)
    encoder.save_pretrained(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TextEncoder.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="weights not found"):
        TextEncoder.from_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer"):
        TextEncoder.from_pretrained(tmp_path)
