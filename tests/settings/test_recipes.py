"""Recipes as a person meets them: on the command line."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from beit_jax.errors import RequestError
from beit_jax.settings.mapping import task_config
from beit_jax.studies import study
from beit_jax.tools import fit_tokenizer
from tests import tiny

STUDIES = sorted((tiny.REPOSITORY / 'configs' / 'studies').glob('*.py'))
CONFIGS = sorted(set((tiny.REPOSITORY / 'configs').rglob('*.py')) - set(STUDIES))
GOLDEN = Path(__file__).parents[1] / 'golden' / 'configs'


def load(path: Path):
    spec = importlib.util.spec_from_file_location('recipe', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    'path', CONFIGS, ids=lambda path: str(path.relative_to(tiny.REPOSITORY / 'configs'))
)
def test_every_recipe_and_variant(path):
    module = load(path)
    assert 'main.py --config=configs/' in module.__doc__, 'the docstring tells how to run it'
    for variant in ('', *module.VARIANTS):
        task_config(module.get_config(variant).to_dict())


@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_every_study(path, monkeypatch):
    """The settings of every run are valid."""
    monkeypatch.chdir(tiny.REPOSITORY)
    found, about = study.load_study(path)
    assert f'tools.study --study=configs/studies/{path.name}' in about, (
        'the docstring tells how to run it'
    )
    for run in study.plan(dataclasses.replace(found, seeds=1), Path('w')):
        if run.stage == 'fit_tokenizer':
            given = run.config('')['arguments'].split()
            fit_tokenizer._arguments().parse_args([*given, '--output', 'o'])
        else:
            task_config(study._load(run.recipe, run.settings))


def test_stages_of_your_images():
    """Every stage in every size; the number of pictures bounds the steps of pre-training."""
    module = load(tiny.REPOSITORY / 'configs' / 'your_images.py')
    sizes = {'laptop': 'tiny', 'gpu': 'base', 'gpu,small': 'small'}
    for size, encoder in sizes.items():
        for stage, task in {name: task for name, (task, _) in module.LAPTOP.items()}.items():
            config = task_config(module.get_config(f'{stage},{size},pictures=9000').to_dict())
            assert config.task == task and config.data.holdout == 0.05
            assert stage == 'tokenizer' or config.model.size == encoder
    steps = lambda given: module.get_config(given).total_steps
    found = [steps(f'pretrain,pictures={count}') for count in (149, 6400, 50_000)]
    assert found == [1000, 20 * 6400 / 64, 4000]
    assert steps('pretrain,gpu,pictures=51200') == 300 * 100
    assert steps('pretrain,pictures=149,total_steps=7') == 7
    with pytest.raises(RequestError, match='pictures=many: give the number of pictures'):
        module.get_config('pictures=many')


RECIPES = (
    'tokenizer_imagenet1k:v8192',
    'tokenizer_vqkd_imagenet1k:decoder3',
    'pretrain_imagenet1k:base',
    'pretrain_imagenet1k:large',
    'pretrain_imagenet1k:base,vanilla',
    'pretrain_imagenet22k:large',
    'pretrain_imagenet1k:v2',
    'pretrain_imagenet1k:v2_large_300',
    'finetune_imagenet1k:base',
    'finetune_imagenet1k:large',
    'finetune_imagenet1k:base,vanilla',
    'finetune_imagenet1k:base_intermediate,384',
    'finetune_imagenet1k:large_intermediate,512',
    'finetune_imagenet1k:v2',
    'finetune_imagenet1k:v2_large_intermediate',
    'finetune_imagenet22k:base',
    'finetune_imagenet22k:large',
    'scratch_imagenet1k:base',
    'finetune_cifar100:base',
    'probe_imagenet1k:base',
    'segment_ade20k:base',
    'segment_ade20k:intermediate,640',
    'segment_ade20k:large,640',
)


@pytest.mark.parametrize('name', RECIPES)
def test_golden(name):
    """The resolved settings of the paper's recipes. To write them anew:
    python -m tests.settings.test_recipes"""
    assert json.loads((GOLDEN / f'{name.replace(":", "_")}.json').read_text()) == resolved(name)


def resolved(name: str) -> dict:
    recipe, _, variant = name.partition(':')
    module = load(tiny.REPOSITORY / 'configs' / f'{recipe}.py')
    settings = task_config(module.get_config(variant).to_dict())
    return json.loads(json.dumps(dataclasses.asdict(settings)))


def test_variants_and_settings_behind_the_colon():
    module = load(tiny.REPOSITORY / 'configs' / 'pretrain_imagenet1k.py')
    config = module.get_config('large,vanilla,epochs=300,data.path=/x,data.flip=false')
    assert (config.model.size, config.model.positions) == ('large', 'absolute')
    assert (config.epochs, config.data.path, config.data.flip) == (300.0, '/x', False)
    for variant, expected in (
        ('pixels,random', ('pixels', 'masked', 'random')),
        ('unmasked,pixels', ('pixels', 'all', 'none')),
    ):
        config = task_config(module.get_config(variant).to_dict())
        assert (config.target, config.predict, config.mask.kind) == expected
    with pytest.raises(RequestError, match=r"no variant 'huge'. Variants: base, large"):
        module.get_config('huge')
    message = r'config.data.pth is not a setting. Did you mean data.path\?'
    with pytest.raises(RequestError, match=message):
        module.get_config('data.pth=/x')
    with pytest.raises(RequestError, match=r'config.epochs=many: it takes float'):
        module.get_config('epochs=many')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--config.model.sise=tiny'],
            'config.model.sise is not a setting of this recipe. Did you mean model.size?',
        ),
        (['--config.batch_size=many'], 'batch_size'),
        (
            ['--config.batch_size=7', '--config.accumulate_steps=2'],
            'config.batch_size 7 is not a multiple of config.accumulate_steps 2',
        ),
        (['--mode=trian'], 'mode'),
        (['stray'], 'is not a flag'),
        (['--batch_size=8'], '--batch_size is not a flag, but a setting: --config.batch_size.'),
        (['--workdir='], '--workdir is empty: give a path'),
        (['--workdir=ftp://host/run'], 'give a local path, or one of gs://, s3://'),
        (['--workdir=gs:/bucket/run'], '--workdir=gs:/bucket/run is not local'),
        (['--mode=evaluate'], 'holds no checkpoint to evaluate: give --config.init=CHECKPOINT'),
        (['--config=configs/quickstart/pretrain.py:fast'], "no variant 'fast'"),
        (['--config=~/nothing.py'], f'--config={Path.home()}/nothing.py is no file'),
        (['--workdir=/proc/nothing'], '--workdir=/proc/nothing cannot be written'),
        (['--config.data.name=folder', '--config.data.path=/nowhere'], '/nowhere'),
        (['--config.model.attention=cudnn'], "cuDNN is for NVIDIA's GPUs, this is a cpu"),
        (['--config.model.attention=flash'], 'Allowed: auto, plain, cudnn, pallas'),
        (['--config.mesh.data=3'], 'does not make the 1 devices'),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else '',
)
def test_bad_command_line(arguments, message, tmp_path, tokenizer_dir):
    command = ['main.py', '--config=configs/quickstart/pretrain.py', f'--workdir={tmp_path}']
    command += [f'--config.tokenizer.path={tokenizer_dir}', '--config.tokenizer.image_size=12']
    done = tiny.run([*command, *arguments])
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and 'Traceback' not in done.stderr
    noise = 'WARNING', 'I0', 'W0', 'E0'
    lines = [line for line in done.stderr.splitlines() if not line.startswith(noise)]
    assert len(lines) <= 2, done.stderr


if __name__ == '__main__':
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for golden in RECIPES:
        path = GOLDEN / f'{golden.replace(":", "_")}.json'
        path.write_text(json.dumps(resolved(golden), indent=1) + '\n')
