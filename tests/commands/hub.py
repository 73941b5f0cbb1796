"""A hub on loopback, as far as an upload needs one: repositories, and what their commits hold."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Hub:
    """Serves until its context ends.

    Attributes:
        repositories: whether each is private.
        files: content by path, of each repository.
        messages: of the commits.
        tokens: that came with the requests.
    """

    def __init__(self, **repositories: bool) -> None:
        self.repositories: dict[str, bool] = {name.replace("__", "/"): value for name, value in repositories.items()}
        self.files: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.tokens: set[str | None] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the content that answer a request."""
        name = "/".join(path.split("/")[3:5])
        match method, path:
            case "POST", "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if name in self.repositories:
                    return 409, {"error": "there is one", "url": f"{self.address}/{name}"}
                self.repositories[name] = asked.get("private", asked.get("visibility") == "private")
                return 200, {"url": f"{self.address}/{name}", "id": name, "name": name}
            case "POST", "/api/validate-yaml":
                return 200, {"errors": [], "warnings": []}
            case "POST", _ if "/preupload/" in path:
                files = [file["path"] for file in json.loads(body)["files"]]
                return 200, {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]}
            case "POST", _ if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "header":
                        self.messages.append(line["value"]["summary"])
                    elif line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        self.files.setdefault(name, {})[line["value"]["path"]] = content
                return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1" * 40, "success": True}
            case "GET", _ if name in self.repositories:
                return 200, {"id": name, "private": self.repositories[name], "sha": "0" * 40, "siblings": []}
        return 404, {"error": f"nothing here: {method} {path}"}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.add(self.headers.get("Authorization"))
        status, content = self.hub.answer(self.command, self.path.partition("?")[0], body)
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing for the terminal."""
