"""A page of HTML that needs nothing besides itself: its style, its tables, its pictures."""

import base64
from collections.abc import Iterable, Mapping, Sequence
import contextlib
from html import escape
import io
from pathlib import Path
import re

import matplotlib
from matplotlib.figure import Figure

MIME = {'.png': 'image/png', '.jpg': 'image/jpeg', '.jpeg': 'image/jpeg'}
# colours of the page, by stand-ins that a drawing has in their place
_COLORS = {'#010203': 'ink', '#040506': 'accent', '#070809': 'second', '#0a0b0c': 'rule'}
_INK, _ACCENT, _SECOND, _RULE = _COLORS
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1d1f; --soft: #6e6e73; --rule: #d9d9de;
  --accent: #0a66c2; --second: #c2560a; --panel: #f6f6f8; }
@media (prefers-color-scheme: dark) { :root { --paper: #161618; --ink: #ececee; --soft: #9a9aa0;
  --rule: #38383c; --accent: #6cb2ff; --second: #ffa45c; --panel: #202024; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 52rem; padding: 3rem 1.5rem 5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .9rem; padding-top: .9rem;
  border-top: 1px solid var(--rule); }
p { margin: .6rem 0; }
p.soft, figcaption, summary, td.soft { color: var(--soft); font-size: .9rem; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .75rem; margin: 1.6rem 0 0; }
dl.tiles div { background: var(--panel); border-radius: .6rem; padding: .7rem .9rem; }
dl.tiles dt { color: var(--soft); font-size: .8rem; }
dl.tiles dd { margin: 0; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
pre, code { font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
pre { background: var(--panel); border-radius: .6rem; padding: .8rem 1rem; white-space: pre-wrap; }
figure { margin: 1.2rem 0; }
img { max-width: 100%; height: auto; border-radius: .4rem; display: block; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: inherit !important; }
details { margin: .8rem 0; }
summary { cursor: pointer; }
"""


def page(title: str, *parts: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        + '\n'.join(filter(None, parts))
        + '\n</body>\n</html>\n'
    )


def section(title: str, *parts: str) -> str:
    """'' where there is nothing in it."""
    inner = '\n'.join(filter(None, parts))
    return f'<section>\n<h2>{escape(title)}</h2>\n{inner}\n</section>' if inner else ''


def text(words: str, soft: bool = False) -> str:
    return f'<p{" class=soft" * soft}>{escape(words)}</p>' if words else ''


def code(words: str) -> str:
    return f'<pre>{escape(words)}</pre>' if words else ''


def tiles(figures: Mapping[str, str]) -> str:
    boxes = (f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in figures.items())
    return f'<dl class="tiles">{"".join(boxes)}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """'' without rows, no head where it is of ''. The first column is in the type of code."""
    lines = [
        f'<tr><td><code>{escape(first)}</code></td>'
        + ''.join(f'<td>{escape(cell)}</td>' for cell in others)
        + '</tr>'
        for first, *others in rows
    ]
    if not lines:
        return ''
    cells = ''.join(f'<th>{escape(cell)}</th>' for cell in head)
    top, body = f'<thead><tr>{cells}</tr></thead>\n' * any(head), '\n'.join(lines)
    return f'<table>\n{top}<tbody>\n{body}\n</tbody>\n</table>'


def folded(summary: str, inner: str) -> str:
    return f'<details><summary>{escape(summary)}</summary>\n{inner}\n</details>' * bool(inner)


def picture(path: Path, caption: str) -> str:
    kind, data = MIME[path.suffix.lower()], base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(caption)}" src="data:{kind};base64,{data}">'
        f'<figcaption>{escape(caption)}</figcaption></figure>'
    )


def style() -> contextlib.AbstractContextManager:
    """Settings of matplotlib under which a figure is drawn in the colours of the page."""
    return matplotlib.rc_context(
        {
            'svg.fonttype': 'none',
            'figure.facecolor': 'none',
            'figure.constrained_layout.h_pad': 0.1,  # inches
            'axes.facecolor': 'none',
            'savefig.facecolor': 'none',
            'axes.prop_cycle': matplotlib.cycler(color=[_ACCENT, _SECOND]),
            'axes.edgecolor': _RULE,
            'axes.spines.top': False,
            'axes.spines.right': False,
            'axes.titlelocation': 'left',
            'axes.titlesize': 11,
            'grid.color': _RULE,
            'text.color': _INK,
            'axes.labelcolor': _INK,
            'xtick.color': _INK,
            'ytick.color': _INK,
            'lines.linewidth': 1.6,
            'lines.markersize': 5,
            'font.size': 9.5,
        }
    )


def drawing(figure: Figure, caption: str) -> str:
    """A figure that was drawn under `style`."""
    file = io.StringIO()
    nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    figure.savefig(file, format='svg', metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :].strip()
    for stand_in, name in _COLORS.items():
        svg = svg.replace(stand_in, f'var(--{name})')
    # groups are numbered anew in every drawing, and nothing refers to them
    svg = re.sub(r' id="[A-Za-z.0-9]+_\d+"', '', svg)
    return f'<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>'
