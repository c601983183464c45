"""How the library's value types are declared: frozen dataclasses that are pytrees."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax

if TYPE_CHECKING:
    Leaf = jax.Array
else:
    # JAX rebuilds pytrees around placeholders (in_axes, shardings, ShapeDtypeStruct, None), and transformations
    # add axes in front, so a field's type cannot be checked when an instance is made. Functions check instead.
    Leaf = Any

T = TypeVar("T")


def static_field(**options: Any) -> Any:
    """A dataclass field that is part of the pytree's structure: hashable, and a new value means a new compilation."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static_field, dataclasses.field))
def pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass and a pytree whose leaves are its fields, `static_field`s aside."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))
