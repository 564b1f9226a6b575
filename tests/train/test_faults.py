"""Real processes of every task, ended at random moments and started again: nothing is lost, nothing
is learned twice. And the loop of docs/runs.md around runs whose disk or data go and come back.

`make test` runs 5 trials of pre-training on JPEG files, `make test-newest` 3 others,
`make test-faults` 30 of each task, and the rest.
"""

import functools
import json
import os
import random
import shutil
import signal
import time

from PIL import Image
import pytest

from tests import tiny
from tests.photos import write_photos
from tests.train.test_resume import assert_same_run, metrics_lines

TRIALS = int(os.environ.get('BEIT_JAX_FAULT_TRIALS', '5'))
FIRST_SEED = int(os.environ.get('BEIT_JAX_FAULT_SEED', '0'))
STEPS = 12
TASKS = ('pretrain', 'tokenizer', 'finetune', 'probe', 'segment')  # as the recipes are named
LEFT = ('tokenizer/tokenizer.safetensors', 'probe.json', 'classes.csv')  # what some tasks leave
PHASES = ('start', 'compile', 'step', 'evaluation', 'save')
# before it listens, a process dies of SIGTERM
ALLOWED = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {75, -signal.SIGTERM}}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """29 JPEG files of different sizes, one of them cut off."""
    folder = tmp_path_factory.mktemp('photos')
    whole = Image.open(write_photos(folder / 'whole')[0])
    for i in range(29):
        whole.resize((61 + 3 * i, 97 - 2 * i), box=(0, i, whole.width - 5 * i, whole.height)).save(
            folder / f'{i:02}.jpg'
        )
    shutil.rmtree(folder / 'whole')
    cut = folder / '13.jpg'
    cut.write_bytes(cut.read_bytes()[:-300])
    return folder


def command(workdir, tokenizer_dir, files, task='pretrain', **more) -> list[str]:
    """`noted_run` of a run of 12 steps, evaluated after steps 5, 10 and 12, saved after 4, 8 and
    12; of pre-training on `files`, of the other tasks on `shapes`."""
    changed = {'total_steps': STEPS, 'evaluate_every': 5, 'save_every': 4, 'keep_checkpoints': 2}
    if task == 'pretrain':
        data = {'name': 'folder', 'path': str(files), 'holdout': 0.1, 'max_bad_share': 0.2}
        more['data'] = data | more.get('data', {})
        arguments = tiny.arguments(workdir, tokenizer_dir, **changed | more)
    elif task == 'finetune':
        arguments = tiny.classify_arguments(workdir, **changed)
    else:
        variant = {'probe': ':random', 'segment': ':scratch'}.get(task, '')
        small = {'width': 16} | ({} if task == 'tokenizer' else {'depth': 1, 'hidden': 24})
        changed |= {'batch_size': 8, 'log_every': 1}
        changed |= {'data.num_examples': 37, 'data.num_evaluate_examples': 13}
        changed |= {f'model.{name}': value for name, value in small.items()}
        arguments = [
            'main.py',
            f'--config=configs/quickstart/{task}.py{variant}',
            f'--workdir={workdir}',
            '--config.optimizer.warmup_steps=1',
            *(f'--config.{name}={value}' for name, value in changed.items()),
        ]
    return ['-m', 'tests.train.noted_run', f'{workdir}.notes', *arguments[1:]]


def notes(workdir) -> list[dict]:
    path = workdir.with_name(f'{workdir.name}.notes')
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith('\n')]


def consumed(workdir) -> dict[int, tuple]:
    """{step: (views, examples)}; a step that was done again must have consumed the same."""
    found = {}
    for row in notes(workdir):
        if row['phase'] == 'step':
            assert found.setdefault(row['number'], (row['views'], row['examples'])) == (
                row['views'],
                row['examples'],
            )
    return found


@pytest.fixture(scope='module')
def whole(tmp_path_factory, tokenizer_dir, files):
    """The work directory of a task's run that nobody ended."""
    folder = tmp_path_factory.mktemp('faults')

    @functools.cache
    def run(task):
        workdir = folder / task
        result = tiny.run(command(workdir, tokenizer_dir, files, task))
        assert result.returncode == 0, result.stderr
        assert task != 'pretrain' or '13.jpg cannot be read' in result.stdout
        assert sorted(consumed(workdir)) == list(range(1, STEPS + 1))
        return workdir

    return run


@pytest.fixture(scope='module')
def uninterrupted(whole):
    return whole('pretrain')


def wait_for(process, workdir, before: int, phase: str, count: int) -> None:
    """Until the process has begun `phase` for the `count`-th time, or has ended."""
    deadline = time.time() + 300
    while (
        process.poll() is None
        and sum(row['phase'] == phase for row in notes(workdir)[before:]) < count
    ):
        assert time.time() < deadline
        time.sleep(0.002)


def end_somewhere(process, workdir, before: int, rng: random.Random) -> str:
    """Sends SIGKILL or SIGTERM at a random moment; says what and when."""
    phase, number = rng.choice(PHASES), rng.choice((signal.SIGKILL, signal.SIGTERM))
    if phase == 'start':
        delay = rng.uniform(0, 6)
    else:
        delay = rng.uniform(0, {'compile': 3, 'step': 0.02, 'evaluation': 0.02, 'save': 0.3}[phase])
        wait_for(
            process,
            workdir,
            before,
            phase,
            rng.randint(1, {'compile': 1, 'step': 6, 'evaluation': 2, 'save': 2}[phase]),
        )
    time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode in ALLOWED[number] | {0}, out + err
    assert 'Traceback' not in err, err
    return f'{phase} + {delay:.3f} s: {number.name} -> {process.returncode}'


@pytest.mark.parametrize('seed', range(FIRST_SEED, FIRST_SEED + TRIALS))
@pytest.mark.parametrize(
    'task', [TASKS[0], *(pytest.param(task, marks=pytest.mark.slow) for task in TASKS[1:])]
)
def test_ended_at_a_random_moment(task, seed, whole, tokenizer_dir, files, tmp_path):
    rng, workdir = random.Random(seed), tmp_path / 'run'
    run = command(workdir, tokenizer_dir, files, task)
    # some compile for long, most hardly
    cache = {} if seed % 5 else {'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled')}
    log = []
    for _ in range(rng.randint(1, 2) if TRIALS > 5 else 1):
        before = len(notes(workdir))
        log.append(end_somewhere(tiny.start(run, **cache), workdir, before, rng))
    print('; '.join(log))
    result = tiny.run(run, **cache)
    assert result.returncode == 0, result.stderr
    assert_same_run(workdir, whole(task))
    assert consumed(workdir) == consumed(whole(task))
    for name in LEFT:
        if (whole(task) / name).exists():
            assert (workdir / name).read_bytes() == (whole(task) / name).read_bytes()


def start_pair(workdir, tokenizer_dir, files, **environment):
    arguments = command(workdir, tokenizer_dir, files)
    return tiny.start_pair(arguments, '--heartbeat_seconds=10', **environment)


def merged(workdir) -> dict[int, tuple]:
    """{step: (sorted views, sorted examples)} of all processes, each step once."""
    found = {}
    for row in notes(workdir):
        if row['phase'] == 'step':
            found.setdefault(row['number'], set()).update(zip(row['views'], row['examples']))
    return {step: sorted(rows) for step, rows in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'victim'),
    [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGTERM, 0), (signal.SIGINT, 1)],
)
def test_two_processes(number, victim, uninterrupted, tokenizer_dir, files, tmp_path):
    """One of two processes is killed, and the other ends with a message; or one is asked to stop,
    and both save the same step. Then they go on, as two and as one."""
    whole, workdir = tmp_path / 'whole', tmp_path / 'run'
    for process in start_pair(whole, tokenizer_dir, files):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    # JAX looks once a second whether a signal has come
    pair = start_pair(workdir, tokenizer_dir, files, STEP_SECONDS='0.4')
    wait_for(pair[0], workdir, 0, 'step', 2 * 6)
    pair[victim].send_signal(number)
    for i, process in enumerate(pair):
        out, err = process.communicate(timeout=120)
        if number != signal.SIGKILL:
            assert process.returncode == 75, out + err
        elif i != victim:
            assert process.returncode not in (0, 2) and 'another' in err, out + err
    shutil.copytree(workdir, tmp_path / 'alone')
    shutil.copy(f'{workdir}.notes', tmp_path / 'alone.notes')
    for process in start_pair(workdir, tokenizer_dir, files):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert_same_run(workdir, whole)
    assert merged(workdir) == merged(whole)
    alone = tiny.run(command(tmp_path / 'alone', tokenizer_dir, files), JAX_NUM_CPU_DEVICES='2')
    assert alone.returncode == 0, alone.stderr
    assert 'resumed after step' in alone.stdout and merged(tmp_path / 'alone') == merged(
        uninterrupted
    )
    for row, wanted in zip(metrics_lines(tmp_path / 'alone'), metrics_lines(whole), strict=True):
        assert row == {name: pytest.approx(value, abs=1e-5) for name, value in wanted.items()}


def statuses(run: list[str], *between) -> list[int]:
    """What the loop of docs/runs.md gets: after each status but 0 and 2 the next of `between` is
    done, then it starts again."""
    found, steps = [], iter(between)
    while True:
        result = tiny.run(run)
        found.append(result.returncode)
        assert 'Traceback' not in result.stderr, result.stderr
        if result.returncode in (0, 2):
            return found
        next(steps)()


def stopping_at_step(run: list[str], workdir, step: int, spoil) -> int:
    """The status of a run whose storage goes when it takes `step`."""
    process = tiny.start(run, STEP_SECONDS='0.3')
    wait_for(process, workdir, 0, 'step', step)
    spoil()
    out, err = process.communicate(timeout=300)
    assert 'Traceback' not in err, out + err
    return process.returncode


CACHED = {'data': {'repeat_views': 2}, 'tokenizer': {'cache_views': 2}}


@pytest.fixture(scope='module')
def bucket():
    """The environment that leads s3:// to a server on this machine, with a bucket 'runs'."""
    boto3, server = pytest.importorskip('boto3'), pytest.importorskip('moto.server')
    store = server.ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    store.start()
    address = 'http://{}:{}'.format(*store.get_host_and_port())
    keys = {'AWS_ACCESS_KEY_ID': 'k', 'AWS_SECRET_ACCESS_KEY': 'k'}
    given = keys | {'AWS_ENDPOINT_URL': address, 'AWS_DEFAULT_REGION': 'us-east-1'}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        boto3.client('s3').create_bucket(Bucket='runs')
        yield given
    store.stop()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(FIRST_SEED, FIRST_SEED + 5))
def test_ended_at_a_random_moment_in_a_store(
    seed, uninterrupted, tokenizer_dir, files, tmp_path, bucket
):
    """The work directory is s3://runs/SEED; half of the runs go on on another machine."""
    rng, notes_of, log = random.Random(seed), tmp_path / 'run', []
    run = command(tmp_path / 'run', tokenizer_dir, files)
    run = [f'--workdir=s3://runs/{seed}' if '--workdir=' in word else word for word in run]
    start = {'XDG_CACHE_HOME': str(tmp_path / 'one'), 'STEP_SECONDS': '0.3', 'COPY_SECONDS': '0.2'}
    for _ in range(2):
        log.append(end_somewhere(tiny.start(run, **start), notes_of, len(notes(notes_of)), rng))
        if rng.random() < 0.5:
            start['XDG_CACHE_HOME'] = str(tmp_path / f'machine{len(log)}')
    print('; '.join(log))
    result = tiny.run(run, **start)
    assert result.returncode == 0, result.stderr
    start['XDG_CACHE_HOME'] = str(tmp_path / 'last')  # which has but what is in the store
    assert tiny.run([*run, '--mode=evaluate'], **start).returncode == 0
    assert_same_run(tmp_path / f'last/beit_jax/s3/runs/{seed}', uninterrupted)
    assert consumed(notes_of) == consumed(uninterrupted)


@pytest.mark.slow
def test_the_loop_on_a_full_disk(tokenizer_dir, files, tmp_path, small_disk):
    """Full before the first start, which has tokens to keep, and again from step 6 on."""
    reference, workdir = tmp_path / 'whole', small_disk / 'run'
    run = command(workdir, tokenizer_dir, files, **CACHED)
    assert tiny.run(command(reference, tokenizer_dir, files, **CACHED)).returncode == 0
    workdir.with_name('run.notes').symlink_to(tmp_path / 'notes')
    filler, nothing = small_disk / 'filler', lambda: None

    def fill():
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))

    fill()
    assert [tiny.run(run).returncode for _ in range(2)] == [74, 74]
    filler.unlink()
    assert stopping_at_step(run, workdir, 6, fill) == 74
    assert statuses(run, nothing, filler.unlink) == [74, 74, 0]
    assert_same_run(workdir, reference)
    assert consumed(workdir) == consumed(reference)


@pytest.mark.slow
def test_the_loop_while_data_are_away(uninterrupted, tokenizer_dir, files, tmp_path):
    """They go as step 5 is taken, and where they were mounted is nothing, then an empty folder."""
    data, away, workdir = tmp_path / 'data', tmp_path / 'away', tmp_path / 'run'
    run = command(workdir, tokenizer_dir, data)
    assert statuses(run) == [2], 'they were never there'
    shutil.copytree(files, data)
    assert stopping_at_step(run, workdir, 5, lambda: data.rename(away)) == 74

    def come_back():
        data.rmdir()
        away.rename(data)

    assert statuses(run, data.mkdir, come_back) == [74, 74, 0]
    assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_the_loop_of_a_second_run(uninterrupted, tokenizer_dir, files, tmp_path):
    run = command(tmp_path / 'run', tokenizer_dir, files)
    first = tiny.start(run, STEP_SECONDS='1')
    wait_for(first, tmp_path / 'run', 0, 'step', 1)
    second = tiny.run(run)
    assert second.returncode == 74 and f'is in use by process {first.pid} on' in second.stderr
    first.communicate(timeout=300)
    assert first.returncode == 0 and statuses(run) == [0]
    assert_same_run(tmp_path / 'run', uninterrupted)
