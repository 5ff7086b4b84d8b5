"""Settings: the base of every frozen dataclass of settings, with checked ranges, a dictionary form and a content key.

A field says its range in its metadata (`bounded`, `setting`); its docstring says unit and source and becomes the `--help` text.
Fields marked `key=False` do not change what is computed (folder, number of actors, names) and stay out of the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from seedbed.types import UserError


def bounded(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
    key: bool = True,
) -> Any:
    """A field whose number must lie within [low, high]; an open end excludes the bound itself. NaN and infinity are always refused."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "open_low": open_low, "open_high": open_high, "key": key})


def setting(default: Any, *, key: bool = True) -> Any:
    """A field without a range; `key=False` for what does not change a result."""
    if isinstance(default, list | dict | set):
        raise TypeError("defaults of settings are immutable")
    return dataclasses.field(default=default, metadata={"key": key})


def nested(factory: Any) -> Any:
    """A field that holds settings of its own."""
    return dataclasses.field(default_factory=factory)


def digest(value: Any) -> str:
    """16 hexadecimal digits of the SHA-256 over the canonical JSON of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings."""

    PRESETS: typing.ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Preset name -> the values it sets, those of nested settings by dotted names.

    Every preset of a class sets the same fields, so that one replaces another whole."""

    def to_dict(self, *, only_key: bool = False) -> dict[str, Any]:
        """Nested plain values; with only_key those fields that change a result."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            if only_key and not f.metadata.get("key", True):
                continue
            value = getattr(self, f.name)
            out[f.name] = value.to_dict(only_key=only_key) if isinstance(value, Settings) else _plain(value)
        return out

    def flat(self, prefix: str = "") -> dict[str, Any]:
        """Dotted names -> plain values, e.g. `rib.tau`."""
        out: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Settings):
                out.update(value.flat(f"{prefix}{f.name}."))
            else:
                out[f"{prefix}{f.name}"] = _plain(value)
        return out

    def key(self) -> str:
        return digest(self.to_dict(only_key=True))

    def replace(self, **changes: Any) -> Self:
        """A copy with other values; a nested field is named with dots: `replace(**{"rib.tau": 0.3})`."""
        own: dict[str, Any] = {}
        below: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = value
            else:
                own[head] = value
        for head, values in below.items():
            own[head] = own.get(head, getattr(self, head)).replace(**values)
        return dataclasses.replace(self, **own)

    def with_preset(self, name: str) -> Self:
        """This class's values of a named preset laid over these settings."""
        return self.replace(**{**self.PRESETS[name], "preset": name})

    @classmethod
    def named(cls, preset: str, **changes: Any) -> Self:
        """The settings of a preset, with changes: `RibConfig.named("paper", steps=20)`."""
        return cls().with_preset(preset).replace(**changes)

    def _check_preset(self, prefix: str) -> None:
        """A preset that was only written into its field has set nothing: the record would name what did not happen."""
        name = str(getattr(self, "preset", ""))
        if name not in self.PRESETS or name == type(self)().preset:  # type: ignore[attr-defined]
            return
        plain, values = type(self)(), self.PRESETS[name]
        there, here = plain.flat(), self.flat()
        differ = [f for f, value in values.items() if there[f] != _plain(value)]
        if differ and all(here[f] == there[f] for f in differ):
            remedy = f"write {type(self).__name__}.named({name!r}, ...) or .with_preset({name!r})"
            raise UserError(f"preset {name!r} is named, but none of its values is set", field=f"--{prefix}preset", remedy=remedy)

    def check(self, prefix: str = "") -> None:
        """Ranges and types of every field, then `check_together`; raises UserError naming the field as the command line spells it."""
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Settings):
                value.check(f"{prefix}{f.name}.")
            else:
                _check_field(f"--{prefix}{f.name}".replace("_", "-"), value, hints[f.name], f.metadata)
        self._check_preset(prefix)
        self.check_together(prefix)

    def check_together(self, prefix: str) -> None:
        """Combinations of fields; overridden where there are any."""


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _check_field(flag: str, value: Any, hint: Any, meta: Mapping[str, Any]) -> None:
    options = _literals(hint)
    if options and value is not None and value not in options:
        raise UserError(f"{flag} is {value!r}", field=flag, remedy=f"choose one of {', '.join(map(str, options))}")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if not math.isfinite(number):
            raise UserError(f"{flag} is {number}", field=flag, remedy="give a finite number")
        low, high = meta.get("low"), meta.get("high")
        if low is not None and (number < low or (meta.get("open_low") and number == low)):
            raise UserError(
                f"{flag} is {number}", field=flag, remedy=f"give a number {'above' if meta.get('open_low') else 'of at least'} {low}"
            )
        if high is not None and (number > high or (meta.get("open_high") and number == high)):
            raise UserError(
                f"{flag} is {number}", field=flag, remedy=f"give a number {'below' if meta.get('open_high') else 'of at most'} {high}"
            )


def _literals(hint: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return tuple(v for part in typing.get_args(hint) for v in _literals(part))
    return ()
