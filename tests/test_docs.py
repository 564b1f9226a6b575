"""README and the pages of docs/: every command line parses, every setting, path and message is in
the code, every link leads somewhere, every block of Python compiles. Nothing is run."""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import itertools
from pathlib import Path
import re
import shlex

from absl import flags
import pytest

from beit_jax.__main__ import MODES, tools
from beit_jax.errors import RequestError
import beit_jax.main  # noqa: F401 - its flags
from beit_jax.settings.mapping import TASKS, task_config
from beit_jax.settings.overrides import flat, override
from beit_jax.settings.recipes import load_recipe, recipe
from beit_jax.weights.models import Model

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / 'README.md'
PAGES = [README, *sorted((REPOSITORY / 'docs').rglob('*.md')), *REPOSITORY.glob('CONTRIBUTING.md')]
BLOCK = re.compile(r'^ *```(\w*)\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r'python3? (main\.py|-m |-c )|\bmake |pip install |\bbeit [a-z-]+ ')
# config.data.path or config.data.path=DIR, but no config.json
SETTING = re.compile(r'(?<![\w/])config\.(?!json)([a-z0-9_.]+)(?![\w.])(?:=([\w.-]+)(?=\s|$))?')
PROGRAMS = ('beit', 'python', 'python3', '.venv/bin/python', 'make', 'pip', '.venv/bin/pip')


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each block of code."""
    return BLOCK.findall(page.read_text())


def prose(page: Path) -> str:
    return BLOCK.sub('', page.read_text())


def codes(page: Path) -> list[str]:
    """What stands in `...`."""
    return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(page))]


def placeholder(value: str) -> bool:
    """DIR, N, HOST:PORT: stands for any value."""
    return value == '...' or bool(re.fullmatch(r'[A-Z][A-Z_:]*', value))


def commands_in(text: str):
    """The words of each command of a line of shell that is checked here."""
    if not COMMAND.search(text):
        return
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for between, group in itertools.groupby(lexer, lambda word: set(word) <= set('();<>|&')):
        words = [re.sub(r'\$\w+', '0', word) for word in group]  # $i of a loop of the shell
        for quoted in words:
            if ' ' in quoted and not quoted.startswith('import '):
                yield from commands_in(quoted)
        while words and words[0] not in PROGRAMS:
            del words[0]
        if words and not between:
            yield words


def commands(page: Path):
    lines = [code for code in codes(page) if code.startswith(PROGRAMS)]
    for language, text in blocks(page):
        if language in ('', 'bash', 'sh'):
            lines += text.replace('\\\n', ' ').splitlines()
    for line in lines:
        yield from commands_in(line)


COMMANDS = {shlex.join(words): (name_of(page), words) for page in PAGES for words in commands(page)}


@pytest.mark.parametrize('line', COMMANDS)
def test_command(line):
    page, words = COMMANDS[line]
    program, *arguments = words
    try:
        if program == 'make':
            check_make(arguments)
        elif program == 'beit':
            check_beit(arguments)
        elif program.endswith('pip'):
            check_pip(arguments)
        elif arguments[0] == '-c':
            ast.parse(arguments[1])
        elif arguments[0] == '-m':
            check_module(arguments[1], arguments[2:])
        else:
            check_main(arguments)
    except (RequestError, AssertionError, SyntaxError, ValueError) as error:
        pytest.fail(f'{page}: {line}\n{error}', pytrace=False)


def check_make(words):
    makefile = (REPOSITORY / 'Makefile').read_text()
    for word in words:
        name, equals, _ = word.partition('=')
        assert re.search(rf'^{name} \?=' if equals else rf'^{name}:', makefile, re.MULTILINE), word


def check_pip(words):
    assert words[0] == 'install'
    for before, word in itertools.pairwise(words):
        if before == '-r':
            assert (REPOSITORY / word).is_file(), word
        else:
            assert re.fullmatch(r'-\w+|[\w.-]+(\[\w+\])?', word), word


def check_beit(words):
    """As `beit` takes them: a command of main.py, or a tool."""
    name, *rest = words or ['--help']
    if name not in ('COMMAND', '--help', *MODES) and rest != ['--help']:
        check_module(tools()[name][0], rest)
    elif name in MODES:
        check_main(['main.py', *rest])


def check_main(words):
    """As main.py takes them: its flags, and settings of its recipe."""
    assert words[0] == 'main.py', 'only main.py is a program'
    given = {}
    helps = '--help' in words
    for word in words[1:] if not helps else words[1:-1]:
        name, equals, value = word.removeprefix('--').partition('=')
        if word != '...':
            assert word.startswith('--') and equals, f'{word} is not a flag'
            given[name] = value
    for name, value in given.items():
        if not name.startswith('config'):
            assert name in flags.FLAGS, f'--{name} is not a flag'
            if not placeholder(value):
                flags.FLAGS[name].parser.parse(value)
    assert helps or {'config', 'workdir'} <= given.keys()
    overrides = {name: value for name, value in given.items() if name.startswith('config.')}
    check_settings(given.get('config', 'RECIPE'), overrides)


def check_module(module, words):
    """As `python -m` takes them: a tool with its own parser."""
    check_paths(words)
    if module == 'beit_jax':
        return check_beit(words)
    if not module.startswith('beit_jax.tools.'):
        assert importlib.util.find_spec(module), f'there is no module {module}'
        return None
    parser = importlib.import_module(module)._arguments()
    # `...` stands for the values of the option before it, else for more options
    kept = [
        word
        for before, word in itertools.pairwise(['', *words])
        if word != '...' or (before.startswith('--') and '=' not in before)
    ]
    for action in parser._actions if not words or len(kept) < len(words) else ():
        action.required = False
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            options, rest = parser.parse_known_args(kept)
        except SystemExit:
            raise AssertionError(complaint.getvalue()) from None
    assert 'config' in options or not rest, f'unrecognized arguments: {rest}'
    overrides = dict(word.removeprefix('--').split('=', 1) for word in rest)
    if getattr(options, 'config', None):
        check_settings(options.config, overrides)


def check_settings(config: str, overrides: dict[str, str]):
    """What --config and --config.KEY=VALUE say: a recipe that is there, settings that it has, and
    values that it takes together. A [part] in brackets may be left out."""
    if placeholder(config) or config.endswith('.json'):  # of a run
        return
    for written in {re.sub(r'\[.*?\]', '', config), re.sub(r'[\[\]]', '', config)}:
        path, _, variant = written.partition(':')
        settings = load_recipe(path, variant)
        for name, value in overrides.items():
            key = name.removeprefix('config.')
            if placeholder(value):
                assert key in flat(settings), f'{name} is not a setting'
            else:
                override(settings, key, value)
        task_config(settings)


def check_paths(words):
    for word in words:
        path = word.rpartition('=')[2].partition(':')[0]
        if re.match(r'(beit_jax|configs|docker|docs|examples|notebooks|tests)/[\w./]*\w$', path):
            assert (REPOSITORY / path).exists(), f'there is no {path}'


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_names_in_the_text(page):
    """Paths, recipes and settings that a page names outside of commands."""
    settings = [recipe(task) for task in TASKS]
    known = {key: config for config in settings for key in flat(config)}
    groups = {key.rpartition('.')[0] for key in known}
    for code in codes(page):
        if ' ' not in code:
            check_paths([code])
        if re.fullmatch(r'configs/(quickstart/)?\w+\.py(:\S+)?', code):
            check_settings(code, {})
        for key, value in SETTING.findall(code):
            assert key in known or key in groups, f'config.{key} is not a setting'
            if value and not placeholder(value):
                override(known[key], key, value)


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links(page):
    for link in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'`[^`]+`', 'code', prose(page))):
        target, _, anchor = link.partition('#')
        if re.match(r'\w+:', link):
            continue
        file = page.parent / target if target else page
        assert file.exists(), f'{link}: there is no {target}'
        assert not anchor or anchor in anchors(file), f'{link}: there is no such heading'


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    found = []
    for heading in re.findall(r'^#+ (.+)$', prose(page), re.MULTILINE):
        text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).lower()
        anchor = re.sub(r'[^\w\- ]', '', text).replace(' ', '-')
        found.append(anchor + f'-{found.count(anchor)}' * (anchor in found))
    return set(found)


PYTHON = [(page, text) for page in PAGES for language, text in blocks(page) if language == 'python']


@pytest.mark.parametrize(('page', 'text'), PYTHON, ids=[name_of(page) for page, _ in PYTHON])
def test_python(page, text):
    """It compiles, what it imports from the package is there, and so is what it asks of a model
    that it has loaded."""
    models = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith('beit_jax'):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name), alias.name
        if isinstance(node, ast.Assign) and 'beit_jax.load(' in ast.unparse(node.value):
            models |= {ast.unparse(target) for target in node.targets}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in models:
            check_attribute(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func).partition('.')[0] in models:
            method = getattr(Model, node.func.attr)
            given = {keyword.arg: None for keyword in node.keywords}
            inspect.signature(method).bind(None, *node.args, **given)


def check_attribute(name: str):
    assert name in Model.__dataclass_fields__ or hasattr(Model, name), f'no Model has {name}'


def test_methods_of_a_model():
    """Those that docs/api.md lists, with their arguments and defaults."""
    listed = re.findall(r'`model\.(\w+)(\(.*?\))?`', prose(REPOSITORY / 'docs' / 'api.md'))
    assert len(listed) > 10
    for name, arguments in listed:
        check_attribute(name)
        if arguments:
            parameters = [
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in inspect.signature(getattr(Model, name)).parameters.values()
            ]
            assert str(inspect.Signature(parameters[1:])) == arguments, name


def test_messages():
    """What docs/troubleshooting.md quotes in bold is said somewhere."""
    said = '\n'.join(
        node.value
        for file in (REPOSITORY / 'beit_jax').rglob('*.py')
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    text = ' '.join(prose(REPOSITORY / 'docs' / 'troubleshooting.md').split())
    quoted = re.findall(r'\*\*`([^`]+)`\*\*', text)
    assert len(quoted) > 20
    assert not [message for message in quoted if message not in said]


def test_recipes_of_the_readme():
    """Each row of the table, with the variants that it appends as `,variant`."""
    rows = re.findall(r'^\| `(configs/[^`]+)` \|(.*)$', README.read_text(), re.MULTILINE)
    assert len(rows) > 15
    for config, rest in rows:
        check_settings(config, {})
        for variant in re.findall(r'`(,\w+)`', rest):
            check_settings(config + variant, {})


def test_length_of_the_readme():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_width(page):
    """At most 100 columns, but for tables and links, and for reports, which are generated."""
    if page.name == 'report.md':
        return
    wide = [
        line
        for line in page.read_text().splitlines()
        if len(line) > 100 and not line.startswith('|') and '](' not in line and '//' not in line
    ]
    assert not wide
