import pytest
import torch

from longtake.runtime.device import pick_device
from longtake.runtime.errors import UserError


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 0)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=r"auto \| cpu"):
            pick_device(name)


def test_with_two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch, 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "mps", "meta"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--device auto"):
        pick_device(name)
