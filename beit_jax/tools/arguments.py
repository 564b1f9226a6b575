"""What every command-line tool does alike: parse, run, and turn a bad request into a line on stderr and status 2."""
import argparse
from collections.abc import Callable
import sys

from beit_jax.errors import RequestError


def parser(tool: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f'python -m beit_jax.tools.{tool}', description=description, epilog=f'example: {example}',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def main(run: Callable[[argparse.Namespace], None], arguments: argparse.ArgumentParser) -> None:
    """Runs a tool on the command line and exits with its status."""
    try:
        run(arguments.parse_args())
    except RequestError as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
