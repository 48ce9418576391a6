"""Typed look-ups in other people's JSON and metadata, with errors that name file and field."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_REQUIRED = object()


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ValueError: missing, unreadable as JSON, or not an object; the message holds the path.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a JSON file, found none")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


class Fields:
    """A mapping out of a file; each getter checks one field's type and range."""

    def __init__(self, values: Mapping[str, Any], path: Path | str) -> None:
        self.values, self.path = values, path

    def get(self, name: str, default: Any = None) -> Any:
        return self.values.get(name, default)

    def _value(self, name: str, default: Any, expected: str) -> Any:
        value = self.values.get(name)
        if value is None and default is not _REQUIRED:
            return default
        if value is None:
            raise ValueError(f"{self.path}: the field {name!r} is missing; expected {expected}")
        return value

    def count(self, name: str, default: Any = _REQUIRED) -> int:
        value = self._value(name, default, "a whole number >= 1")
        if type(value) is not int or not 1 <= value < 2**40:
            raise self.error(name, value, "a whole number >= 1")
        return value

    def number(self, name: str, default: Any = _REQUIRED) -> float:
        value = self._value(name, default, "a number > 0")
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(name, value, "a finite number > 0")
        return float(value)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        value = self._value(name, default, "true or false")
        if type(value) is not bool:
            raise self.error(name, value, "true or false")
        return value

    def refuse_unless(self, name: str, allowed: tuple[Any, ...]) -> None:
        """Raise unless the field is absent or has one of these values."""
        value = self.values.get(name)
        if value is not None and not any(
            type(value) is type(item) and value == item for item in allowed
        ):
            raise self.error(name, value, " or ".join(map(repr, allowed)))

    def error(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"{self.path}: {name} is {value!r}; supported: {expected}")


def tidy_float(value: float) -> float:
    """Return the shortest decimal of a number that went through float32: 1e-05 and not 9.99e-06."""
    return float(str(np.float32(value)))
