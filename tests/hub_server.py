"""The part of the hub's HTTP interface that a push needs, on a loopback port; it keeps what it was sent."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Hub:
    """Repositories by name: ``repos[name]`` is its ``private`` and ``files``; ``refuse`` is a status for every writing call."""

    def __init__(self):
        self.repos, self.large, self.calls, self.tokens, self.commits = {}, {}, [], set(), []
        self.refuse = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self):
                outer.calls.append(f"GET {self.path}")
                name = urlsplit(self.path).path.removeprefix("/api/models/")
                repo = outer.repos.get(name)
                if repo is None:
                    self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                else:
                    self._say(200, {"id": name, "private": repo["private"], "sha": "0" * 40, "siblings": [], "tags": []})

            def do_PUT(self):
                outer.calls.append(f"PUT {self.path}")
                content = self.rfile.read(int(self.headers["content-length"]))
                outer.large[hashlib.sha256(content).hexdigest()] = content
                self._say(200, {})

            def do_POST(self):
                outer.calls.append(f"POST {self.path}")
                raw = self.rfile.read(int(self.headers["content-length"]))
                outer.tokens.add(self.headers.get("authorization"))
                if outer.refuse is not None and "validate" not in self.path:
                    self._say(outer.refuse, {"error": "you may not"})
                elif self.path.endswith("/validate-yaml"):
                    self._say(200, {"errors": [], "warnings": []})
                elif self.path.endswith("/repos/create"):
                    asked = json.loads(raw)
                    name = f"{asked['organization']}/{asked['name']}"
                    outer.repos[name] = {"private": asked.get("private") or asked.get("visibility") == "private", "files": {}}
                    self._say(200, {"url": f"{outer.url}/{name}"})
                elif "/preupload/" in self.path:
                    self._say(200, {"files": [_mode(file) for file in json.loads(raw)["files"]]})
                elif self.path.endswith("/objects/batch"):
                    self._say(
                        200, {"transfer": "basic", "objects": [self._object(entry) for entry in json.loads(raw)["objects"]]}
                    )
                else:
                    self._commit([json.loads(line) for line in raw.splitlines()])

            def _object(self, entry):
                known = {"oid": entry["oid"], "size": entry["size"]}
                return (
                    known if entry["oid"] in outer.large else {**known, "actions": {"upload": {"href": f"{outer.url}/large"}}}
                )

            def _commit(self, lines):
                name = self.path.removeprefix("/api/models/").split("/commit/")[0]
                files = outer.repos[name]["files"]
                for line in lines:
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = outer.large[value["oid"]]
                    else:
                        outer.commits.append(value["summary"])
                self._say(200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{outer.url}/{name}/commit/{'1' * 40}"})

            def _say(self, status, body, headers=()):
                raw = json.dumps(body).encode()
                self.send_response(status)
                for key, value in {**dict(headers), "content-length": str(len(raw))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def _mode(file):
    is_large = file["path"].endswith((".safetensors", ".gguf"))
    return {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
