"""What the processes of one run agree on before its first step: that each of them is ready, and
that all of them were given the same. What is wrong with one ends every one of them, with the same
words, for a process whose peer has left waits for it in vain.
"""

from collections.abc import Mapping
import contextlib
import json

import jax
from jax.experimental import multihost_utils
import numpy as np

from beit_jax.errors import RequestError, StorageError, check

_ERRORS = {error.__name__: error for error in (RequestError, StorageError)}


def gathered(text: str) -> list[str]:
    """The text of each process, in their order. All must ask."""
    if not jax.distributed.is_initialized():  # which asks no device, and so is told at once
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(content), np.int32))
    padded = np.zeros(max(1, lengths.max()), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths)]


@contextlib.contextmanager
def together():
    """Where the block raises RequestError or StorageError in one process, all raise it, and name
    that process. The block has nothing in which the processes wait for one another."""
    own = None
    try:
        yield
    except tuple(_ERRORS.values()) as error:
        own = error
    reason = json.dumps([type(own).__name__, str(own)] if own else None)
    reasons = dict(enumerate(map(json.loads, gathered(reason))))
    failed = {host: reason for host, reason in reasons.items() if reason}
    if not failed:
        return
    names = [name for name, _ in failed.values()]
    # to try again helps where it helps all of them
    kind = RequestError if 'RequestError' in names else StorageError
    if own is None:
        host, (_, message) = next(
            (host, reason) for host, reason in failed.items() if _ERRORS[reason[0]] is kind
        )
        raise kind(f'host {host}: {message}')
    raise own if isinstance(own, kind) else kind(str(own))


def check_same(facts: Mapping[str, object]) -> None:
    """Raises RequestError in all processes where not all have the same `facts` (values that JSON
    holds); names what differs, and on which host it is what."""
    found = [json.loads(text) for text in gathered(json.dumps(facts))]
    differing = []
    for name in dict.fromkeys(name for facts in found for name in facts):
        hosts = {}  # by value
        for host, given in enumerate(found):
            hosts.setdefault(json.dumps(given.get(name)), []).append(host)
        if len(hosts) > 1:
            said = ', '.join(f'{value} on {_named(where)}' for value, where in hosts.items())
            differing.append(f'{name} is {said}')
    check(
        not differing,
        f'the hosts of this run differ ({"; ".join(differing)}): start the same command with the '
        'same code and data on each of them.',
    )


def _named(hosts: list[int]) -> str:
    more = ', ...' if len(hosts) > 4 else ''
    return f'host{"s" * (len(hosts) > 1)} {", ".join(map(str, hosts[:4]))}{more}'
