"""Where a number came from: code, versions, hardware, times. Written to run.json; nothing of it enters a key."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("seedbed", "torch", "torchvision", "numpy", "pillow", "pyarrow", "ray", "mlflow", "tyro")


def git_commit() -> dict[str, Any]:
    """Commit of the checkout that this package is imported from, and whether it was changed since; empty without git."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": os.environ.get("SEEDBED_GIT_COMMIT", ""), "dirty": False}


def source_digest() -> str:
    """SHA-256 over the package's source files: equal on machines that would compute the same."""
    root = Path(__file__).resolve().parent
    sink = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        sink.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return sink.hexdigest()


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1), "gpus": gpus, "system": platform.platform()}


def command() -> list[str]:
    return [Path(sys.argv[0]).name, *sys.argv[1:]]
