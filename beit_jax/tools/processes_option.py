"""Several processes of one tool: a pod, SLURM, or started by hand; or that know nothing of each
other, each with its share."""

import argparse

from beit_jax.errors import check


def add(parser: argparse.ArgumentParser) -> None:
    """Adds --coordinator, --num_processes and --process_id, for `start`."""
    parser.add_argument(
        '--coordinator',
        default='',
        help='host:port of process 0, to start several processes by hand',
    )
    parser.add_argument('--num_processes', type=int, default=1, help='how many there are then (1)')
    parser.add_argument('--process_id', type=int, default=0, help='which this is, from 0 (0)')


def start(options: argparse.Namespace) -> tuple[int, int]:
    """Joins the others, before anything else of JAX: (which process this is, how many there
    are)."""
    # here and not above: --help imports no JAX
    import jax

    from beit_jax.train.processes import distributed

    distributed.start(options.coordinator, options.num_processes, options.process_id)
    return jax.process_index(), jax.process_count()


def add_shard(parser: argparse.ArgumentParser) -> None:
    """Adds --shard, for `shard`."""
    parser.add_argument(
        '--shard',
        type=_shard,
        default=(0, 1),
        metavar='I/N',
        help='the I-th share of N alone, from 0/N: for jobs that know nothing of each other',
    )


def shard(options: argparse.Namespace) -> tuple[int, int]:
    """`start`, then (which share this process has, of how many).

    Raises:
      RequestError: --shard in one of several processes that share already.
    """
    process, processes = start(options)
    check(
        processes == 1 or options.shard == (0, 1),
        f'--shard is for processes that know nothing of each other, these {processes} do and share '
        'already: leave it out.',
    )
    return (process, processes) if processes > 1 else options.shard


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition('/')
    if not (slash and number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f'{text!r} is no I/N: give 0/4, 1/4, 2/4 or 3/4 for four')
    return int(number), int(count)
