"""When, of what and where a benchmark's figures were taken."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """What begins every benchmark's JSON: date, commit, machine, and the versions of `packages`."""
    git = ["git", "describe", "--always", "--dirty"]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: version(name) for name in packages},
    }
