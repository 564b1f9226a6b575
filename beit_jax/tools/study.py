"""Compares ways of pre-training: a study has arms that are pre-trained differently, or not at all,
then fine-tuned alike, over several seeds.

Each arm is fine-tuned at the learning rate that did best on validation pictures. Runs that are done
are not done again and those that were stopped go on, so the same command continues a study. Started
on several hosts that share the work directory, it shares the runs among them; studies that share it
share what they have in common.
"""

import dataclasses
from pathlib import Path
import shlex

from beit_jax.errors import check, one_of
from beit_jax.runtime import keep_programs, take_huge_pages
from beit_jax.tools import arguments, outputs


def run(options) -> None:
    from beit_jax.studies import report
    from beit_jax.studies.running import check_runs, start_processes, work
    from beit_jax.studies.study import load_study, plan, with_teachers

    whole, about = load_study(options.study)
    workdir, processes = outputs.folder('--workdir', options.workdir), options.processes
    output = outputs.folder('--output', options.output) or workdir
    study = _chosen(whole, options, with_teachers(whole, options.arms))
    check(processes >= 0, f'--processes={processes}: use 1 or more, or 0 to write the report only.')
    check(',' not in options.workdir, f'--workdir={options.workdir}: use a path without commas.')
    check(
        processes > 0 or workdir.is_dir(),
        f'--workdir={workdir}: there is no such folder to report on.',
    )
    runs = plan(study, workdir)
    check_runs(runs, study.metric)
    if processes == 1:
        # arms share most: rate and seed are part of a compiled step, the encoder's weights are not
        keep_programs(workdir)
        work(runs, study.metric)
    elif processes:
        start_processes(processes)
    if options.report:
        report.write(study, runs, workdir, output, about, _command(options))


def _chosen(study, options, arms):
    """What the options leave of a study."""
    arms = _only(arms, study.arms, '--arms')
    tasks = _only(options.tasks, study.tasks, '--tasks')
    for name, arm in arms.items():
        if arm.get('baseline') not in arms:
            arms[name] = {key: value for key, value in arm.items() if key != 'baseline'}
    return dataclasses.replace(
        study,
        arms=arms,
        tasks=tasks,
        baseline=study.baseline if study.baseline in arms else '',
        seeds=options.seeds or study.seeds,
        rates=study.rates if options.choose_rates else (),
    )


def _only(names: list[str], whole: dict, option: str) -> dict:
    for name in names:
        one_of(option, name, whole)
    return {name: value for name, value in whole.items() if name in names or not names}


def _command(options) -> str:
    """The command line with what it leaves out of the study, for the report."""
    words = [f'--study={options.study}', f'--workdir={Path(options.workdir)}']
    words += [f'--output={Path(options.output)}'] if options.output else []
    words += ['--arms', *options.arms] if options.arms else []
    words += ['--tasks', *options.tasks] if options.tasks else []
    words += [f'--seeds={options.seeds}'] if options.seeds else []
    words += ['--choose_rates=false'] if not options.choose_rates else []
    return f'python -m beit_jax.tools.study {shlex.join(words)}'


def _arguments():
    parser = arguments.parser(
        'study',
        __doc__,
        'python -m beit_jax.tools.study --study=configs/studies/quickstart.py --workdir=runs/study',
    )
    parser.add_argument('--study', required=True, type=arguments.path, help='of configs/studies')
    parser.add_argument('--workdir', required=True, help='where every run goes')
    parser.add_argument(
        '--output',
        help='where report.md, results.csv and plots go (the work directory)',
    )
    parser.add_argument(
        '--processes',
        type=int,
        default=1,
        help='runs at a time, each on its share of the cores (1); 0: the report of what is there',
    )
    parser.add_argument('--seeds', type=int, default=0, help="how many, instead of the study's")
    parser.add_argument('--arms', nargs='+', default=[], help='only these (all)')
    parser.add_argument('--tasks', nargs='+', default=[], help='only these (all)')
    parser.add_argument(
        '--choose_rates',
        type=arguments.true_or_false,
        default=True,
        help="whether to choose each arm's learning rate, or to take the recipe's (true)",
    )
    parser.add_argument(
        '--report',
        type=arguments.true_or_false,
        default=True,
        help='whether to write the report (true)',
    )
    return parser


if __name__ == '__main__':
    take_huge_pages()
    arguments.main(run, _arguments())
