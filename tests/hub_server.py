"""Hugging Face's hub as far as huggingface_hub asks it for a model: what a repository has, its
files, a new one, a commit with files in Git LFS. Answers and headers are those of the hub."""

import base64
import hashlib
import http.server
import json
from pathlib import Path
import re
import threading
from urllib.parse import unquote, urlsplit

TOKEN = 'hf_of_the_owner'


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by name, on a port of this machine, from `with` on.

    Attributes:
      repositories: {owner/name: Repository}.
      asked: 'METHOD path' of each request.
      down: the status of all answers; 0: it is up.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        self.repositories, self.asked, self.blobs, self.down = {}, [], {}, 0

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def add(self, name: str, files: dict[str, bytes], **kind) -> str:
        """A new commit on main, of these files alone; the repository is made where there is none.
        Returns the commit."""
        if name not in self.repositories:
            self.repositories[name] = Repository(**kind)
        return self.repositories[name].commit(files)


class Repository:
    def __init__(self, private: bool = False, gated: bool = False):
        self.private, self.gated, self.commits, self.refs = private, gated, {}, {}

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f'{len(self.commits)}{sorted(files)}'.encode()).hexdigest()
        self.commits[sha], self.refs['main'] = files, sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.act()

    do_HEAD = do_POST = do_PUT = do_GET

    @property
    def allowed(self) -> bool:
        return self.headers.get('authorization') == f'Bearer {TOKEN}'

    def act(self):
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get('content-length') or 0))
        if 'chunked' in self.headers.get('transfer-encoding', ''):
            while size := int(self.rfile.readline(), 16):
                self.body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self.server.asked.append(f'{self.command} {path}')
        if self.server.down:
            return self.answer(self.server.down, {'error': 'down'})
        rest = r'(?P<id>[^/]+/[^/]+)'
        for pattern, method in (
            ('/api/repos/create', self.create),
            ('/api/validate-yaml', lambda: self.answer(200, {})),
            (rf'/api/models/{rest}', self.info),
            (rf'/api/models/{rest}/revision/(?P<revision>.+)', self.info),
            (rf'/api/models/{rest}/tree/(?P<revision>[^/]+)', self.tree),
            (rf'/api/models/{rest}/refs', self.refs),
            (rf'/api/models/{rest}/preupload/main', self.preupload),
            (rf'/api/models/{rest}/commit/main', self.commit),
            (rf'/{rest}/resolve/(?P<revision>[0-9a-f]+)/(?P<file>.+)', self.file),
            (rf'/{rest}\.git/info/lfs/objects/batch', self.lfs),
            ('/lfs/(?P<oid>.+)', self.store),
        ):
            if match := re.fullmatch(pattern, path):
                return method(**match.groupdict())
        return self.answer(404, {'error': 'no such address'})

    def answer(self, status: int, content, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header('content-length', str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def found(self, id: str, revision: str = 'main'):
        """(the repository, a commit of it), or None, and an answer that says why."""
        one = self.server.repositories.get(id)
        if one is None or (one.private and not self.allowed):
            status = 404 if self.allowed else 401
            self.answer(status, {'error': 'Repository not found'}, X_Error_Code='RepoNotFound')
        elif not (sha := one.find(revision)):
            self.answer(404, {'error': 'Invalid rev id'}, X_Error_Code='RevisionNotFound')
        else:
            return one, sha
        return None

    def info(self, id: str, revision: str = 'main'):
        if found := self.found(id, revision):
            one, sha = found
            files = [{'rfilename': name} for name in one.commits[sha]]
            said = {'id': id, 'sha': sha, 'private': one.private, 'siblings': files}
            self.answer(200, said)

    def tree(self, id: str, revision: str):
        if found := self.found(id, revision):
            one, sha = found
            entries = [
                {'type': 'file', 'path': name, 'size': len(data), 'oid': _etag(data)}
                for name, data in one.commits[sha].items()
            ]
            self.answer(200, entries)

    def refs(self, id: str):
        one, _ = self.found(id)
        names = [
            {'name': name, 'ref': f'refs/heads/{name}', 'targetCommit': sha}
            for name, sha in one.refs.items()
        ]
        self.answer(200, {'branches': names, 'tags': [], 'converts': []})

    def file(self, id: str, revision: str, file: str):
        if found := self.found(id, revision):
            one, sha = found
            if one.gated and not self.allowed:
                return self.answer(403, {'error': 'restricted'}, X_Error_Code='GatedRepo')
            data = one.commits[sha][file]
            return self.answer(200, data, X_Repo_Commit=sha, ETag=f'"{_etag(data)}"')
        return None

    def create(self):
        asked = json.loads(self.body)
        name = f'{asked["organization"]}/{asked["name"]}'
        if not self.allowed:
            return self.answer(401, {'error': 'Invalid username or password.'})
        if asked['organization'] != 'owner':
            return self.answer(403, {'error': f'no rights to create a model under {name}'})
        private = asked.get('private') or asked.get('visibility') == 'private'
        self.server.add(name, {'.gitattributes': b''}, private=bool(private))
        return self.answer(200, {'url': f'{self.server.url}/{name}'})

    def preupload(self, id: str):
        modes = [
            {
                'path': one['path'],
                'uploadMode': 'regular' if one['path'].endswith(('.json', '.md')) else 'lfs',
                'shouldIgnore': False,
                'oid': None,
            }
            for one in json.loads(self.body)['files']
        ]
        self.answer(200 if self.allowed else 403, {'files': modes})

    def lfs(self, id: str):
        objects = [
            one | {'actions': {'upload': {'href': f'{self.server.url}/lfs/{one["oid"]}'}}}
            for one in json.loads(self.body)['objects']
        ]
        self.answer(200, {'transfer': 'basic', 'objects': objects})

    def store(self, oid: str):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.blobs[oid] = self.body
        self.answer(200, {})

    def commit(self, id: str):
        one, sha = self.found(id)
        header, *operations = map(json.loads, self.body.splitlines())
        if header['value'].get('parentCommit', sha) != sha:
            return self.answer(412, {'error': 'A commit has happened since. Please refresh'})
        files = dict(one.commits[sha])
        for operation in operations:
            value = operation['value']
            if operation['key'] == 'file':
                files[value['path']] = base64.b64decode(value['content'])
            elif operation['key'] == 'lfsFile':
                files[value['path']] = self.server.blobs[value['oid']]
            else:
                del files[value['path']]
        new = one.commit(files)
        url = f'{self.server.url}/{id}/commit/{new}'
        return self.answer(200, {'commitUrl': url, 'commitOid': new, 'success': True})


def files_of(folder: Path) -> dict[str, bytes]:
    """What a repository with the content of a folder has."""
    found = sorted(file for file in folder.rglob('*') if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
