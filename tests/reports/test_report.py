"""The page of a run: well-formed, with nothing outside it, with what the work directory says."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from beit_jax.errors import RequestError
from beit_jax.reports.run import report
from beit_jax.settings.recipes import load_recipe
from beit_jax.tools import report as tool
from tests.tools.call import call

VOID = {'meta', 'img', 'br', 'hr', 'input'}
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)
LAUNCH = {
    'time': 1.7e9,
    'step': 0,
    'command': ['main.py', '--config=configs/quickstart/pretrain.py', '--config.optimizer.lr=1e-3'],
    'host': 'a<b',
    'devices': 8,
    'device': 'TPU v4',
    'processes': 2,
    'machine': 'EPYC',
    'versions': {'jax': '0.10.2'},
}


class Strict(html.parser.HTMLParser):
    """Every element is closed in its turn, no identity is there twice, nothing is loaded."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.ids, self.named, self.pictures = [], [], [], set(), 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert len(given) == len(attrs), (tag, attrs)
        assert tag not in ('script', 'link', 'iframe', 'object', 'base'), tag
        for name, value in attrs:
            assert not name.startswith('on'), (tag, name)
            if name in ('src', 'href', 'xlink:href', 'srcset', 'poster', 'action'):
                assert value.startswith(('data:image/', '#')), (tag, value[:50])
                self.named |= {value[1:]} if value.startswith('#') else set()
            self.named |= set(re.findall(r'url\(#([^)]*)\)', value or ''))
            assert not re.search(r'url\((?!#)', value or '') and '@import' not in (value or '')
        self.ids += [given['id']] if 'id' in given else []
        self.pictures += tag == 'img'
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ['style']:
            assert '@import' not in data and 'url(' not in data
        self.words.append(data)


def parsed(text: str) -> Strict:
    page = Strict()
    page.feed(text)
    page.close()
    assert not page.open, page.open
    assert len(set(page.ids)) == len(page.ids) and page.named <= set(page.ids)
    return page


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """What a run leaves that was stopped once, with names that are no HTML."""
    folder = tmp_path_factory.mktemp('runs') / 'a & <b>'
    (folder / 'images').mkdir(parents=True)
    config = load_recipe('configs/quickstart/pretrain.py').to_dict()
    config['optimizer']['lr'] = 1e-3
    config['data']['path'] = '/data/<script>&'
    (folder / 'config.json').write_text(json.dumps(config))
    times = {'step_seconds': 0.5, 'images_per_second': 64.0, 'utilisation': 0.41, 'goodput': 0.8}
    rows = [
        {'step': 100, 'loss': 3.5, 'input_wait': 0.25} | times,
        {'step': 200, 'loss': None, 'input_wait': 0.5} | times,
        {'step': 200, 'eval/loss': 2.5, 'eval/accuracy': 0.75, 'eval/layer_01/cls': 0.5},
    ]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / 'metrics.jsonl').write_text(text + '<damaged>\n')
    again = LAUNCH | {'time': 1.7e9 + 60, 'step': 100, 'versions': {'jax': '0.10.3'}}
    (folder / 'launches.jsonl').write_text(f'{json.dumps(LAUNCH)}\n{json.dumps(again)}\n')
    for name in ('one.png', 'curves.png', '"two".jpg'):
        Image.fromarray(np.full((7, 11, 3), 99, np.uint8)).save(folder / 'images' / name)
    return folder


def test_page(workdir, tmp_path, capsys):
    call(tool, workdir=workdir, output=tmp_path / 'run.html')
    text = (tmp_path / 'run.html').read_text()
    page = parsed(text)
    words = ' '.join(page.words)
    for said in (
        'a & <b>',
        'pretrain, not done; step 200 of 1,600',
        'not finite',  # the loss of the last step
        '0.75',
        '41.0%',
        '1 more, in parts',
        '/data/<script>&',
        '--config.optimizer.lr=1e-3',
        '200 steps took 2 min; 2 min had passed since the first start; started 2 times',
        'a<b',
        'at first 0.10.2',
        '1 damaged lines of metrics.jsonl are left out',
    ):
        assert said in words, said
    assert page.pictures == 2  # the page has curves of its own
    # what was given on the command line is before what the recipe changed, and that before the rest
    places = [words.index(f' {name} ') for name in ('optimizer.lr', 'batch_size', 'seed')]
    assert places == sorted(places)


def test_a_run_that_has_only_begun(workdir, tmp_path):
    shutil.copy(workdir / 'config.json', tmp_path)
    words = ' '.join(parsed(report(tmp_path)).words)
    assert 'step 0 of 1,600' in words and 'Curves' not in words


def test_no_run(tmp_path):
    with pytest.raises(RequestError, match=r'there is no config.json; give the work directory'):
        call(tool, workdir=tmp_path, output=tmp_path / 'run.html')
    with pytest.raises(RequestError, match=r'give a file that ends in .html'):
        call(tool, workdir=tmp_path, output=tmp_path / 'run.txt')


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason='no Chromium is installed')
def test_in_a_browser(workdir, tmp_path):
    """It is drawn: paper, ink, and the colour of the curves."""
    (tmp_path / 'run.html').write_text(report(workdir))
    flags = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars'
    flags += ' --disable-background-networking --disable-component-update --disable-sync'
    command = [BROWSER, *flags.split(), f'--user-data-dir={tmp_path / "profile"}']
    command += ['--window-size=900,2400', f'--screenshot={tmp_path / "run.png"}']
    subprocess.run([*command, f'file://{tmp_path / "run.html"}'], check=True, timeout=300)
    drawn = np.asarray(Image.open(tmp_path / 'run.png').convert('RGB')).reshape(-1, 3)
    assert tuple(drawn[0]) == (255, 255, 255)
    for color in ((0x1D, 0x1D, 0x1F), (0x0A, 0x66, 0xC2)):
        assert np.sum(np.all(drawn == color, axis=1)) > 50, color
