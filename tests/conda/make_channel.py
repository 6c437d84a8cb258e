"""Makes a conda channel that holds python and pip alone, packed from a Python of this machine: make_channel.py PYTHON FOLDER."""

import asyncio
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import rattler
from rattler.index import index_fs


def entry(path: Path, root: Path) -> dict:
    data = b"" if path.is_symlink() else path.read_bytes()
    kind = "softlink" if path.is_symlink() else "hardlink"
    return {
        "_path": str(path.relative_to(root)),
        "path_type": kind,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_in_bytes": len(data),
    }


def pack(name: str, version: str, depends: list[str], root: Path, channel: Path) -> None:
    """Packs all files below `root` into a conda package."""
    platform = str(rattler.Platform.current())
    files = sorted(
        path for path in root.rglob("*") if (path.is_symlink() or path.is_file()) and "__pycache__" not in path.parts
    )
    index = {
        "name": name,
        "version": version,
        "build": "test_0",
        "build_number": 0,
        "depends": depends,
        "subdir": platform,
    }
    texts = {
        "info/index.json": json.dumps(index),
        "info/paths.json": json.dumps({"paths": [entry(path, root) for path in files], "paths_version": 1}),
        "info/files": "".join(f"{path.relative_to(root)}\n" for path in files),
    }
    target = channel / platform / f"{name}-{version}-test_0.tar.bz2"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target, "w:bz2") as archive:
        for path, text in texts.items():
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        for file in files:
            archive.add(file, arcname=str(file.relative_to(root)), recursive=False)


def main(python: Path, channel: Path) -> None:
    asked = subprocess.run(
        [python, "-c", "import platform; print(platform.python_version())"], check=True, capture_output=True, text=True
    )
    version = asked.stdout.strip()
    short = version.rpartition(".")[0]
    with tempfile.TemporaryDirectory() as made:
        # A python that is a venv of the one it is packed from, and the pip of such a venv.
        interpreter = Path(made) / "python"
        (interpreter / "bin").mkdir(parents=True)
        (interpreter / "pyvenv.cfg").write_text(
            f"home = {python.parent}\ninclude-system-site-packages = false\nversion = {version}\n"
        )
        (interpreter / "bin" / f"python{short}").symlink_to(python)
        for name in ("python", "python3"):
            (interpreter / "bin" / name).symlink_to(f"python{short}")
        pack("python", version, [], interpreter, channel)
        subprocess.run([python, "-m", "venv", f"{made}/venv"], check=True)
        packages = Path(made) / "pip" / "lib" / f"python{short}" / "site-packages"
        packages.mkdir(parents=True)
        for folder in Path(made).glob("venv/lib/python*/site-packages/pip*"):
            shutil.move(folder, packages / folder.name)
        (installed,) = packages.glob("pip-*.dist-info")
        pack(
            "pip",
            installed.name.removesuffix(".dist-info").removeprefix("pip-"),
            [f"python {short}.*"],
            Path(made) / "pip",
            channel,
        )
    (channel / "noarch").mkdir(exist_ok=True)
    asyncio.run(index_fs(channel_directory=str(channel)))


if __name__ == "__main__":
    main(Path(os.path.realpath(sys.argv[1])), Path(sys.argv[2]).resolve())
