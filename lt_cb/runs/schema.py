"""Types of the values in ``result.json``, and their check. Imports no torch."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin


class Rule(NamedTuple):
    """A condition on a JSON value, attached to its type by ``Annotated``."""

    words: str  # allowed values
    holds: Callable[[Any, int], bool]  # of the value and the number of classes

    def __repr__(self) -> str:
        """Return the words, for the documentation."""
        return f"'{self.words}'"


T = TypeVar("T")
Rate = Annotated[float, Rule("a number in [0, 1]", lambda value, _: 0 <= value <= 1)]
Seconds = Annotated[float, Rule("a number of at least 0", lambda value, _: value >= 0)]
ClassIndex = Annotated[int, Rule("a class index below the number of classes", lambda value, size: value < size)]
Callback = Annotated[
    dict[str, Any],
    Rule(
        "a mapping with class_path and init_args",
        lambda v, _: type(v.get("class_path")) is str and isinstance(v.get("init_args"), dict | None),
    ),
]
PerClass = Annotated[list[T], Rule("a list with one entry for each class", lambda value, size: len(value) == size)]
Counts = Annotated[PerClass[int], Rule("a list of counts that are not all 0", lambda value, _: sum(value) > 0)]
SCALARS = {
    int: Rule("a whole number of at least 0", lambda value, _: type(value) is int and 0 <= value < 10**15),
    float: Rule("a finite number", lambda value, _: type(value) in (int, float) and abs(value) < 1e39),  # as float32
    str: Rule("a text", lambda value, _: isinstance(value, str)),
    type(None): Rule("null", lambda value, _: value is None),
    Any: Rule("anything", lambda value, _: True),
}


def mismatch(value: Any, kind: Any, size: int) -> str | None:  # noqa: ANN401 - JSON and a type
    """Return the allowed values, in words, if a JSON value does not fit its type, for ``size`` classes; else None."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        broken = (rule.words for rule in args[1:] if not rule.holds(value, size))
        return mismatch(value, args[0], size) or next(broken, None)
    if origin is list or origin is dict:
        name = "a list" if origin is list else "a mapping"
        if not isinstance(value, origin):
            return name
        entries = value if isinstance(value, list) else value.values()
        found = (mismatch(entry, args[-1], size) for entry in entries)
        return next((f"{name}, each entry {words}" for words in found if words), None)
    if args:  # a union
        choices = [mismatch(value, each, size) for each in args]
        return " or ".join(filter(None, choices)) if all(choices) else None
    rule = SCALARS[kind]
    return None if rule.holds(value, size) else rule.words
