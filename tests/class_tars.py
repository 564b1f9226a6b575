"""Archives laid out as ImageNet is downloaded, for tests, written by GNU tar."""

from pathlib import Path
import subprocess


def tar(archive: Path, folder: Path, *options: str) -> Path:
    """A tar of what lies in a folder, in an order that is not sorted."""
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: name[::-1])
    command = ['tar', '-cf', archive, *options, '-C', folder, '-T', '-']
    subprocess.run(command, input='\n'.join(names).encode(), check=True)
    return archive


def class_tars(folder: Path, output: Path, *options: str) -> Path:
    """A folder of a tar for each folder in `folder`."""
    output.mkdir(parents=True, exist_ok=True)
    for each in filter(Path.is_dir, folder.iterdir()):
        tar(output / f'{each.name}.tar', each, *options)
    return output
