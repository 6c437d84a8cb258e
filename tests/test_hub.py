"""The hub, as far as it can be had here: a server on this machine that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from conftest import ROOT, pair

from backtranslation.records import read_json, write_jsonl

TOKEN, COMMIT = "hf_PlantedTokenThatMustNotShow", "0123456789abcdef0123456789abcdef01234567"
OPEN, GATED, DATA = "owner/open", "owner/gated", "owner/data"


@pytest.fixture
def hub(tiny, monkeypatch):
    """Repositories owner/open, and owner/gated and owner/data, whose terms nobody accepted; collects the requests.

    Answers without a token are 401, with one 403, with the headers X-Error-Code and X-Error-Message.
    """
    asked: list[tuple[str, str | None]] = []
    files = {path.name: path.read_bytes() for path in tiny.iterdir()}

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str):
            self.send_response(status)
            for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path, token = unquote(urlsplit(self.path).path), self.headers.get("Authorization")
            # The client asks the hub for other things besides, which are no repository.
            if "owner/" in path:
                asked.append((path, token))
            name = path.rpartition("/")[2]
            if OPEN not in path:
                said = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted. Please log in."}
                self.answer(403 if token else 401, b"{}", **said)
            elif f"/api/models/{OPEN}/tree/" in path:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/"):
                info = {"id": OPEN, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            elif name in files:
                self.answer(200, files[name], ETag=f'"{hashlib.sha1(files[name]).hexdigest()}"')
            else:
                self.answer(404, X_Error_Code="EntryNotFound")

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield asked
    server.shutdown()
    server.server_close()


def configure(folder: Path, name: str, **changes):
    write_jsonl([pair(n) for n in range(1, 21)], folder / "seed.jsonl")
    write_jsonl([{"text": f"A text with the number {n}."} for n in range(9)], folder / "corpus.jsonl")
    config = {
        "name": "hub",
        "model": {"kind": "hub", "name": name, "revision": COMMIT, "file": None, "sha256": None, "template": "auto"},
        "seed": {"sources": [{"path": "seed.jsonl"}], "heldout": 0.2},
        "corpus": {"sources": [{"path": "corpus.jsonl"}], "token_quantiles": [0.0, 1.0], "sample": 5},
        **changes,
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))


RUN = ["--cores", "1", "--resources", "gpu=1", "--configfile", "my.yaml"]


def written(folder: Path) -> str:
    """All text that a run left: logs, results, and Snakemake's own records."""
    return "\n".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize("token", [None, TOKEN])
def test_gated_model_is_one_sentence_and_shows_no_token(hub, snakemake, tmp_path, monkeypatch, token):
    configure(tmp_path, GATED)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    code, printed = snakemake("results/hub/corpus/sample.parquet", *RUN)
    sentence = f"ERROR: model.name: {GATED} is gated; accept its licence at https://huggingface.co/{GATED} and set HF_TOKEN"
    assert code != 0 and [line for line in printed.splitlines() if line.startswith("ERROR: ")] == [sentence], printed
    # The token was sent, and to be seen nowhere else.
    assert {sent for _, sent in hub} == {f"Bearer {token}" if token else None}
    assert TOKEN not in printed + written(tmp_path)
    assert not list(tmp_path.glob("resources/models/*/weights"))


def test_model_is_downloaded_at_its_commit_and_the_rest_runs_without_the_hub(hub, snakemake, tmp_path, tiny, monkeypatch):
    configure(tmp_path, OPEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, printed = snakemake("results/hub/backward/adapter/adapter_model.safetensors", *RUN)
    assert code == 0, printed
    (manifest,) = tmp_path.glob("resources/models/*/manifest.json")
    assert read_json(manifest)["revision"] == COMMIT
    assert (manifest.parent / "weights" / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert TOKEN not in printed + written(tmp_path)
    assert all(COMMIT in path for path, _ in hub), hub
    # Training came after the download, and asked for nothing.
    count = len(hub)
    code, printed = snakemake("results/hub/corpus/sample.parquet", *RUN, "--forcerun", "sample_segments", "train_backward")
    assert code == 0 and len(hub) == count, hub[count:]


def test_gated_data_set_is_one_sentence(hub, snakemake, tmp_path, monkeypatch):
    configure(tmp_path, OPEN, seed={"sources": [{"hub": DATA, "revision": COMMIT}], "heldout": 0.2})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    code, printed = snakemake("results/hub/seed/train.parquet", *RUN)
    errors = [line for line in printed.splitlines() if line.startswith("ERROR: ")]
    assert code != 0 and len(errors) == 1, printed
    assert f"hub:{DATA}" in errors[0] and f"https://huggingface.co/datasets/{DATA}" in errors[0] and "HF_TOKEN" in errors[0]
    assert TOKEN not in printed + written(tmp_path)


def test_jobs_are_off_the_hub_unless_they_fetch(tmp_path):
    """`logs.job` switches it off, which works only as long as no module brings the hub's client along when it is imported."""
    modules = sorted(path.stem for path in (ROOT / "scripts" / "backtranslation").glob("*.py") if path.stem not in ("__init__", "caching"))
    program = (
        f"import sys; from backtranslation import {', '.join(modules)}; assert 'huggingface_hub' not in sys.modules\n"
        f"with logs.job(sys.argv[1]{{}}):\n    from huggingface_hub import constants\nopen(sys.argv[1], 'w').write(str(constants.HF_HUB_OFFLINE))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    environment.pop("HF_HUB_OFFLINE")
    for options, expected in (("", "True"), (", online=True", "False")):
        command = [sys.executable, "-c", program.format(options), tmp_path / "log"]
        subprocess.run(command, check=True, env=environment, capture_output=True)
        assert (tmp_path / "log").read_text() == expected


def test_only_local_rules_fetch():
    """Cluster nodes have no network: what downloads runs where Snakemake runs."""
    online = {path.stem for path in (ROOT / "scripts").glob("*.py") if "online=True" in path.read_text()}
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk")).split("\nrule ")
    local = {rule.split(":")[0] for rule in rules if "localrule: True" in rule}
    assert "fetch_model" in online & local and online <= local
