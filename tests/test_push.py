"""Pushing to the hub, against a server on this machine that takes what the hub takes."""

import base64
import http.server
import json
import threading
from pathlib import Path

import pytest
import yaml

from backtranslation import exports, hub
from backtranslation.records import read_json

TOKEN, COMMIT = "hf_PlantedTokenThatMustNotShow", "0123456789abcdef0123456789abcdef01234567"
RUN = ["push", "--cores", "1", "--configfile", "my.yaml", "--rerun-triggers", "mtime", "--allowed-rules", "push", "push_dataset", "push_model"]


@pytest.fixture
def taken(monkeypatch):
    """What a hub took, whose user is `me`: `repos` (private or not, by type and name), `files` (contents, by repository), `tokens`."""
    found: dict = {"repos": {}, "files": {}, "tokens": set()}
    large: dict[str, bytes] = {}

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, value: dict, status: int = 200):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if "Content-Length" in self.headers:
                return self.rfile.read(int(self.headers["Content-Length"]))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def do_GET(self):
            self.answer({"error": "Repository not found"}, 404)

        def do_PUT(self):
            large[self.path.rpartition("/")[2]] = self.body()
            self.answer({})

        def do_POST(self):
            body = self.body()
            found["tokens"].add(self.headers.get("Authorization"))
            host = f"http://127.0.0.1:{self.server.server_port}"
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                if asked.get("organization") != "me":
                    return self.answer({"error": "You don't have the rights to create a repository there"}, 403)
                name = f"me/{asked['name']}"
                found["repos"][asked.get("type", "model"), name] = asked.get("private", asked.get("visibility") == "private")
                return self.answer({"url": f"{host}/{name}", "name": name})
            if "/preupload/" in self.path:
                modes = [
                    {"path": file["path"], "shouldIgnore": False, "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".parquet")) else "regular"}
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": modes})
            if self.path.endswith("/objects/batch"):
                objects = [
                    {"oid": file["oid"], "size": file["size"], "actions": {"upload": {"href": f"{host}/large/{file['oid']}", "header": {}}}}
                    for file in json.loads(body)["objects"]
                ]
                return self.answer({"transfer": "basic", "objects": objects})
            if "/commit/" in self.path:
                repo = self.path.split("/commit/")[0].removeprefix("/api/")
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        found["files"].setdefault(repo, {})[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        found["files"].setdefault(repo, {})[value["path"]] = large[value["oid"]]
                return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{host}/{repo}/commit/{COMMIT}", "hookOutput": ""})
            self.answer({})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield found
    server.shutdown()
    server.server_close()


def made(folder: Path, dataset: str, model: str) -> dict[str, dict[str, bytes]]:
    """Writes a configuration, and files as a run leaves them, of which one is not for the hub; returns the others."""
    (folder / "my.yaml").write_text(yaml.safe_dump({"name": "made", "release": {"push": {"dataset": dataset, "model": model}}}))
    names = {
        "release/data": [*exports.FILES.values(), "dataset_info.json", "README.md"],
        "forward/model": ["README.md", "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merge.json"],
    }
    files: dict[str, dict[str, bytes]] = {}
    for place, found in names.items():
        where = folder / "results" / "made" / place
        where.mkdir(parents=True)
        files[place] = {name: f"---\nlicense: mit\n---\n{place} {name}\n".encode() for name in found}
        for name, content in {**files[place], "private.txt": b"not for others"}.items():
            (where / name).write_bytes(content)
    return files


def test_push_is_private_and_whole_and_shows_no_token(taken, snakemake, tmp_path, monkeypatch):
    files = made(tmp_path, "me/pairs", "me/assistant")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, printed = snakemake(*RUN)
    assert code == 0, printed
    assert taken["repos"] == {("dataset", "me/pairs"): True, ("model", "me/assistant"): True}
    assert taken["files"] == {"datasets/me/pairs": files["release/data"], "models/me/assistant": files["forward/model"]}
    pushed = read_json(tmp_path / "results" / "made" / "release" / "pushed" / "dataset.json")
    assert (pushed["repo"], pushed["commit"], pushed["files"]) == ("me/pairs", COMMIT, sorted(files["release/data"]))

    # Where one may not write, one sentence; and nothing is said to be there.
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"name": "made", "release": {"push": {"model": "other/assistant"}}}))
    code, refused = snakemake(*RUN, "--forcerun", "push_model")
    errors = [line for line in refused.splitlines() if line.startswith("ERROR: ")]
    assert code != 0 and len(errors) == 1 and errors[0].startswith("ERROR: release.push.model: other/assistant cannot be written with this token"), refused
    assert not (tmp_path / "results" / "made" / "release" / "pushed" / "model.json").exists()

    assert taken["tokens"] == {f"Bearer {TOKEN}"}
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink())
    assert TOKEN not in printed + refused and TOKEN.encode() not in left


def test_without_a_token_nothing_is_tried(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(hub.HubError, match=r"release\.push\.dataset: me/pairs needs a token that may write; set the variable HF_TOKEN"):
        hub.push([tmp_path / "README.md"], "me/pairs", "dataset", True)


def test_push_without_a_repository_is_refused(snakemake):
    code, printed = snakemake("push", "-n")
    assert code != 0 and "release.push: name the repository" in printed, printed
