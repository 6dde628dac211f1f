"""Configuration: a dataclass of defaults, a YAML file over it, ``--set a.b=c`` over both.

OmegaConf's structured configs do the merging and the type checks. This file adds what a person
needs when something is wrong: every leaf is merged on its own, so an error names the exact key,
where it came from, the type it should have and, for an unknown key, the nearest valid one.

Rules: groups (dataclasses) merge key by key; lists, tuples and dictionaries are replaced whole, so
that a recorded configuration gives the same run over any defaults, but ``--set a.dict.key=value``
sets one key of a dictionary; `${other.key}` refers to another value; NaN is refused.
"""

import dataclasses
import difflib
import io
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from longtake.runtime.errors import ConfigError, UserError

T = TypeVar("T")
KeyPath = tuple[str, ...]


def merge_config(default: T, file: Path | None = None, overrides: Sequence[str] = ()) -> T:
    """Lay a YAML file and then ``key=value`` overrides over a dataclass instance.

    Args:
        default: a (frozen) dataclass instance, nested at will; it is not changed.
        file: YAML mapping with any subset of the fields, or None.
        overrides: strings ``a.b=value``; values are read as YAML.

    Returns:
        A new instance of the type of ``default``, with its ``__post_init__`` checks passed.

    Raises:
        ConfigError: unreadable or malformed YAML, an unknown key (names the nearest valid one), a
            value of the wrong type, or a value that the dataclass itself refuses.
    """
    merged = OmegaConf.structured(default)
    if file is not None:
        for path, value in _leaves(type(default), _read_yaml(file), (), str(file)):
            merged = _set_leaf(merged, type(default), path, value, str(file))
    for text in overrides:
        depth = text.partition("=")[0].count(".") + 1
        for path, value in _leaves(type(default), _parse_override(text), (), f"--set {text}"):
            whole = len(path) >= depth
            merged = _set_leaf(merged, type(default), path, value, f"--set {text}", whole=whole)
    config: T = _instantiate(merged)
    return config


def config_to_yaml(config: object) -> str:
    """YAML text of a dataclass instance; ``merge_config`` reads it back to an equal instance."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration file: {error.strerror}",
            received=str(file),
            expected="a readable YAML file",
            remedy="check the path given to --config",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the configuration file is not UTF-8 (byte {error.start})",
            received=str(file),
            remedy="save the file as UTF-8 text",
        ) from error
    return _parse_yaml(text, str(file))


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            "a --set option is not of the form key=value",
            received=text,
            expected="a.b=value",
            remedy="write for example --set seed=1",
        )
    tree: Any = _parse_yaml(f"value: {value}", f"--set {text}")["value"]
    for part in reversed(parts):
        tree = {part: tree}
    return dict(tree)


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse with OmegaConf's YAML rules (``1e-4`` is a number, duplicate keys are errors)."""
    try:
        # An empty text is an empty mapping; interpolations stay as text until the end.
        container = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(
            f"not valid YAML in {where}",
            received=" ".join(str(error).split()),
            expected="a YAML mapping of configuration keys",
        ) from error
    if not isinstance(container, dict):
        raise ConfigError(
            f"the configuration in {where} is not a mapping",
            received=type(container).__name__,
            expected="lines of the form `key: value`",
        )
    return {str(key): value for key, value in container.items()}


def _leaves(
    kind: type, tree: Mapping[str, Any], prefix: KeyPath, where: str
) -> Iterator[tuple[KeyPath, Any]]:
    """Walk a plain tree along the dataclass, checking names; yield (path, value) of each leaf."""
    hints = typing.get_type_hints(kind)
    valid = [f.name for f in dataclasses.fields(kind)]
    for key, value in tree.items():
        path = (*prefix, str(key))
        if key not in valid:
            raise _unknown_key(path, valid, where)
        group = _dataclass_in(hints[key])
        if group is None:
            yield path, value
        elif isinstance(value, Mapping):
            yield from _leaves(group, value, path, where)
        elif value is None and type(None) in typing.get_args(hints[key]):
            yield path, value
        else:
            names = ", ".join(f.name for f in dataclasses.fields(group))
            raise ConfigError(
                f"`{'.'.join(path)}` in {where} is a group of keys, not a value",
                received=value,
                expected=f"a mapping with any of: {names}",
                remedy=f"set one of its keys, for example --set {'.'.join(path)}.KEY=VALUE",
            )


def _unknown_key(path: KeyPath, valid: Sequence[str], where: str) -> ConfigError:
    near = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
    dotted = ".".join((*path[:-1], near[0])) if near else ""
    return ConfigError(
        f"unknown configuration key `{'.'.join(path)}` in {where}",
        expected=f"one of: {', '.join(valid)}",
        remedy=f"did you mean `{dotted}`?" if near else "remove it or choose a valid key",
    )


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of a hint ``D`` or ``D | None``; None for every other hint."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for option in typing.get_args(hint):
            if isinstance(option, type) and dataclasses.is_dataclass(option):
                return option
    return None


def _set_leaf(
    merged: Any, kind: type, path: KeyPath, value: Any, where: str, *, whole: bool = True
) -> DictConfig:
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"`{'.'.join(path)}` in {where} is NaN", expected="a number")
    tree: Any = value
    for part in reversed(path):
        tree = {part: tree}
    try:
        result = OmegaConf.merge(merged, tree)
        if whole and isinstance(value, Mapping):
            node = OmegaConf.select(result, ".".join(path))
            with flag_override(node, ["readonly", "struct"], [False, False]):
                for key in [key for key in node if key not in value]:
                    del node[key]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(
            f"wrong value for `{'.'.join(path)}` in {where}",
            received=value,
            expected=_show_hint(_hint_at(kind, path)),
        ) from error
    assert isinstance(result, DictConfig)
    return result


def _hint_at(kind: type, path: KeyPath) -> Any:
    hint: Any = kind
    for part in path:
        hint = typing.get_type_hints(_dataclass_in(hint) or hint)[part]
    return hint


def _show_hint(hint: Any) -> str:
    return hint.__name__ if type(hint) is type else str(hint).replace("typing.", "")


def _instantiate(merged: Any) -> Any:
    try:
        return OmegaConf.to_object(merged)
    except UserError:
        raise
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"the configuration is not valid: {error}") from error
