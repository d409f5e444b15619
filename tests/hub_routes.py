"""The pages and calls of the local Hub (hub_server.py), as huggingface_hub 1.33 and 2.4 send and read them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import yaml
from hub_repos import Blob, complaints, is_lfs

if TYPE_CHECKING:
    from hub_server import Handler


class Refused(Exception):
    """An answer that ends a request."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, **headers} | ({"X-Error-Code": code} if code else {})


def route(request: Handler, path: str) -> None:
    """Answer a request."""
    for method, pattern, answer in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and request.command in method:
            return answer(request, *match.groups())
    raise Refused(404, f"no such page: {request.command} {path}")


def whoami(request: Handler) -> None:
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    role = "read" if request.user in request.hub.readers else "write"
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    request.send(200, {"type": "user", "name": request.user, "orgs": [], "auth": auth})


def validate_yaml(request: Handler) -> None:
    errors = [{"message": text} for text in complaints(request.json()["content"])]
    request.send(400 if errors else 200, {"errors": errors, "warnings": []})


def create(request: Handler) -> None:
    given = request.json()
    owner = given.get("organization") or request.user
    kind, repo_id = given.get("type", "model"), f"{owner}/{given['name']}"
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    if owner != request.user or request.user in request.hub.readers:
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    url = f"{request.hub.url}/{repo_id}"
    if (kind, repo_id) in request.hub.repos:
        return request.send(409, {"error": "You already created this model repo", "url": url})
    private = given.get("visibility") == "private" or bool(given.get("private"))
    request.hub.add(repo_id, type=kind, private=private)
    return request.send(200, {"url": url, "name": repo_id})


def branch(request: Handler, kind: str, repo_id: str, name: str) -> None:
    repo = request.found(kind, repo_id, write=True)
    if name in repo.branches:
        raise Refused(409, f"Reference already exists: {name}")
    repo.branches[name] = request.revision(repo, request.json().get("startingPoint", "main")).oid
    request.send(201, {})


def info(request: Handler, kind: str, repo_id: str, revision: str | None) -> None:
    repo = request.found(kind, repo_id)
    commit = request.revision(repo, revision or "main")
    card = commit.files.get("README.md")
    match = re.match(r"---\n(.*?)\n---\n", card.content.decode(), re.DOTALL) if card else None
    values = {"id": repo.id, "sha": commit.oid, "private": repo.private, "gated": "manual" if repo.gated else False}
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    request.send(200, {**values, "cardData": yaml.safe_load(match[1]) if match else {}, "siblings": siblings})


def describe(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
    return entry | ({"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}} if blob.lfs else {})


def tree(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    commit = request.revision(request.found(kind, repo_id), revision)
    request.send(200, [describe(path, blob) for path, blob in sorted(commit.files.items())])


def paths_info(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    commit = request.revision(request.found(kind, repo_id), revision)
    asked = parse_qs(request.body.decode()).get("paths") or request.json()["paths"]
    request.send(200, [describe(path, commit.files[path]) for path in asked if path in commit.files])


def preupload(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    commit = request.revision(request.found(kind, repo_id, write=True), revision)
    answers = []
    for file in request.json()["files"]:
        mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
        known = commit.files.get(file["path"])
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        answers[-1] |= {"oid": known.etag} if known else {}
    request.send(200, {"files": answers})


def lfs_batch(request: Handler, kind: str, repo_id: str) -> None:
    request.found(kind, repo_id, write=True)
    objects = []
    for item in request.json()["objects"]:
        oid, size = item["oid"], item["size"]
        answer = {"oid": oid, "size": size}
        if oid not in request.hub.lfs:
            upload: dict[str, Any] = {"href": f"{request.hub.storage}/storage/{oid}"}
            if size > request.hub.part_size:
                count = -(-size // request.hub.part_size)
                urls = {f"{n:05d}": f"{request.hub.storage}/storage/{oid}/{n}" for n in range(1, count + 1)}
                upload = {"href": f"{request.hub.url}/complete", "header": {"chunk_size": str(request.hub.part_size)}}
                upload["header"] |= urls
            answer["actions"] = {"upload": upload, "verify": {"href": f"{request.hub.url}/verify"}}
        objects.append(answer)
    request.send(200, {"transfer": "basic", "objects": objects})


def put(request: Handler, oid: str, part: str | None) -> None:
    if "Authorization" in request.headers:
        raise Refused(400, "a token has no business in the storage")
    if part is not None:
        request.hub.parts[oid, int(part)] = request.body
        return request.send(200, ETag=f'"{oid[:8]}-{part}"')
    return store(request, oid, request.body)


def complete(request: Handler) -> None:
    oid, parts = request.json()["oid"], request.json()["parts"]
    if any(not part["etag"].strip('"') == f"{oid[:8]}-{part['partNumber']}" for part in parts):
        raise Refused(400, "an etag is wrong")
    store(request, oid, b"".join(request.hub.parts.pop((oid, part["partNumber"])) for part in parts))


def store(request: Handler, oid: str, content: bytes) -> None:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refused(400, "the content does not have this hash")
    request.hub.lfs[oid] = content
    request.send(200, {})


def verify(request: Handler) -> None:
    if len(request.hub.lfs.get(request.json()["oid"], b"")) != request.json()["size"]:
        raise Refused(404, "this object was not uploaded")
    request.send(200, {})


def commit(request: Handler, kind: str, repo_id: str, revision: str) -> None:
    repo = request.found(kind, repo_id, write=True)
    head = request.revision(repo, revision)
    added: dict[str, Blob] = {}
    deleted: set[str] = set()
    title = ""
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            title = value["summary"]
            if value.get("parentCommit") not in (None, head.oid):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
        elif item["key"] == "file":
            added[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif item["key"] == "lfsFile":
            if value["oid"] not in request.hub.lfs:
                raise Refused(400, f"LFS object {value['oid']} was not uploaded")
            added[value["path"]] = Blob(request.hub.lfs[value["oid"]], True)
        elif item["key"] == "deletedFile":
            deleted.add(value["path"])
    if "README.md" in added and (errors := complaints(added["README.md"].content.decode())):
        raise Refused(400, errors[0])
    made = repo.commit(revision, title, added, deleted)
    request.send(200, {"commitUrl": f"{request.hub.url}/{repo_id}/commit/{made.oid}", "commitOid": made.oid})


def resolve(request: Handler, kind: str, repo_id: str, revision: str, path: str) -> None:
    repo = request.found(kind, repo_id)
    if repo.gated and request.user not in repo.allowed | {repo_id.partition("/")[0]}:
        raise Refused(401 if request.user is None else 403, f"Access to {kind} {repo_id} is restricted", "GatedRepo")
    commit = request.revision(repo, revision)
    blob = commit.files.get(path)
    here = {"X-Repo-Commit": commit.oid}
    if blob is None:
        raise Refused(404, "Entry not found", "EntryNotFound", **here)
    if blob.lfs:
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        request.hub.lfs.setdefault(blob.sha256, blob.content)
        return request.send(302, Location=f"{request.hub.storage}/download/{blob.sha256}", **here, **linked)
    return ranged(request, blob.content, {**here, "ETag": f'"{blob.git_oid}"'})


def download(request: Handler, oid: str) -> None:
    if "Authorization" in request.headers:
        raise Refused(400, "a token has no business in the storage")
    ranged(request, request.hub.lfs[oid], {"ETag": f'"{oid}"'})


def ranged(request: Handler, content: bytes, headers: dict[str, str]) -> None:
    """Answer with the part of `content` that was asked for."""
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if match is None:
        return request.send(200, content, **headers)
    begin, end = int(match[1]), int(match[2] or len(content) - 1) + 1
    if begin >= len(content):
        raise Refused(416, "no such range", **{"Content-Range": f"bytes */{len(content)}"})
    span = {"Content-Range": f"bytes {begin}-{min(end, len(content)) - 1}/{len(content)}"}
    return request.send(206, content[begin:end], **headers, **span)


def with_kind(answer: Any) -> Any:
    """Turn a route's `models` or `datasets/` into the repository's kind."""

    def call(request: Handler, kind: str | None, *others: str | None) -> None:
        answer(request, "dataset" if (kind or "").startswith("dataset") else "model", *others)

    return call


KIND, ID = "/api/(models|datasets)", "([^/]+/[^/]+)"
PAGE = f"/(datasets/)?{ID}"
ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("GET",), "/api/whoami-v2", whoami),
    (("POST",), "/api/validate-yaml", validate_yaml),
    (("POST",), "/api/repos/create", create),
    (("POST",), f"{KIND}/{ID}/branch/(.+)", with_kind(branch)),
    (("POST",), f"{KIND}/{ID}/preupload/(.+)", with_kind(preupload)),
    (("POST",), f"{KIND}/{ID}/commit/(.+)", with_kind(commit)),
    (("POST",), f"{KIND}/{ID}/paths-info/(.+)", with_kind(paths_info)),
    (("GET",), f"{KIND}/{ID}/tree/([^/]+)", with_kind(tree)),
    (("GET",), f"{KIND}/{ID}(?:/revision/(.+))?", with_kind(info)),
    (("POST",), rf"{PAGE}\.git/info/lfs/objects/batch", with_kind(lfs_batch)),
    (("PUT",), r"/storage/([0-9a-f]{64})(?:/(\d+))?", put),
    (("POST",), "/complete", complete),
    (("POST",), "/verify", verify),
    (("GET", "HEAD"), f"{PAGE}/resolve/([^/]+)/(.+)", with_kind(resolve)),
    (("GET", "HEAD"), "/download/([0-9a-f]{64})", download),
]
