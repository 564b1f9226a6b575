"""How tests run a tool: as its command line would, in this process."""


def call(tool, *words, **options) -> None:
    """tool: its module; `words` as they are, then options as --NAME=VALUE."""
    given = [*map(str, words), *(f'--{name}={value}' for name, value in options.items())]
    tool.run(tool._arguments().parse_args(given))
