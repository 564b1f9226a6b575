"""A pre-training run so small that a test can afford many: 5 x 5 patches, 2 blocks of width 16,
batches of 8."""

from pathlib import Path
import subprocess
import sys

REPOSITORY = Path(__file__).parents[1]


def settings(tokenizer_dir, **changed) -> dict:
    """The settings of a tiny run; `changed` replaces top-level settings, and entries of groups
    where it gives a dict."""
    config = {
        'task': 'pretrain',
        'batch_size': 8,
        'total_steps': 5,
        'log_every': 1,
        'evaluate_every': 2,
        'save_every': 3,
        'keep_checkpoints': 9,
        'compute_dtype': 'float32',
        'tokenizer': {'path': str(tokenizer_dir)},
        'data': {
            'name': 'shapes',
            'image_size': 20,
            'num_examples': 37,
            'num_evaluate_examples': 13,
            'crop_scale': (0.5, 1.0),
        },
        'model': {
            'size': 'tiny',
            'patch_size': 4,
            'width': 16,
            'depth': 2,
            'heads': 2,
            'hidden': 24,
            'unroll': 2,
        },
        'mask': {'patches': 11, 'min_block': 4},
        'optimizer': {'lr': 1e-2, 'warmup_steps': 1},
    }
    for name, value in changed.items():
        config[name] = config[name] | value if isinstance(value, dict) and name in config else value
    return config


def classify_settings(**changed) -> dict:
    """The settings of a tiny fine-tuning run, with every augmentation on."""
    config = settings('', **{'task': 'classify'} | changed)
    config['data'] = {'labels_per_class': 0} | config['data']
    config['model'] = {'positions': 'layer_bias', 'layer_scale': 0.1} | config['model']
    return {name: value for name, value in config.items() if name not in ('tokenizer', 'mask')}


def segment_settings(**changed) -> dict:
    """The settings of a tiny segmentation run, with every augmentation and dropout on."""
    config = settings('', **{'task': 'segment'} | changed)
    # one block: compiling is what takes the time
    model = {'positions': 'layer_bias', 'layer_scale': 0.1, 'drop_path': 0.2, 'depth': 1}
    config['model'] = config['model'] | model | changed.get('model', {})
    config['head'] = {'channels': 8, 'auxiliary_channels': 8, 'pool_scales': (1, 2)} | changed.get(
        'head', {}
    )
    return {name: value for name, value in config.items() if name not in ('tokenizer', 'mask')}


def arguments(workdir, tokenizer_dir, **changed) -> list[str]:
    """The command line of the same run: main.py with the quickstart's recipe and every setting
    overridden."""
    return _command(workdir, 'pretrain', settings(tokenizer_dir, **changed))


def classify_arguments(workdir, **changed) -> list[str]:
    return _command(
        workdir,
        'finetune',
        {'init': '', 'mix': {'mixup': 0.8, 'cutmix': 1.0}, 'erase': 0.25}
        | classify_settings(**changed),
    )


def _command(workdir, recipe, config) -> list[str]:
    flat = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= {f'{name}.{key}': item for key, item in value.items()}
        elif name != 'task':
            flat[name] = value
    return [
        'main.py',
        f'--config=configs/quickstart/{recipe}.py',
        f'--workdir={workdir}',
        *(f'--config.{key}={value}' for key, value in flat.items()),
    ]


def save_checkpoint(workdir, task, seed: int = 0, classes=()):
    """Writes what a run of `task` would, with fresh parameters; returns them."""
    from beit_jax.train import state as states
    from beit_jax.train.workdir.checkpoint import Checkpoints

    params, checkpoints = states.initial_params(task, seed), Checkpoints(workdir)
    checkpoints.save(
        {'params': params},
        1,
        {'task': task.config.task, 'architecture': task.describe(), 'classes': classes},
    )
    checkpoints.close()
    return params


def start(command: list[str], **environment) -> subprocess.Popen:
    """Starts python with `command` in the repository."""
    import os

    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'} | environment,
    )


def start_pair(
    command: list[str], *flags: str, second: tuple[str, ...] = (), **environment
) -> list[subprocess.Popen]:
    """Starts two processes of `command` that make one run, each with one device; `second`: flags of
    the second one alone."""
    import socket

    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    flags = (f'--coordinator=127.0.0.1:{port}', '--num_processes=2', *flags)
    return [
        start([*command, *flags, *own, f'--process_id={i}'], JAX_NUM_CPU_DEVICES='1', **environment)
        for i, own in enumerate([(), second])
    ]


def run(command: list[str], *, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    process = start(command, **environment)
    stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
