"""What a model is worth on the held-out images, each of which counts once, over all hosts."""

from collections.abc import Callable
import json
import math
from pathlib import Path
import sys
import time

import jax
import numpy as np

from beit_jax.errors import check
from beit_jax.settings.run import RunConfig
from beit_jax.train import state as states
from beit_jax.train import step as steps
from beit_jax.train.batches import one_ahead
from beit_jax.train.drawing import make_drawing
from beit_jax.train.opening import open_run
from beit_jax.train.run import HELD_OUT, Run
from beit_jax.train.sharding import gather, state_shardings
from beit_jax.train.start import load_params
from beit_jax.train.workdir.metrics import add_sums
from beit_jax.train.workdir.prediction_table import PredictionsWriter, class_name
from beit_jax.weights.checkpoint import is_checkpoint

WriteRows = Callable[[dict], None]  # gets the rows of each batch
Interrupted = Callable[[int], bool]  # asked before each batch whether to stop


def evaluate(config: RunConfig, workdir: Path) -> int:
    """Evaluates `config.init`, or else the newest checkpoint of `workdir`, on the held-out data;
    prints the metrics as JSON.

    Writes `predictions.csv` to the work directory where the task predicts classes.
    """
    check(
        bool(config.init) or is_checkpoint(workdir),
        f'{workdir} holds no checkpoint to evaluate: give --config.init=CHECKPOINT, or the '
        '--workdir of a run that has saved one.',
    )
    run = open_run(config, workdir, 'evaluate')
    check(run.held_out is not None, f'there are no held-out images: {HELD_OUT}.')
    path = run.config.init or str(workdir)
    params, fresh, notes = load_params(run, path)
    check(
        not fresh,
        f'{path} has nothing for {", ".join(fresh)}: it cannot be evaluated before it is '
        'fine-tuned. Give another config.init, or --config.init= for the newest checkpoint of '
        '--workdir.',
    )
    first = jax.process_index() == 0
    for note in [*run.notes, *notes] if first else ():
        print(note, file=sys.stderr)
    with PredictionsWriter(workdir / 'predictions.csv', run.held_out, active=first) as predictions:
        metrics = make_evaluation(run, predictions.write)(params)
    if first:
        print(json.dumps({name: float(value) for name, value in metrics.items()}))
    return 0


def make_evaluation(
    run: Run,
    write_rows: WriteRows | None = None,
    interrupted: Interrupted = lambda batch: False,
) -> Callable[..., dict | None]:
    """params -> metrics over all held-out images, under keys eval/...; None where `interrupted`
    says so. With `write_rows` the images per second are among them, without it what is drawn of the
    images."""
    if run.task.label_windows:
        return _make_picture_evaluation(run, write_rows is not None, interrupted)
    return _make_image_evaluation(run, write_rows, interrupted)


def _make_image_evaluation(run: Run, write_rows: WriteRows | None, interrupted: Interrupted):
    summarize = jax.jit(run.task.summarize)
    shardings = state_shardings(run.mesh, states.abstract_params(run.task))
    step = steps.make_evaluate_step(run.task, run.mesh, shardings)

    def results(params):
        for number, batch in enumerate(run.batches.held_out()):
            if interrupted(number):
                yield None
                return
            yield step(params, batch, number)

    measure, names = run.task.measure, run.source.class_names
    draw = make_drawing(run, run.drawing) if run.drawing and not write_rows else lambda params: {}

    def evaluate_images(params):
        count, batch_size = len(run.held_out), run.config.batch_size
        total, counted, began, told = None, count, time.perf_counter(), []
        for number, result in enumerate(one_ahead(results(params))):
            if result is None:
                return None
            sums, rows = jax.device_get(result)
            total = add_sums(total, sums)
            if write_rows:
                write_rows(rows)
            if measure:
                told.append({name: array[rows['valid'] > 0] for name, array in rows.items()})
            if number == 0 and count > batch_size:  # the first batch waits for the compiler
                counted, began = count - batch_size, time.perf_counter()
        seconds, metrics = time.perf_counter() - began, jax.device_get(summarize(total))
        if measure:
            every = {name: np.concatenate([each[name] for each in told]) for name in told[0]}
            metrics |= measure(every, names)
        if write_rows:
            metrics['images_per_second'] = counted / seconds
        return {f'eval/{name}': value for name, value in metrics.items()} | draw(params)

    return evaluate_images


def _make_picture_evaluation(run: Run, timed: bool, interrupted: Interrupted):
    """For a task that labels the pixels of whole pictures."""
    # here and not above: other tasks have no need of it
    from beit_jax.train.segmentation import PictureLabeller, evaluate_pictures

    config, class_names = run.config, run.source.class_names
    names = [class_name(class_names, number) for number in range(config.num_classes)]
    labeller = PictureLabeller(
        run.task.label_windows,
        config.data.shape,
        config.inference,
        run.mesh.local_devices,
        config.data.mean,
        config.data.pixels,
    )

    def evaluate_whole_pictures(params):
        here = jax.tree.map(lambda leaf: leaf.addressable_data(0), gather(run.mesh)(params))
        pictures = run.batches.held_out_pictures()
        most = math.ceil(len(run.held_out) / jax.process_count())
        metrics = evaluate_pictures(
            labeller, here, pictures, names, run.workdir, config.pictures, interrupted, most
        )
        if metrics is None:
            return None
        if not timed:
            del metrics['images_per_second']
        return {f'eval/{name}': value for name, value in metrics.items()}

    return evaluate_whole_pictures
