"""Configuration: frozen pydantic models, a YAML file over the defaults, ``--set a.b=c`` over both.

Each choice and range is declared once, in the type of its field; the docstring below a field is its
description (``settings`` lists both). Groups merge key by key; lists and dictionaries are replaced
whole, so that a recorded configuration gives the same run over any defaults, but
``--set a.dict.key=value`` sets one key of a dictionary.
"""

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, ValidationError

from longtake.runtime.errors import ConfigError, UserError

C = TypeVar("C", bound="Config")
KeyPath = tuple[str, ...]

_origins: ContextVar[dict[KeyPath, str] | None] = ContextVar("_origins", default=None)
"""Keys -> the file or option they came from, while a configuration is being validated."""


class Config(BaseModel):
    """A group of settings. Wrong values are refused with the key, the value and the expectation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # `--set name=7` is text where text is asked for
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    def __init__(self, /, **values: Any) -> None:
        outermost = _origins.get() is None
        token = _origins.set({} if outermost else _origins.get())
        try:
            super().__init__(**values)
        except ValidationError as error:
            if not outermost:  # pydantic puts the name of this group before the key
                raise
            raise _config_error(type(self), error, {}) from None
        finally:
            _origins.reset(token)

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked like a new one."""
        return type(self)(**{**dict(self), **changes})


def merge_config(default: C, file: Path | None = None, overrides: Sequence[str] = ()) -> C:
    """Lay a YAML file and then ``key=value`` overrides over a configuration.

    Args:
        default: values where neither says anything; it is not changed.
        file: YAML mapping with any subset of the fields, or None.
        overrides: strings ``a.b=value``; values are read as YAML.

    Raises:
        ConfigError: an unreadable file, an unknown key (names the nearest valid one) or a value
            that its field refuses; it says which file or option the value came from.
    """
    tree = default.model_dump()
    origins: dict[KeyPath, str] = {}
    if file is not None:
        _lay(tree, _read_yaml(file), default, (), str(file), origins)
    for text in overrides:
        key, equals, value = text.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            raise ConfigError(
                "a --set option is not of the form key=value",
                received=text,
                expected="a.b=value",
                remedy="write for example --set seed=1",
            )
        where = f"--set {text}"
        branch = _parse_yaml(f"value: {value}", where)["value"]
        for part in reversed(path):
            branch = {part: branch}
        _lay(tree, branch, default, (), where, origins, deep=len(path))
    token = _origins.set(origins)
    try:
        return type(default)(**tree)
    except ValidationError as error:
        raise _config_error(type(default), error, origins) from None
    finally:
        _origins.reset(token)


def config_to_yaml(config: Config) -> str:
    """YAML text of a configuration; ``merge_config`` reads it back to an equal one."""
    plain = config.model_dump(mode="json")
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)


def settings(config: Config, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type with choices or range, default, meaning) of every setting, groups walked into."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from settings(value, f"{prefix}{name}.")
            continue
        kind = _shown(field.annotation) + _bounds(field.metadata)
        default = yaml.safe_dump(
            config.model_dump(mode="json", include={name})[name],
            default_flow_style=True,
            width=10_000,
        )
        meaning = " ".join((field.description or "").split())
        yield f"{prefix}{name}", kind, default.removesuffix("...\n").strip(), meaning


def settings_list(config: Config) -> str:
    """Every setting as a line of Markdown; paths of the checkout are relative to it."""
    root = str(Path(__file__).resolve().parents[1])
    lines = [f"- `{key}`: {kind} = `{v}`. {text}" for key, kind, v, text in settings(config)]
    return "\n".join(lines).replace(f"{root}/", "")


def _bounds(metadata: Sequence[Any]) -> str:
    """The range among a type's annotations, " > 0" and so on."""
    inner = [m for item in metadata for m in getattr(item, "metadata", (item,))]
    signs = ((Gt, ">", "gt"), (Ge, ">=", "ge"), (Lt, "<", "lt"), (Le, "<=", "le"))
    return "".join(
        f" {sign} {getattr(m, attribute):g}"
        for kind, sign, attribute in signs
        for m in inner
        if isinstance(m, kind)
    )


def _shown(kind: Any) -> str:
    """A type as people write it: choices by ``|``, None as null."""
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin is typing.Annotated:
        return _shown(arguments[0]) + _bounds(arguments[1:])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_shown, arguments))
    if kind is type(None):
        return "null"
    if arguments:
        return f"{origin.__name__}[{', '.join(map(_shown, arguments))}]"
    return str(kind.__name__)


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once: of two lines with one key, one was meant otherwise."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"duplicate key {key!r}{node.start_mark}")
        return super().construct_mapping(node, deep)


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"cannot read the configuration file: {reason}",
            received=str(file),
            expected="a readable YAML file in UTF-8",
            remedy="check the path given to --config",
        ) from error
    return _parse_yaml(text, str(file))


def _parse_yaml(text: str, where: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"not valid YAML in {where}",
            received=" ".join(str(error).split()),
            expected="a YAML mapping of configuration keys",
        ) from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(
            f"the configuration in {where} is not a mapping",
            received=type(tree).__name__,
            expected="lines of the form `key: value`",
        )
    return tree or {}


def _lay(
    tree: dict[str, Any],
    branch: Mapping[str, Any],
    group: object,
    path: KeyPath,
    where: str,
    origins: dict[KeyPath, str],
    deep: int = 0,
) -> None:
    """Write the values of ``branch`` into ``tree``; ``origins`` learns where each came from.

    Groups are walked into, and so are the first ``deep`` levels whatever they are.
    """
    for name, value in branch.items():
        key = (*path, str(name))
        inner = getattr(group, str(name), None) if isinstance(group, Config) else None
        if isinstance(value, Mapping) and (isinstance(inner, Config) or len(key) < deep):
            if not isinstance(tree.get(key[-1]), dict):
                tree[key[-1]] = {}
            _lay(tree[key[-1]], value, inner, key, where, origins, deep)
        else:
            tree[key[-1]] = value
            origins[key] = where


def _config_error(
    model: type[Config], error: ValidationError, origins: Mapping[KeyPath, str]
) -> UserError:
    """The first thing that is wrong, in our words."""
    first = error.errors()[0]
    reason = first.get("ctx", {}).get("error")
    if isinstance(reason, UserError):
        return reason
    # The name of a type in a union is not part of the key.
    path = tuple(
        str(p) for p in first["loc"] if not str(p).startswith(("function-", "constrained-"))
    )
    where = next(
        (w for k, w in origins.items() if path[: len(k)] == k or k[: len(path)] == path), ""
    )
    place = f"`{'.'.join(path)}`" + (f" in {where}" if where else "")
    group, fields = model, list(model.model_fields)
    for part in path[:-1]:
        inner = _group_in(group.model_fields[part].annotation) if part in fields else None
        if inner is None:
            break
        group, fields = inner, list(inner.model_fields)
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], fields, n=1, cutoff=0.5)
        return ConfigError(
            f"unknown configuration key {place}",
            expected=f"one of: {', '.join(fields)}",
            remedy=f"did you mean `{'.'.join((*path[:-1], *near))}`?"
            if near
            else "remove it or choose a valid key",
        )
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    field = group.model_fields.get(path[-1]) if path else None
    if field is not None and (inner := _group_in(field.annotation)) is not None:
        expected = f"a group with any of: {', '.join(inner.model_fields)}"
    return ConfigError(f"wrong value for {place}", received=first["input"], expected=expected)


def _group_in(kind: Any) -> type[Config] | None:
    """The group of a type ``G`` or ``G | None``."""
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, Config):
            return option
    return None
