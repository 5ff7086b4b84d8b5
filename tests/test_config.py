"""Settings: keys, dotted changes, ranges, presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedbed.config import Settings, bounded, nested, setting
from seedbed.types import UserError


@dataclass(frozen=True)
class Inner(Settings):
    PRESETS = {"wide": {"width": 9.0}, "narrow": {"width": 1.0}}
    preset: Literal["wide", "narrow"] = "narrow"
    width: float = bounded(1.0, 0.0, 10.0, open_low=True)
    folder: str = setting("here", key=False)


@dataclass(frozen=True)
class Outer(Settings):
    count: int = bounded(3, 1)
    kind: Literal["a", "b"] = "a"
    inner: Inner = nested(Inner)


@given(st.integers(1, 10**6), st.floats(0.001, 10.0))
def test_key_depends_on_values_alone(count: int, width: float) -> None:
    one = Outer(count=count, inner=Inner(width=width))
    other = Outer().replace(**{"count": count, "inner.width": width, "inner.folder": "elsewhere"})
    assert one.key() == other.key()
    assert one.replace(count=count + 1).key() != one.key()


def test_flat_names_are_dotted() -> None:
    assert Outer().flat()["inner.width"] == 1.0


@pytest.mark.parametrize("width", [0.0, -1.0, 10.5, math.nan, math.inf])
def test_range_names_the_flag(width: float) -> None:
    with pytest.raises(UserError) as caught:
        Outer(inner=Inner(width=width)).check()
    assert caught.value.field == "--inner.width" and "number" in caught.value.remedy


def test_choice_lists_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        Outer(kind="c").check()  # type: ignore[arg-type]
    assert "a, b" in caught.value.remedy


def test_bounds_are_inside() -> None:
    Outer(count=1, inner=Inner(width=10.0)).check()


def test_preset_sets_its_fields_only() -> None:
    changed = Inner(folder="kept").with_preset("wide")
    assert (changed.width, changed.folder, changed.preset) == (9.0, "kept", "wide")


def test_an_error_crosses_processes_whole() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(UserError("m", remedy="r", file="f", field="--x")))
    assert error.text() == "error: m\n  file:   f\n  field:  --x\n  remedy: r"


def test_a_preset_in_name_only_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Inner(preset="wide").check()
    assert "named" in caught.value.remedy
    Inner.named("wide", folder="x").check()
    Inner().with_preset("wide").check()
