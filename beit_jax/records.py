"""The JSON beside a file of arrays that says of what it is: written all or nothing, and compared in words."""
from collections.abc import Mapping
import json
import os
from pathlib import Path


def write(path: Path, content: Mapping) -> None:
    """Replaces the record; whoever is killed meanwhile leaves the old one."""
    temporary = path.with_name(path.name + '.new')
    temporary.write_text(json.dumps(content) + '\n')
    os.replace(temporary, path)


def differences(saved: Mapping, wanted: Mapping) -> list[str]:
    """'NAME was X, is Y' for each entry of `wanted` that `saved` has otherwise or not at all."""
    return [f'{name} was {saved.get(name)}, is {value}' for name, value in wanted.items() if saved.get(name) != value]
