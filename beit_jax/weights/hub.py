"""Weights by their name on Hugging Face's hub: where what is given as a path of weights becomes one
on this machine, and where a model is written to the hub.

A name is owner/name, owner/name@revision (a branch, a tag, a commit), or hf://owner/name/inside for
a file or a folder in it; hf_hub:owner/name is taken too. What exists under that path comes first. A
run keeps owner/name@revision:commit (`Name.at`): this commit, wherever the branch is by now.
"""

import contextlib
import dataclasses
import glob
from pathlib import Path
import re

from beit_jax import __version__
from beit_jax.errors import RequestError, StorageError, check, nearest, of_storage
from beit_jax.weights.contents import BESIDE, SUFFIXES, needed, taken_for_model

_ID = r'(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)'
_COMMIT = '[0-9a-f]{40}'
_AT = rf'(?::(?P<commit>{_COMMIT}))?'
_NAMES = (
    rf'(?P<prefix>hf[-_]hub:|){_ID}(?:@(?P<revision>[^\s:]+))?{_AT}(?P<inside>)',
    rf'(?P<prefix>hf://){_ID}(?:@(?P<revision>refs/\w+/[^\s:/]+|[^\s:/]+))?{_AT}/?(?P<inside>.*)',
)
_LOGIN = '`hf auth login`, or a token in HF_TOKEN,'
_AGENT = {'library_name': 'beit_jax', 'library_version': __version__}
_NONE = 'there is no such checkpoint, work directory, file or folder of weights'


@dataclasses.dataclass(frozen=True)
class Name:
    """A repository at a revision, and a file or folder in it ('': all of it)."""

    prefix: str
    id: str
    revision: str
    commit: str
    inside: str

    def at(self, commit: str) -> str:
        """The name of the same at a commit, that `revision` was."""
        if re.fullmatch(_COMMIT, self.revision):
            return str(self)
        return str(dataclasses.replace(self, commit=commit))

    @property
    def fixed(self) -> str:
        """The commit, which never changes; '' where the name has none."""
        return self.commit or (self.revision if re.fullmatch(_COMMIT, self.revision) else '')

    def __str__(self):
        at, inside = f':{self.commit}' * bool(self.commit), f'/{self.inside}' * bool(self.inside)
        return f'{self.prefix}{self.id}@{self.revision}{at}{inside}'


def repository(path: str | Path) -> Name | None:
    """The repository that a path names; None where there is something at that path, or where it is
    no name of any."""
    text = str(path)
    match = next(filter(None, (re.fullmatch(name, text, re.ASCII) for name in _NAMES)), None)
    if not match:
        return None
    found = Name(**match.groupdict(default='') | {'revision': match['revision'] or 'main'})
    plain = not found.prefix and not match['revision']
    file = plain and Path(text).suffix in (*SUFFIXES, '.pkl', '.json', '.py')
    return None if file or (not found.prefix and Path(text).exists()) else found


def local(path: str | Path, key: str = '') -> Path:
    """The path on this machine of weights: `path` itself, or where the files of a repository are
    that it names, downloaded (those that are read) unless the hub's cache has them.

    key: the setting that gave it.

    Raises:
      RequestError: there is nothing, the hub has no such model or does not show it, or the model
        holds nothing that is read here.
      StorageError: the hub cannot be reached, or the cache cannot be written now.
    """
    name, given = repository(path), f'{key}={path}' if key else str(path)
    if name is None:
        check(Path(path).exists(), f'{given}: {_NONE}.')
        return Path(path)
    hub = _library(given)
    if hub.constants.HF_HUB_OFFLINE:
        return _offline(hub, name, given) / name.inside
    try:
        return _downloaded(hub, name, given) / name.inside
    except StorageError:
        # a commit is the same now as then
        folder = _cached(hub, name, given) if name.fixed else None
        if folder is None:
            raise
        return folder / name.inside


def commit_of(name: Name, key: str = '') -> str:
    """The commit that a name stands for now; offline, for what the cache has.

    Raises:
      RequestError, StorageError: see `local`.
    """
    given = f'{key}={name}' if key else str(name)
    hub = _library(given)
    if name.fixed:
        return name.fixed
    offline = hub.constants.HF_HUB_OFFLINE
    return _offline(hub, name, given).name if offline else _info(hub, name, given).sha


class Upload:
    """A repository that a model is to be written to, looked at before there is one.

    Args:
      given: owner/name.
      private: for nobody but its owner, where it is new.
      replace: write over the model that it has.

    Raises:
      RequestError: no such name, a repository that has a model or is public, or no rights.
      StorageError: the hub cannot be reached now.
    """

    def __init__(self, given: str, private: bool = False, replace: bool = False):
        match = re.fullmatch(_ID, given, re.ASCII)
        check(bool(match), f'{given} is no name on a hub: give OWNER/NAME.')
        self.name = Name('', given, 'main', '', '')
        self._hub, self._private, self._given = _library(given), private, given
        self._parent, self._there = None, []  # of a new one
        try:
            info = _info(self._hub, self.name, given)
        except RequestError as error:
            if not isinstance(error.__cause__, self._hub.errors.RepositoryNotFoundError):
                raise
            return
        self._parent = info.sha
        self._there = [one.rfilename for one in info.siblings if taken_for_model(one.rfilename)]
        check(
            not self._there or replace,
            f'{given} has {", ".join(self._there[:5])} already: --replace writes over them (the '
            'history of the repository keeps them), or give another name.',
        )
        check(info.private or not private, f'{given} is public: make it private there first.')

    def push(self, folder: Path) -> str:
        """Writes the files of a folder, in one commit. Returns its address."""
        hub, files = self._hub, sorted(file.name for file in folder.iterdir())
        gone = [name for name in self._there if name not in files]
        operations = [hub.CommitOperationDelete(path_in_repo=name) for name in gone]
        for name in files:
            operations.append(hub.CommitOperationAdd(name, str(folder / name)))
        api, message = hub.HfApi(**_AGENT), f'Weights exported by beit_jax {__version__}'
        with _answers(hub, self.name, self._given):
            if self._parent is None:
                api.create_repo(self.name.id, private=self._private, exist_ok=True)
            commit = api.create_commit(
                self.name.id, operations, commit_message=message, parent_commit=self._parent
            )
        return str(commit.commit_url)


def _downloaded(hub, name: Name, given: str) -> Path:
    """The folder of the repository in the cache."""
    info = _info(hub, name, given)
    files = _below(name, [one.rfilename for one in info.siblings or ()], given)
    with _answers(hub, name, given):
        folder = hub.snapshot_download(
            name.id,
            revision=name.fixed or name.revision,  # whose commit the cache keeps
            allow_patterns=[glob.escape(file) for file in files],
            **_AGENT,
        )
    return Path(folder)


def _info(hub, name: Name, given: str):
    """What the hub says of a repository."""
    api, revision = hub.HfApi(**_AGENT), name.fixed or name.revision
    with _answers(hub, name, given):
        try:
            # without one, an address that does not answer would be waited for
            return api.model_info(
                name.id, revision=revision, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT
            )
        except hub.errors.RevisionNotFoundError as error:
            refs = api.list_repo_refs(name.id)
            known = [ref.name for ref in (*refs.branches, *refs.tags)]
            raise RequestError(
                f'{given}: {name.id} has no revision {revision}.{nearest(revision, known)} It has '
                f'{", ".join(known[:20]) or "none"}, and commits.'
            ) from error


def _below(name: Name, files: list[str], given: str) -> list[str]:
    """Those of the files of a repository that are read."""
    if name.inside in files:
        folder = name.inside.rpartition('/')[0]
        beside = [f'{folder}/{other}'.lstrip('/') for other in BESIDE]
        return [name.inside, *(other for other in beside if other in files)]
    start = f'{name.inside}/' if name.inside else ''
    below = [file.removeprefix(start) for file in files if file.startswith(start)]
    check(bool(below) or not start, f'{given}: {name.id} has no {name.inside}.')
    form = f' as hf://{name.id}@{name.revision}/{start}FILE'
    return [start + file for file in needed(below, given, form)]


def _offline(hub, name: Name, given: str) -> Path:
    """The folder of the repository in the cache, which HF_HUB_OFFLINE is content with."""
    folder = _cached(hub, name, given)
    revision = name.fixed or name.revision
    which = name.id if revision == 'main' else f'{name.id} --revision {revision}'
    check(
        folder is not None,
        f'{given}: {_NONE} here, and not all of such a model in {hub.constants.HF_HUB_CACHE}; '
        f'HF_HUB_OFFLINE is set: unset it, or `hf download {which}` where there is a network.',
    )
    return folder


def _cached(hub, name: Name, given: str) -> Path | None:
    """The folder of the repository in the cache; None where not all of it is there."""
    folder = _snapshot(hub, name)
    if folder:
        there = [file for file in folder.rglob('*') if file.is_file()]
        _below(
            name, [file.relative_to(folder).as_posix() for file in there], f'{given} in {folder}'
        )
    return folder


def _snapshot(hub, name: Name) -> Path | None:
    """The folder of a repository in the cache, where the hub's package finds nothing missing."""
    beside = [f'{name.inside}/{file}'.lstrip('/') for file in BESIDE]
    which = {'revision': name.fixed or name.revision, 'allow_patterns': beside}
    try:
        return Path(hub.snapshot_download(name.id, local_files_only=True, **which))
    except hub.errors.LocalEntryNotFoundError:
        return None


def _library(given: str):
    """The package, which takes a part of a second to import, and is no requirement."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise RequestError(
            f"{given}: {_NONE} here. A model of Hugging Face's hub takes a package: "
            f'pip install huggingface_hub ({error}).'
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _answers(hub, name: Name, given: str):
    """Turns what the hub answers, and that it does not, into a line."""
    try:
        yield
    except (RequestError, StorageError):
        raise
    except Exception as error:  # transports have errors of their own
        cause = error.__cause__ if isinstance(error, hub.errors.LocalEntryNotFoundError) else None
        raise _in_words(hub, name, given, cause or error) from error


def _in_words(hub, name: Name, given: str, error: BaseException) -> RequestError | StorageError:
    errors, host, kind = hub.errors, hub.constants.ENDPOINT.partition('://')[2], RequestError
    if isinstance(error, errors.HFValidationError):
        line = f'{_NONE} here, and {name.id} is no name on {host}.'
    elif isinstance(error, errors.GatedRepoError):
        line = f'{name.id} is gated: ask for access on https://{host}/{name.id}; then {_LOGIN} '
        line += 'shows it.'
    elif isinstance(error, errors.RepositoryNotFoundError):
        line = f'{_NONE} here, and no model {name.id} on {host}; if it is private there, {_LOGIN} '
        line += 'shows it.'
    elif isinstance(error, errors.HfHubHTTPError):
        status, said = error.response.status_code, _said(error.server_message or error)
        line = f'{host} answers {status} ({said}).'
        if status in (401, 403):
            line = f'{host} does not allow it ({said}): {_LOGIN} of somebody who may.'
        elif status == 429 or status >= 500:
            kind, line = StorageError, f'{line} Try again later.'
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        message = f'{given} cannot be written to {hub.constants.HF_HUB_CACHE}: {_said(error)}.'
        return of_storage(error, f'{message} HF_HOME names another folder.')
    else:
        downloaded = ' HF_HUB_OFFLINE=1 takes what was downloaded before.'
        offline = downloaded if _snapshot(hub, name) else ''
        # what is no name but a path of this machine will not be there later
        ours = not name.prefix and Path(name.id).parent.is_dir()
        kind = RequestError if ours else StorageError
        line = f'{_NONE} here, and {host} cannot be reached ({_said(error)}).{offline}'
    return kind(f'{given}: {line}')


def _said(error) -> str:
    return ' '.join(str(error).split())[:200].rstrip('.') or type(error).__name__
