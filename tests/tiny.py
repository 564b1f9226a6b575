"""A pre-training run so small that a test can afford many: 5 x 5 patches, 2 blocks of width 16, batches of 8."""
from pathlib import Path
import subprocess
import sys

REPOSITORY = Path(__file__).parents[1]


def settings(tokenizer_dir, **changed) -> dict:
    """The settings of a tiny run; `changed` replaces top-level settings, and entries of groups where it gives a dict."""
    config = {
        'task': 'pretrain', 'batch_size': 8, 'total_steps': 5, 'log_every': 1, 'evaluate_every': 2, 'save_every': 3, 'keep_checkpoints': 9,
        'compute_dtype': 'float32', 'tokenizer': {'path': str(tokenizer_dir)},
        'data': {'name': 'shapes', 'image_size': 20, 'num_examples': 37, 'num_evaluate_examples': 13, 'crop_scale': (0.5, 1.0)},
        'model': {'size': 'tiny', 'patch_size': 4, 'width': 16, 'depth': 2, 'heads': 2, 'hidden': 24, 'unroll': 2},
        'mask': {'patches': 11, 'min_block': 4},
        'optimizer': {'lr': 1e-2, 'warmup_steps': 1},
    }
    for name, value in changed.items():
        config[name] = config[name] | value if isinstance(value, dict) and name in config else value
    return config


def arguments(workdir, tokenizer_dir, **changed) -> list[str]:
    """The command line of the same run: main.py with the quickstart's recipe and every setting overridden."""
    flat = {}
    for name, value in settings(tokenizer_dir, **changed).items():
        flat |= {f'{name}.{key}': item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    flat.pop('task')
    return ['main.py', '--config=configs/quickstart/pretrain.py', f'--workdir={workdir}',
            *(f'--config.{key}={value}' for key, value in flat.items())]


def start(command: list[str], **environment) -> subprocess.Popen:
    """Starts python with `command` in the repository."""
    import os
    return subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'} | environment)


def run(command: list[str], *, timeout: float = 300, **environment) -> subprocess.CompletedProcess:
    process = start(command, **environment)
    stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
