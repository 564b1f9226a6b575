"""The notebooks, run from top to bottom in a kernel of Jupyter, in an empty folder: all but what
they install and what they download."""

import base64
import io
import re

from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
import nbformat
from PIL import Image
import pytest

import beit_jax
from beit_jax.settings.mapping import task_config
from beit_jax.tasks import make_task
from beit_jax.train.workdir.changes import write_config
from tests import tiny
from tests.installed import environment
from tests.studies.test_your_images import RECIPE

NOTEBOOKS = sorted((tiny.REPOSITORY / 'notebooks').glob('*.ipynb'))
COMMAND = re.compile(r'^( *)!(?:.*\\\n)*.*$', re.MULTILINE)  # of the shell, in a cell


def parameters(notebook):
    """The cell of what there is to change."""
    (cell,) = (cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ()))
    return cell


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(notebook, NAME=value, ...) -> (what it printed, its pictures).

    A cell after its settings sets them anew, as papermill does it; after each command of the shell
    its status is asked for, which Jupyter does not.

    Raises:
      CellExecutionError: of the first cell that fails.
    """
    home = {name: str(tmp_path / 'home') for name in ('IPYTHONDIR', 'JUPYTER_RUNTIME_DIR')}
    for name, value in (home | environment(tmp_path / 'installed')).items():
        monkeypatch.setenv(name, value)

    def execute(notebook, **settings):
        cell = parameters(notebook)
        for name in settings:
            assert re.search(f'^{name} = ', cell.source, re.MULTILINE), name
        for other in notebook.cells:
            if other.cell_type == 'code':
                other.source = COMMAND.sub(r'\g<0>\n\1assert _exit_code == 0', other.source)
        given = '\n'.join(f'{name} = {value!r}' for name, value in settings.items())
        notebook.cells.insert(notebook.cells.index(cell) + 1, nbformat.v4.new_code_cell(given))
        resources = {'metadata': {'path': str(tmp_path)}}
        NotebookClient(notebook, timeout=900, resources=resources).execute()
        outputs = [output for cell in notebook.cells for output in cell.get('outputs', ())]
        pictures = [
            Image.open(io.BytesIO(base64.b64decode(output.data['image/png'])))
            for output in outputs
            if 'image/png' in output.get('data', {})
        ]
        return ''.join(output.get('text', '') for output in outputs), pictures

    return execute


def read(name):
    return nbformat.read(tiny.REPOSITORY / 'notebooks' / name, as_version=4)


def test_quickstart(run, tmp_path, tokenizer_dir):
    """A photograph gets classes with probabilities, the same from the command and in Python."""
    names = tuple(f'kind {number}' for number in range(7))
    classify = task_config(tiny.classify_settings()).resolve(37, names)
    tiny.save_checkpoint(tmp_path / 'weights', make_task(classify), classes=names)
    pretrain = task_config(tiny.settings(tokenizer_dir))
    tiny.save_checkpoint(tmp_path / 'runs' / 'pretrain', make_task(pretrain))
    write_config(pretrain, tmp_path / 'runs' / 'pretrain')
    said, pictures = run(read('quickstart.ipynb'), WEIGHTS='weights', RUN='runs', TRAIN=False)
    (command,) = re.findall(r'grace_hopper.jpg  (kind \d) (0\.\d{3})', said)
    (python,) = re.findall(r'grace_hopper.jpg: (kind \d), (0\.\d{3})', said)
    assert command == python and 0.1 <= float(command[1]) < 1
    assert 'a vector for each picture: (1, 16)' in said
    attention, reconstructions = pictures
    assert attention.width > attention.height and reconstructions.height > reconstructions.width


def test_your_images(run, tmp_path):
    """From pictures that it draws to weights for timm."""
    # one block, and tokens of single pixels: to compile is most of what it takes
    smaller = {
        "'depth': 2": "'depth': 1",
        "'image_size': 10": "'image_size': 5",
        "groups': 2": "groups': 1",
    }
    recipe = RECIPE
    for more, less in smaller.items():
        assert more in recipe
        recipe = recipe.replace(more, less)
    (tmp_path / 'tiny.py').write_text(recipe)
    said, pictures = run(read('your_images.ipynb'), COUNT=61, RECIPE='tiny.py')
    assert '58 pictures in 10 folders to train on, 3 held out' in said
    assert len(pictures) == 3 and min(picture.width for picture in pictures) > 300
    for name in ('probe', 'probe_random'):
        assert re.search(name + r" \{'linear': '[\d.]+%', 'k-NN': '[\d.]+%'\}", said)
    assert (tmp_path / 'runs' / 'mine' / 'exported' / 'model.safetensors').is_file()


@pytest.mark.parametrize('code', ['!beit predict --chekpoint=W', 'if True:\n    !false\n1 + 1'])
def test_a_command_that_fails_fails_the_test(run, code):
    cells = [nbformat.v4.new_code_cell('A = 1', metadata={'tags': ['parameters']})]
    cells += [nbformat.v4.new_code_cell(code)]
    with pytest.raises(CellExecutionError, match='assert _exit_code == 0'):
        run(nbformat.v4.new_notebook(cells=cells), A=2)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_as_committed(path):
    """Nothing was run; the wheel that they install is that of this version; it is the same cell."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert not cell.outputs and cell.execution_count is None, cell.source
    assert path.stat().st_size < 20_000
    assert (
        f"PACKAGE = 'beit_jax-{beit_jax.__version__}-py3-none-any.whl'" in notebook.cells[2].source
    )
    assert notebook.cells[3].source == read('quickstart.ipynb').cells[3].source


@pytest.mark.parametrize(
    ('found', 'program', 'jax'),
    [
        ((), None, 'jax'),
        ((), 'nvidia-smi', 'jax[cuda13]'),
        (('jax_cuda12_plugin',), 'nvidia-smi', 'jax[cuda12]'),
        (('libtpu',), None, 'jax[tpu]'),
        (('beit_jax', 'libtpu'), None, None),
    ],
)
def test_what_is_installed(found, program, jax, monkeypatch):
    """Where beit_jax is missing: JAX for the accelerator that there is."""
    pip = '%pip install --quiet {PACKAGE} {jax} huggingface_hub'
    source, names = read('quickstart.ipynb').cells[3].source, {}
    assert source.count('%') == 1 and pip in source
    with monkeypatch.context() as patch:
        patch.setattr('importlib.util.find_spec', lambda name: name in found or None)
        patch.setattr('shutil.which', lambda name: program)
        exec(source.replace(pip, 'chosen = jax'), names)
    assert names.get('chosen') == jax
