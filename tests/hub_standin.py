"""
A small in-process stand-in for the Hugging Face Hub, so that the real `huggingface_hub` client has a server.

It answers the routes that pushing and pulling models needs, on the loopback interface, from memory. It shows that our
files and calls are right and how the client treats them; it does not show what the Hub itself accepts.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml


__all__ = ["Hub", "HubError", "Repo", "serve_hub"]


class HubError(Exception):
    """A refusal: HTTP status, the Hub's `X-Error-Code`, its `X-Error-Message`, and what else is in the answer."""

    def __init__(self, status: int, code: str | None, message: str, **answer: str):
        super().__init__(f"{status} {code} {message}")
        self.status, self.code, self.message = status, code, message
        self.answer = {"error": message, **answer}


@dataclass
class Repo:
    """
    One model repository: every commit is a whole folder.

    Args:
        private (`bool`):
            Whether only the owner may read it.
    """

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit("main", {}, "initial commit")

    @property
    def files(self) -> dict[str, bytes]:
        """`dict[str, bytes]`: What the main branch holds, by path."""
        return self.commits[self.branches["main"]]

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Replaces the contents of `branch` and returns the name of the new commit."""
        self.messages.append(message)
        sha = hashlib.sha1(repr((len(self.commits), message)).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str:
        """Returns the commit that a branch or commit name stands for."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


class Hub:
    """
    The repositories and users behind one stand-in server.

    Args:
        users (`dict[str, str]`):
            User name by access token. A user may write below their own name only.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.downloads: list[str] = []
        # what is answered instead of a file, by `repo_id/path`
        self.refusals: dict[str, HubError] = {}
        self.url = ""

    def add_folder(self, repo_id: str, folder: Path) -> None:
        """Makes a public repository of the files that lie directly in `folder`."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.repos[repo_id] = Repo()
        self.repos[repo_id].commit("main", files, "upload folder")

    def user(self, authorization: str | None) -> str | None:
        """Returns who sends an `Authorization` header, `None` for a request without one."""
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, None, "Invalid credentials in Authorization header")
        return user

    def repo(self, repo_id: str, user: str | None, write: bool = False) -> Repo:
        """Returns a repository if `user` may see it, and change it if `write`."""
        repo = self.repos.get(repo_id)
        owner = repo_id.split("/")[0]
        if repo is None or (repo.private and user != owner):
            # the Hub does not tell strangers that a private repository exists
            raise HubError(401 if user is None else 404, "RepoNotFound", "Repository not found")
        if write and user != owner:
            raise HubError(403, None, f"You don't have the rights to write to {repo_id}")
        return repo

    def create_repo(self, user: str | None, name: str, organization: str | None = None, **options: Any) -> dict:
        if user is None:
            raise HubError(401, None, "Invalid username or password.")
        repo_id = f"{organization or user}/{name}"
        if repo_id in self.repos:
            raise HubError(409, None, "You already created this model repo", url=f"{self.url}/{repo_id}")
        if repo_id.split("/")[0] != user:
            raise HubError(403, None, f"You don't have the rights to create a model under {organization}")
        self.repos[repo_id] = Repo(private=bool(options.get("private")) or options.get("visibility") == "private")
        return {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}

    def commit(self, repo: Repo, repo_id: str, branch: str, lines: list[dict]) -> dict:
        files = dict(repo.commits[repo.resolve(branch)])
        message = ""
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "deletedFile":
                    del files[value["path"]]
                case other:
                    raise HubError(400, None, f"the stand-in does not know the operation {other}")
        sha = repo.commit(branch, files, message)
        return {"commitUrl": f"{self.url}/{repo_id}/commit/{sha}", "commitOid": sha, "success": True}

    def model_info(self, repo: Repo, repo_id: str, revision: str) -> dict:
        sha = repo.resolve(revision)
        files = repo.commits[sha]
        card = card_data(files.get("README.md", b"").decode())
        return {
            "id": repo_id,
            "modelId": repo_id,
            "private": repo.private,
            "sha": sha,
            "tags": card.get("tags", []),
            "pipeline_tag": card.get("pipeline_tag"),
            "library_name": card.get("library_name"),
            "siblings": [{"rfilename": path} for path in files],
        }

    def tree(self, repo: Repo, revision: str, folder: str) -> list[dict]:
        files = repo.commits[repo.resolve(revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {path: content for path, content in files.items() if path.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        return [
            {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            for path, content in inside.items()
        ]


def blob_id(content: bytes) -> str:
    """Returns the name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def card_data(card: str) -> dict:
    """Returns the metadata block of a model card."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


class HubRequestHandler(BaseHTTPRequestHandler):
    """Routes requests to the [`Hub`] of the server."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        try:
            user = self.hub.user(self.headers.get("Authorization"))
            if resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.send_file(self.hub.repo(resolve[1], user), *map(unquote, resolve.groups()))
            else:
                self.send(200, json.dumps(self.call(path, body, user)).encode())
        except HubError as error:
            headers = {"X-Error-Message": error.message}
            if error.code is not None:
                headers["X-Error-Code"] = error.code
            self.send(error.status, json.dumps(error.answer).encode(), headers)

    def call(self, path: str, body: bytes, user: str | None) -> Any:
        hub = self.hub
        if path == "/api/repos/create":
            return hub.create_repo(user, **json.loads(body))
        if path == "/api/validate-yaml":
            try:
                card_data(json.loads(body)["content"])
            except yaml.YAMLError as error:
                raise HubError(400, None, f"Invalid metadata: {error}") from error
            return {"errors": [], "warnings": []}
        if path == "/api/whoami-v2" and user is not None:
            return {"type": "user", "name": user, "orgs": []}
        model = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/([^/]+)(?:/(.+))?)?", path)
        if model is None:
            raise HubError(404, None, f"the stand-in has no route {path}")
        repo_id, action, revision, folder = (unquote(part) if part else part for part in model.groups())
        repo = hub.repo(repo_id, user, write=self.command == "POST")
        match action:
            case None | "revision":
                return hub.model_info(repo, repo_id, revision or "main")
            case "tree":
                return hub.tree(repo, revision, folder or "")
            case "branch":
                repo.branches[revision] = repo.branches["main"]
                return {}
            case "preupload":
                names = [file["path"] for file in json.loads(body)["files"]]
                return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            case "commit":
                return hub.commit(repo, repo_id, revision, [json.loads(line) for line in body.splitlines()])
        raise HubError(404, None, f"the stand-in has no route {path}")

    def send_file(self, repo: Repo, repo_id: str, revision: str, name: str) -> None:
        sha = repo.resolve(revision)
        if refusal := self.hub.refusals.get(f"{repo_id}/{name}"):
            raise refusal
        if name not in repo.commits[sha]:
            raise HubError(404, "EntryNotFound", f"{name} does not exist")
        content = repo.commits[sha][name]
        if self.command == "GET":
            self.hub.downloads.append(f"{repo_id}/{name}")
        self.send(200, content, {"X-Repo-Commit": sha, "ETag": f'"{blob_id(content)}"'})

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serve_hub(users: dict[str, str]) -> Iterator[Hub]:
    """
    Run a stand-in hub on a free loopback port.

    Args:
        users (`dict[str, str]`):
            User name by access token.

    Yields:
        [`Hub`]: the hub, its address in `url`.
    """
    hub = Hub(users)
    handler = type("Handler", (HubRequestHandler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
