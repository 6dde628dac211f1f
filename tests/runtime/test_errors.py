import pickle

import pytest

from longtake.runtime.errors import (
    CheckpointError,
    ConfigError,
    LongtakeError,
    RunDirectoryError,
    UserError,
)


def test_message_has_the_three_parts() -> None:
    error = UserError("bad size", received=(1, 2), expected="two even numbers", remedy="round up")
    assert str(error).splitlines() == [
        "bad size",
        "  received: (1, 2)",
        "  expected: two even numbers",
        "  remedy: round up",
    ]


@pytest.mark.parametrize("kind", [UserError, ConfigError, CheckpointError, RunDirectoryError])
def test_user_errors_are_value_errors_and_survive_pickling(kind: type[UserError]) -> None:
    error = kind("what", received="r", expected="e", remedy="do")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(error, ValueError) and isinstance(error, LongtakeError)
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert (copy.received, copy.expected, copy.remedy) == ("r", "e", "do")


def test_run_directory_error_is_an_os_error_too() -> None:
    assert issubclass(RunDirectoryError, OSError)
