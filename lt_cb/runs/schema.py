"""Types of the values in ``result.json``, and their check. Imports no torch."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

LARGEST = 1e39  # float32 ends below it
MOST = 10**15  # images, seeds, parameters


class Rule(NamedTuple):
    """A condition on a value, to be attached to its type by ``Annotated``."""

    words: str  # allowed values; ``{}`` stands for the words of the type
    holds: Callable[[Any, int], bool]  # of the value and the number of classes


T = TypeVar("T")
Rate = Annotated[float, Rule("a number in [0, 1]", lambda value, _: 0 <= value <= 1)]
Seconds = Annotated[float, Rule("a number of at least 0", lambda value, _: value >= 0)]
ClassIndex = Annotated[int, Rule("a class index below the number of classes", lambda value, size: value < size)]
Callback = Annotated[dict[str, Any], Rule("a mapping with class_path", lambda v, _: type(v.get("class_path")) is str)]
PerClass = Annotated[list[T], Rule("{}, one for each class", lambda value, size: len(value) == size)]
Counts = Annotated[PerClass[int], Rule("{}, not all 0", lambda value, _: sum(value) > 0)]


def fits(value: Any, kind: Any, size: int) -> bool:  # noqa: ANN401 - JSON and a type
    """Return whether a JSON value has a type and obeys its rules; an ``int`` is a count or a seed.

    Args:
        value: parsed JSON.
        kind: int, float, str, ``list``, ``dict`` with text keys, or a union of them, with ``Rule`` by ``Annotated``.
        size: number of classes.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return fits(value, args[0], size) and all(rule.holds(value, size) for rule in args[1:])
    if origin is list:
        return isinstance(value, list) and all(fits(entry, args[0], size) for entry in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(entry, args[1], size) for entry in value.values())
    if kind is int:
        return type(value) is int and 0 <= value < MOST
    if kind is float:
        return type(value) in (int, float) and abs(value) < LARGEST  # NaN is not
    if args:
        return any(fits(value, each, size) for each in args)
    return kind is Any or isinstance(value, kind)


def words_of(kind: Any) -> str:  # noqa: ANN401 - a type
    """Return the values that `fits` allows, in words."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        words = words_of(args[0])
        for rule in args[1:]:
            words = rule.words.format(words)
        return words
    if origin is list:
        return f"a list, each entry {words_of(args[0])}"
    if origin is dict:
        return f"a mapping, each value {words_of(args[1])}"
    if args:
        return " or ".join(map(words_of, args))
    return NAMES.get(kind, "anything")


NAMES = {int: "a whole number of at least 0", float: "a finite number", str: "a text", type(None): "null"}
