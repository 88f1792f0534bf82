"""Hypothesis strategies for values of the mesh, made from their types: one for any msgspec Struct."""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, Literal, TypeAliasType, get_args, get_origin

import msgspec
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
NUMBERS = st.integers(-(2**53), 2**53)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=3,
)
RAW = JSON.map(lambda value: Raw(msgspec.json.encode(value)))
_PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: TEXT,
    int: NUMBERS,
    float: FLOATS,
    bool: st.booleans(),
    Any: JSON,
    Raw: RAW,
    type(None): st.none(),
    UnsetType: st.just(UNSET),
}


@functools.cache
def of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type as the mesh's records and messages use it."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    if isinstance(kind, TypeAliasType):
        return of(kind.__value__)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(of(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(of(arguments[0]), of(arguments[1]), max_size=2)
    if origin is types.UnionType:
        return st.one_of(*(of(argument) for argument in arguments))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return struct(kind)
    raise TypeError(f"no strategy for {kind}")


def struct[T: msgspec.Struct](kind: type[T], /, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[T]:
    """Values of a Struct: each field from its type, or its default, or as `fixed` says."""
    hints = typing.get_type_hints(kind)
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in msgspec.structs.fields(kind):
        value = fixed[field.name] if field.name in fixed else of(hints[field.name])
        if not field.required and field.name not in fixed:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            value = st.just(default) | value
        fields[field.name] = value
    return st.fixed_dictionaries(fields).map(lambda values: kind(**values))
