"""Files that several commands read and write. Imports no torch."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from lt_cb.errors import InputError


def read_yaml(file: Path) -> Any:  # noqa: ANN401 - YAML
    """Return what a YAML file says.

    Raises:
        InputError: (a ValueError) if it cannot be read, or is not YAML.
    """
    try:
        return yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise InputError(f"cannot read '{file}' ({error.strerror}): give the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"'{file}' is not YAML: {' '.join(str(error).split())}.") from error


def write_json(file: Path, value: Any) -> None:  # noqa: ANN401 - JSON
    """Write a file that is never seen half-written, also where another process writes the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(file)
