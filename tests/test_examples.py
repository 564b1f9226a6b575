"""examples/, docker/ and the commands of notebooks/: every command line parses, as those of the
docs do; the batch script of SLURM is run, with an `srun` of two processes in place of SLURM's."""

import json
import os
import re
import shlex
import socket
import subprocess

import pytest
import yaml

from tests import tiny
from tests.installed import environment
from tests.photos import write_photos
from tests.test_docs import check_beit

EXAMPLES = tiny.REPOSITORY / 'examples'
SBATCH = EXAMPLES / 'slurm' / 'pretrain.sbatch'
# kind -> the API that has it
KINDS = {
    'Job': 'batch/v1',
    'JobSet': 'jobset.x-k8s.io/v1alpha2',
    'PersistentVolumeClaim': 'v1',
}


def joined(text: str, comment: str = '') -> list[str]:
    """Lines, those that a backslash continues as one; `comment`: what each begins with."""
    return re.sub(rf'\\\n{comment}', ' ', text).splitlines()


def of_notebooks():
    for file in (tiny.REPOSITORY / 'notebooks').glob('*.ipynb'):
        for cell in json.loads(file.read_text())['cells']:
            if cell['cell_type'] == 'code':
                for line in joined(''.join(cell['source'])):
                    if line.lstrip().startswith('!beit '):
                        words = shlex.split(line.lstrip().removeprefix('!beit '))
                        yield file, [re.sub(r'\{\w+\}', 'X', word) for word in words]


def of_dockerfiles():
    for file in (tiny.REPOSITORY / 'docker').glob('*'):
        for line in joined(file.read_text(), '#'):
            if line.startswith('#   docker run '):
                words = shlex.split(line.removeprefix('#'))
                yield file, words[words.index(f'beit:{file.stem}') + 1 :]


def of_slurm():
    for line in joined(SBATCH.read_text()):
        if line.startswith('srun beit '):
            with_recipe = re.sub(r'\$\{RECIPE:-([^}]*)\}', r'\1', line).replace('"$@"', '')
            yield SBATCH, shlex.split(re.sub(r'\$\{\w+:.*?\}', 'X', with_recipe))[2:]


def documents(file):
    return list(yaml.safe_load_all(file.read_text()))


def jobs(document):
    """What a Job says, wherever it stands."""
    if document['kind'] == 'Job':
        return [document['spec']]
    return [job['template']['spec'] for job in document['spec'].get('replicatedJobs', ())]


def of_gke():
    for file in (EXAMPLES / 'gke').glob('*.yaml'):
        for job in (job for document in documents(file) for job in jobs(document)):
            for container in job['template']['spec']['containers']:
                yield file, container['args']


COMMANDS = [*of_notebooks(), *of_dockerfiles(), *of_slurm(), *of_gke()]


@pytest.mark.parametrize(
    ('file', 'words'), COMMANDS, ids=[f'{file.name} {words[0]}' for file, words in COMMANDS]
)
def test_command(file, words):
    check_beit(words)


def test_commands_are_found():
    found = [file.name for file, _ in COMMANDS]
    assert found.count('quickstart.ipynb') == 5 and found.count('your_images.ipynb') == 2
    names = ('gpu.Dockerfile', 'tpu.Dockerfile', SBATCH.name, 'gpu.yaml', 'tpu-v5e.yaml')
    assert all(found.count(name) == 1 for name in names)


@pytest.mark.parametrize('file', sorted((EXAMPLES / 'gke').glob('*')), ids=lambda file: file.name)
def test_gke(file):
    """Kinds that there are; a bad request is not repeated, all else is; chips as many as are asked
    for; the volume is one that is claimed, and mounted where the run writes."""
    claims = set()
    for document in documents(file):
        assert document['apiVersion'] == KINDS[document['kind']] and document['metadata']['name']
        if document['kind'] == 'PersistentVolumeClaim':
            claims.add(document['metadata']['name'])
        for job in jobs(document):
            pod = job['template']['spec']
            (container,), (volume,) = pod['containers'], pod['volumes']
            (rule,), several = job['podFailurePolicy']['rules'], job.get('parallelism', 1) > 1
            refused = {'containerName': container['name'], 'operator': 'In', 'values': [2]}
            assert rule == {'action': 'FailJob', 'onExitCodes': refused}
            assert pod['restartPolicy'] == 'Never'  # else there is no podFailurePolicy
            assert pod['terminationGracePeriodSeconds'] >= 120
            assert volume['persistentVolumeClaim']['claimName'] in claims
            (mounted,) = container['volumeMounts']
            assert mounted['name'] == volume['name']
            assert f'--workdir={mounted["mountPath"]}/W' in container['args']
            ((resource, chips),) = container['resources']['limits'].items()
            if several:
                assert document['kind'] == 'JobSet' and job['backoffLimit'] == 0
                (again,) = document['spec']['failurePolicy']['rules']
                assert again['onJobFailureReasons'] == ['PodFailurePolicy']
                rows, columns = pod['nodeSelector']['cloud.google.com/gke-tpu-topology'].split('x')
                assert job['parallelism'] == job['completions']
                assert int(rows) * int(columns) == job['parallelism'] * chips
                assert resource == 'google.com/tpu'
            else:
                assert resource == 'nvidia.com/gpu' and chips == 1


# two hosts with a task each, as SLURM's srun sets them going
SRUN = """\
#!/bin/bash
for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=2 \\
        SLURM_STEP_NODELIST=localhost "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait $task || status=$?; done
exit ${status:-0}
"""


def free_job() -> int:
    """A number of a job whose port (jax: 61440 + number % 4096) is free."""
    for number in range(4096):
        with socket.socket() as one:
            if one.connect_ex(('localhost', 61440 + number)):
                return number
    raise AssertionError('no port is free')


def submit(tmp_path, programs, *words, **variables):
    """(exit status, stdout and stderr, what scontrol was told) of the script."""
    programs = {'scontrol': f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n'} | programs
    folder = tmp_path / 'venv' / 'bin'
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    given = {'VENV': tmp_path / 'venv', 'SLURM_JOB_ID': free_job()} | variables
    done = subprocess.run(
        ['bash', SBATCH, *words],
        cwd=tmp_path,
        env=os.environ | {name: str(value) for name, value in given.items()},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    told = tmp_path / 'told'
    return done.returncode, done.stdout + done.stderr, told.read_text() if told.exists() else ''


@pytest.mark.parametrize('status', [0, 2, 74, 75, 137])
def test_slurm_queues_again(status, tmp_path):
    """But what is done, or a bad request."""
    variables = {'WORKDIR': 'W', 'DATA': 'a b', 'TOKENIZER': 'T', 'SLURM_JOB_ID': '31'}
    srun = f'#!/bin/bash\nprintf "%s\\n" "$@"\nexit {status}\n'
    words = ('--config.batch_size=512', '--config.seed=3')
    ended, said, told = submit(tmp_path, {'srun': srun}, *words, **variables)
    assert ended == status and told == ('' if status in (0, 2) else 'requeue 31\n')
    expected = ['--workdir=W', '--config.data.path=a b', '--config.tokenizer.path=T']
    config = '--config=pretrain_imagenet1k:large'
    assert said.splitlines() == ['beit', 'train', config, *expected, *words]


def test_slurm_without_a_place_to_write(tmp_path):
    ended, said, told = submit(tmp_path, {'srun': '#!/bin/sh\n'})
    assert ended and not told and 'WORKDIR: the work directory' in said


def test_slurm_options():
    """sbatch reads options above the first command, each as it is spelled."""
    above = SBATCH.read_text().partition('\nexport')[0]
    options = dict(re.findall(r'^#SBATCH --([a-z-]+)=?(.*)$', above, re.MULTILINE))
    assert options['ntasks-per-node'] == '1' and options['signal'] == 'TERM@120'
    assert SBATCH.read_text().count('#SBATCH') == len(options)


@pytest.mark.slow
def test_slurm_runs(tmp_path, tokenizer_dir):
    """A run of two processes, which SLURM's variables bring together."""
    write_photos(tmp_path / 'photos')
    data = {'name': 'folder', 'holdout': 0.25}
    settings = tiny.arguments('', '', total_steps=2, data=data)[3:]
    settings.remove('--config.tokenizer.path=')
    ended, said, told = submit(
        tmp_path,
        {'srun': SRUN},
        *settings,
        **environment(tmp_path / 'venv' / 'bin'),
        RECIPE='quickstart/pretrain',
        WORKDIR='W',
        DATA=tmp_path / 'photos',
        TOKENIZER=tokenizer_dir,
        JAX_NUM_CPU_DEVICES=1,
    )
    assert ended == 0 and not told, said
    assert 'data 2' in said and (tmp_path / 'W' / 'checkpoints' / '2').is_dir()
