"""An in-memory server of the Hub's API on the loopback interface, with optional faults."""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .waiting import NEVER

TOKENS = {"hf_owner": "tester", "hf_other": "other"}
LFS_ENDING = ".safetensors"


@dataclass
class Repository:
    """The files of every commit, oldest first, and the commits of branches."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add a commit to a branch and return its hash."""
        history = json.dumps([len(self.commits), message, sorted(files)])
        sha = hashlib.sha1(history.encode() + b"".join(files.values())).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> str | None:
        """The commit of a branch or commit hash, or None."""
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        requests: methods and paths of all requests.
        drop_every: close the connection of every n-th request, or answer 503; 0: never.
        cut_downloads: number of downloads of large files that end early.
        cut_uploads: number of uploads of large files that end early.
        altered: send large files with changed bytes.
        lose_commit_answers: number of commits that are made without a response.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.requests: list[str] = []
        self.unknown: list[str] = []  # requests without a route
        self.clear_faults()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_port}"

    def clear_faults(self) -> None:
        """Turn off all faults."""
        self.drop_every = self.cut_downloads = self.cut_uploads = self.dropped = 0
        self.resumed = 0
        self.altered = False
        self.lose_commit_answers = 0

    def handle_error(self, *args: object) -> None:
        """Ignore connections that end early."""


def client_environment(url: str, home: Path) -> dict[str, str]:
    """The environment of a process whose client uses a server, and stores files in a folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {
        **kept,
        **{"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"},
        **{"HF_HOME": str(home), "NO_PROXY": "127.0.0.1"},
        # The server is as slow as this machine is busy.
        **{"HF_HUB_DOWNLOAD_TIMEOUT": str(int(NEVER)), "HF_HUB_ETAG_TIMEOUT": str(int(NEVER))},
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub
    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("GET", r"/api/agent-harnesses", "nothing"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "commit"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)", "branch"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)(/(?P<path>.+))?", "tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<rev>[^/]+))?", "info"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
        ("POST", r"/lfs/verify", "verify"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def handle_request(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        self.body = b""
        hub.requests.append(f"{self.command} {path}")
        if hub.drop_every and len(hub.requests) % hub.drop_every == 0:
            hub.dropped += 1
            self.close_connection = True
            # The client retries GET after a closed connection, HEAD after a 503.
            if self.command == "GET" or (self.command != "HEAD" and hub.dropped % 2):
                return None
            return self.answer({"error": "unavailable"}, 503)
        if path.startswith("/lfs/") and self.command == "PUT" and hub.cut_uploads:
            hub.cut_uploads -= 1
            self.rfile.read(1000)
            self.close_connection = True
            return None
        self.body = self.read_body()
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, path)
            if match and wanted == method:
                return self.dispatch(name, match.groupdict())
        hub.unknown.append(hub.requests[-1])
        return self.answer({"error": "no such route"}, 501)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self) -> bytes:
        """Read the request's body, which is chunked for files."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def dispatch(self, name: str, request: dict[str, str | None]) -> None:
        """Check user and repository, then answer."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            return self.answer({"error": "Invalid credentials"}, 401)
        self.user = TOKENS.get(token)
        if "repo" not in request:
            return getattr(self, name)(**request)
        repo = self.server.repositories.get(request["repo"])
        owner = request["repo"].split("/")[0]
        if repo is None or (repo.private and self.user != owner):
            return self.fail("RepoNotFound", "Repository not found", 404 if self.user else 401)
        if name in ("preupload", "commit", "branch", "batch") and self.user != owner:
            return self.answer({"error": "no write access"}, 403)
        rest = {key: value for key, value in request.items() if key not in ("repo", "rev")}
        return getattr(self, name)(request["repo"], repo, request.get("rev") or "main", **rest)

    # -- answers --

    def answer(self, value: object = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, code: str, message: str, status: int = 404, **headers: str) -> None:
        self.answer(
            {"error": message}, status, X_Error_Code=code, X_Error_Message=message, **headers
        )

    def whoami(self) -> None:
        self.answer({"type": "user", "name": self.user, "orgs": [], "auth": {}})

    def nothing(self) -> None:
        self.answer({}, 404)

    def validate(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def create(self) -> None:
        request = json.loads(self.body)
        if self.user is None:
            return self.answer({"error": "log in"}, 401)
        name = f"{request.get('organization') or self.user}/{request['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return self.answer(url, 409)
        private = request.get("private") or request.get("visibility") == "private"
        repo = self.server.repositories[name] = Repository(bool(private))
        repo.commit("main", {".gitattributes": b""}, "initial commit")
        return self.answer(url)

    def branch(self, name: str, repo: Repository, revision: str) -> None:
        if revision in repo.branches:
            return self.answer({"error": "exists"}, 409)
        repo.branches[revision] = repo.branches["main"]
        return self.answer({})

    def info(self, name: str, repo: Repository, revision: str) -> None:
        sha = repo.at(revision)
        if sha is None:
            return self.fail("RevisionNotFound", f"no revision {revision}")
        files = [{"rfilename": path} for path in repo.commits[sha]]
        pipeline, library = (
            re.search(rf"^{key}: (\S+)", repo.commits[sha].get("README.md", b"").decode(), re.M)
            for key in ("pipeline_tag", "library_name")
        )
        return self.answer(
            {
                **{"id": name, "modelId": name, "sha": sha, "private": repo.private},
                **{"siblings": files, "tags": [], "gated": False},
                "pipeline_tag": pipeline and pipeline[1],
                "library_name": library and library[1],
            }
        )

    def tree(self, name: str, repo: Repository, revision: str, path: str | None) -> None:
        sha = repo.at(revision)
        if sha is None:
            return self.fail("RevisionNotFound", f"no revision {revision}")
        if path is not None:
            return self.fail("EntryNotFound", "folders are not supported")
        files = repo.commits[sha]
        return self.answer([self.entry(path, content) for path, content in files.items()])

    def entry(self, path: str, content: bytes) -> dict[str, object]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if path.endswith(LFS_ENDING):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 128}
        return entry

    def preupload(self, name: str, repo: Repository, revision: str) -> None:
        sha = repo.at(revision)
        if sha is None:
            return self.fail("RevisionNotFound", f"no revision {revision}")
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_ENDING) else "regular"
            old = repo.commits[sha].get(file["path"])
            oid = {} if old is None else {"oid": digest(file["path"], old)}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return self.answer({"files": files})

    def batch(self, name: str, repo: Repository, revision: str) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.server.large:
                href = f"{self.server.url}/lfs/{item['oid']}"
                verify = {"href": f"{self.server.url}/lfs/verify"}
                item["actions"] = {"upload": {"href": href, "header": {}}, "verify": verify}
            objects.append(item)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "wrong SHA-256"}, 400)
        self.server.large[oid] = self.body
        return self.answer({})

    def verify(self) -> None:
        request = json.loads(self.body)
        there = len(self.server.large.get(request["oid"], b"")) == request["size"]
        self.answer({}, 200 if there else 404)

    def commit(self, name: str, repo: Repository, revision: str) -> None:
        """Apply all operations, or none and return an error."""
        sha = repo.branches.get(revision)
        if sha is None:
            return self.fail("RevisionNotFound", f"no branch {revision}")
        files, message = dict(repo.commits[sha]), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", sha) != sha:
                        return self.answer({"error": "A commit has happened since"}, 412)
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if value["oid"] in self.server.large:
                    files[value["path"]] = self.server.large[value["oid"]]
                case "deletedFile" if value["path"] in files:
                    del files[value["path"]]
                case _:
                    return self.fail("EntryNotFound", "A file with this name doesn't exist")
        sha = repo.commit(revision, files, message)
        if self.server.lose_commit_answers:
            self.server.lose_commit_answers -= 1
            self.close_connection = True
            return None
        url = f"{self.server.url}/{name}/commit/{sha}"
        return self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, name: str, repo: Repository, revision: str, path: str) -> None:
        sha = repo.at(revision)
        if sha is None:
            return self.fail("RevisionNotFound", f"no revision {revision}")
        content = repo.commits[sha].get(path)
        if content is None:
            return self.fail("EntryNotFound", f"no file {path}", X_Repo_Commit=sha)
        is_large = path.endswith(LFS_ENDING)
        headers = {"X_Repo_Commit": sha, "ETag": f'"{digest(path, content)}"'}
        if is_large:
            headers |= {"X_Linked_Size": str(len(content)), "X_Linked_Etag": headers["ETag"]}
        status, start = 200, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start:
            first, last = int(start[1]), len(content) - 1
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first:]
            self.server.resumed += 1
        if is_large and self.command == "GET":
            if self.server.altered:
                content = content[:-4] + bytes(255 - byte for byte in content[-4:])
            if self.server.cut_downloads:
                self.server.cut_downloads -= 1
                return self.cut(content, headers, status)
        return self.answer(content, status, **headers)

    def cut(self, content: bytes, headers: dict[str, str], status: int) -> None:
        """Send half of the announced content and close the connection."""
        self.send_response(status)
        for key, text in headers.items():
            self.send_header(key.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Don't print requests."""


def git_hash(content: bytes) -> str:
    """Git's hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def digest(path: str, content: bytes) -> str:
    """The Hub's hash of a file: SHA-256 of large files, else git's hash."""
    large = path.endswith(LFS_ENDING)
    return hashlib.sha256(content).hexdigest() if large else git_hash(content)
