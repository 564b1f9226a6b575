"""The metrics and pictures of a run in Weights & Biases or trackio, besides the work directory."""

import hashlib
import importlib
import importlib.util
import os
from pathlib import Path

from beit_jax.errors import RequestError, check


def check_tracker(name: str) -> None:
    """Raises RequestError where it is not installed; '' is none."""
    check(
        not name or importlib.util.find_spec(name) is not None,
        f'config.tracker={name}: it is not installed: pip install {name}, or leave it empty.',
    )


class Tracker:
    """The run of a work directory, under the name of its folder, in the project `beit_jax` or the
    one in the environment, WANDB_PROJECT or TRACKIO_PROJECT. Both packages send in the background.

    A run that was killed logs some steps again, which are the same: wandb leaves them out.

    Raises:
      RequestError: the package refuses, for example without an account.
    """

    def __init__(self, name: str, workdir: Path, launch: dict, config: dict):
        """launch: the first one of the run, by which it is known again."""
        self._package = importlib.import_module(name)
        known = f'{launch.get("host")} {launch["time"]} {workdir.absolute()}'
        known = hashlib.sha256(known.encode(errors='backslashreplace')).hexdigest()[:12]
        # wandb knows a run again by its id, trackio by its name
        same = {'name': f'{workdir.name}-{known}'}
        if name == 'wandb':
            same = {'name': workdir.name, 'id': known, 'dir': str(workdir)}
        project = os.environ.get(f'{name.upper()}_PROJECT', 'beit_jax')
        try:
            self._package.init(project=project, config=config, resume='allow', **same)
        except Exception as error:  # of many types
            raise RequestError(
                f'config.tracker={name} cannot begin ({" ".join(str(error).split())[:200]}): mend '
                'that (wandb login, or WANDB_MODE=offline), or set config.tracker= for none.'
            ) from error

    def write(self, step: int, numbers: dict, pictures: dict) -> None:
        images = {name: self._package.Image(picture) for name, picture in pictures.items()}
        self._package.log(numbers | images, step=step)

    def close(self) -> None:
        self._package.finish()
