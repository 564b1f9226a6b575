"""The model that tools are given, or a file of weights."""

import argparse

from beit_jax.tools import arguments


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint, for `arguments.load`."""
    parser.add_argument(
        '--checkpoint',
        required=True,
        type=arguments.path,
        help='a checkpoint, a work directory, a file or folder of PyTorch weights, or OWNER/NAME '
        "on Hugging Face's hub",
    )
