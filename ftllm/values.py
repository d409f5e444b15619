"""Dataclasses that cost little to define.

For each class, `dataclasses` writes and compiles six methods, which takes a millisecond; the chat's screen defines a
hundred such classes before it is there. The classes made here share those methods, and only `__init__` is compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import dataclasses

    def dataclass(cls: type | None = None, /, *, frozen: bool = False) -> Any:
        """As `dataclasses.dataclass`, of whose options it takes this one.

        A frozen value's field is set once, by `__init__`; after that, FrozenInstanceError is raised.
        """

        def define(cls: type) -> type:
            methods = METHODS | (FROZEN if frozen else MUTABLE)
            own = vars(cls).keys() & methods.keys()
            dataclasses.dataclass(eq=False, repr=False)(cls)
            for name in methods.keys() - own:
                setattr(cls, name, methods[name])
            return cls

        return define if cls is None else define(cls)

    def _compared(value: Any) -> tuple[Any, ...]:
        return tuple(getattr(value, field.name) for field in dataclasses.fields(value) if field.compare)

    def _equals(self: Any, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return _compared(self) == _compared(other)

    def _hash(self: Any) -> int:
        return hash(_compared(self))

    def _repr(self: Any) -> str:
        shown = (f"{field.name}={getattr(self, field.name)!r}" for field in dataclasses.fields(self) if field.repr)
        return f"{type(self).__qualname__}({', '.join(shown)})"

    def _set_once(self: Any, name: str, value: object) -> None:
        if name in self.__dict__ or name not in self.__dataclass_fields__:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        self.__dict__[name] = value

    def _keep(_: Any, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    METHODS = {"__eq__": _equals, "__repr__": _repr}
    FROZEN = {"__hash__": _hash, "__setattr__": _set_once, "__delattr__": _keep}
    MUTABLE = {"__hash__": None}
