"""Hypothesis strategies for every struct of consensus, from its own annotations."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from msgspec import inspect


def values(kind: object) -> st.SearchStrategy[object]:
    """Any value of a `Value` subclass or annotated type, within the bounds that the type itself declares."""
    return _of(inspect.type_info(kind))


def _of(info: inspect.Type) -> st.SearchStrategy[object]:
    match info:
        case inspect.StructType():
            fields = {field.name: _of(field.type) for field in info.fields}
            return st.builds(info.cls, **fields)
        case inspect.UnionType():
            return st.one_of(*(_of(option) for option in info.types))
        case inspect.VarTupleType():
            return st.lists(_of(info.item_type), max_size=4).map(tuple)
        case inspect.IntType():
            # Struct fields without bounds are the chain's own constants, never sent alone.
            low = info.ge if info.ge is not None else 0
            high = info.le if info.le is not None else 2**63 - 1
            edges = [edge for edge in (0, 127, 128, 255, 256, 2**16, 2**32, high) if low <= edge <= high]
            return st.sampled_from(edges) | st.integers(low, high)
        case inspect.BytesType():
            return st.binary(min_size=info.min_length or 0, max_size=info.max_length or 64)
        case inspect.StrType():
            if info.pattern:
                digits = st.binary(min_size=(info.min_length or 0) // 2, max_size=(info.max_length or 64) // 2)
                return digits.map(bytes.hex) if "a-f" in info.pattern else st.integers(0, 2**256).map(str)
            return st.text(max_size=min(8, info.max_length or 8))
        case inspect.BoolType():
            return st.booleans()
        case inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case inspect.TupleType():
            return st.tuples(*map(_of, info.item_types))
        case inspect.LiteralType():
            return st.sampled_from(info.values)
        case inspect.EnumType():
            return st.sampled_from(list(info.cls))
        case inspect.NoneType():
            return st.none()
        case inspect.Metadata():
            return _of(info.type)
    raise NotImplementedError(type(info).__name__)


def subclasses(kind: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """All structs below `kind` that are declared by now."""
    found = []
    for child in kind.__subclasses__():
        found += [child, *subclasses(child)]
    return found
