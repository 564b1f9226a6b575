"""`beit COMMAND`, or `python -m beit_jax COMMAND`: main.py and the tools under one name. Nothing
heavy is imported before the command is known, and no tool to tell what it does."""

import ast
import importlib
from pathlib import Path
import re
import sys
import textwrap

from beit_jax import __version__
from beit_jax.errors import RequestError, check, nearest

TOOLS = Path(__file__).with_name('tools')
MODES = {
    'train': 'Trains a recipe; again, and it goes on where it stopped',
    'evaluate': 'Evaluates the last checkpoint of a run, or any with --config.init',
}
# in the order in which a person needs them; what is in none of them comes last
GROUPS = {
    'The first look': ('your-images',),
    'Pictures': ('prepare', 'check-data', 'shrink'),
    'Tokenizers': ('import-tokenizer', 'fit-tokenizer', 'evaluate-tokenizer', 'tokenize'),
    'Training': ('plan', 'train', 'evaluate', 'curves', 'report'),
    'What a model has learned': ('predict', 'embed', 'reconstruct', 'attention', 'neighbours'),
    "Weights of others, and for others' code": ('inspect', 'import', 'export'),
    'Comparing': ('study', 'benchmark'),
}
START = """\
usage: beit COMMAND [options]    (or python -m beit_jax COMMAND)

BEiT: pre-training of vision transformers from unlabelled pictures, and what comes after it.
"""
END = """\
beit COMMAND --help                    its options, and an example
beit train --config=RECIPE --help      every setting of a recipe, with its default
beit train --config=quickstart/tokenizer --workdir=runs/tokenizer    a first run, in a minute
"""


def tools() -> dict[str, tuple[str, str]]:
    """command -> (its module, what it does, as its docstring begins), for every file of
    beit_jax/tools that has a command line."""
    found = {}
    for file in sorted(TOOLS.glob('*.py')):
        tree = ast.parse(file.read_text())
        if any(getattr(node, 'name', '') == '_arguments' for node in tree.body):
            command = file.stem.removesuffix('_weights').replace('_', '-')
            sentence = re.match(r'.+?(?:\?|(?=[.:;]\s))', ' '.join(ast.get_docstring(tree).split()))
            found[command] = f'beit_jax.tools.{file.stem}', sentence[0]
    return found


def page() -> str:
    """What `beit --help` prints."""
    lines = MODES | {command: line for command, (_, line) in tools().items()}
    others = tuple(lines.keys() - {command for group in GROUPS.values() for command in group})
    blocks = [START]
    for title, commands in (GROUPS | {'Others': tuple(sorted(others))}).items():
        rows = ''.join(f'  {command:20}{lines[command]}\n' for command in commands)
        blocks.append(f'{title}\n{rows}' if commands else '')
    return '\n'.join(filter(None, [*blocks, textwrap.indent(END, '  ')]))


def run(command: str, words: list[str]) -> None:
    """Runs a command as its own program would, and exits with its status.

    Raises:
      RequestError: there is no such command.
    """
    sys.argv = [f'beit {command}', *words]
    if command in MODES:
        check(
            not any(word.lstrip('-').startswith('mode') for word in words),
            f'beit {command} has no --mode: beit train and beit evaluate are two commands.',
        )
        importlib.import_module('beit_jax.main').run([sys.argv[0], f'--mode={command}', *words])
    known = tools()
    check(
        command in known,
        f'beit has no command {command!r}.{nearest(command, [*MODES, *known])} `beit --help` lists '
        'them.',
    )
    module, _ = known[command]
    tool = importlib.import_module(module)
    parser = tool._arguments()
    parser.prog = f'beit {command}'
    parser.epilog = parser.epilog.replace(f'python -m {module}', parser.prog)
    tool.arguments.main(tool.run, parser)


def main() -> None:
    """The program `beit`."""
    command, *words = sys.argv[1:] or ['--help']
    if command in ('--help', '-h', 'help'):
        print(page(), end='')
    elif command == '--version':
        print(__version__)
    else:
        # here and not above: the page needs nothing of it
        from beit_jax.runtime import take_huge_pages

        take_huge_pages()
        try:
            run(command, words)
        except RequestError as error:
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)


if __name__ == '__main__':
    main()
