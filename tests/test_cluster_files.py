"""The two cluster files: valid to Ray, alike where they should be, and with a login shell that finds the environment."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILES = ("ray_cluster.yaml", "ray_cluster.local.yaml")


def config(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def commands(name: str) -> list[str]:
    return [c for key, value in config(name).items() if key.endswith("_commands") for c in value]


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_it(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config(name)))


def test_aws_workers_cost_nothing_when_idle() -> None:
    aws = config("ray_cluster.yaml")
    types = aws["available_node_types"]
    assert all("resources" in t for t in types.values()), "Ray refuses a node type without"
    workers = {name: t for name, t in types.items() if name != aws["head_node_type"]}
    assert workers
    for t in workers.values():
        assert t["min_workers"] == 0 and t["max_workers"] <= aws["max_workers"]
        assert t["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 0 < aws["idle_timeout_minutes"] <= 30


def test_code_and_environment_reach_every_node() -> None:
    one, other = (config(name) for name in FILES)
    for key in ("file_mounts", "rsync_exclude", "setup_commands", "worker_start_ray_commands"):
        assert one[key] == other[key], f"{key} differs between the two files"
    for remote, local in one["file_mounts"].items():
        assert local.startswith("~") or (ROOT / local).exists() or local == ".git", local
        assert local.startswith("~") or remote == f"~/seedbed/{local}"
    # What does not come as a folder comes by `git checkout`, which must leave those folders alone.
    checkout = next(c for c in one["setup_commands"] if "git checkout" in c)
    mounted = {local for local in one["file_mounts"].values() if not local.startswith(("~", "."))}
    assert set(re.findall(r":!(\w+)", checkout)) == mounted
    assert {"platform", "experiments", "datasets", "benchmarks"} == mounted


def test_setup_checks_out_what_is_not_mounted(tmp_path: Path) -> None:
    """The first setup command in a home folder that has .git and the mounted folders only."""

    def git(*args: str, cwd: Path) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(["git", *who, *args], cwd=cwd, check=True, capture_output=True, text=True).stdout

    node = tmp_path / "seedbed"
    for name in ("platform", "experiments", "datasets", "benchmarks", "docs"):
        (node / name).mkdir(parents=True)
        (node / name / "file").write_text("committed")
    (node / "Makefile").write_text("committed")
    git("init", "-q", cwd=node)
    git("add", ".", cwd=node)
    git("commit", "-q", "-m", "all", cwd=node)
    (node / "Makefile").unlink()
    (node / "docs" / "file").unlink()
    (node / "platform" / "file").write_text("as on the user's disk")
    first = config("ray_cluster.yaml")["setup_commands"][0]
    subprocess.run(["bash", "-c", first], env={**os.environ, "HOME": str(tmp_path)}, check=True)
    assert (node / "Makefile").exists() and (node / "docs" / "file").exists()
    assert (node / "platform" / "file").read_text() == "as on the user's disk"
    assert git("status", "--porcelain", cwd=node).split() == ["M", "platform/file"]


def test_login_shell_finds_the_environment(tmp_path: Path) -> None:
    """`ray submit` runs `python` of a login shell; the setup may run any number of times."""
    python = tmp_path / "seedbed" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho the environment\n")
    python.chmod(0o755)
    setup = next(c for c in config("ray_cluster.yaml")["setup_commands"] if "bashrc" in c)
    home = {**os.environ, "HOME": str(tmp_path)}
    for _ in range(2):
        subprocess.run(["bash", "-c", setup], env=home, check=True)
    assert (tmp_path / ".bashrc").read_text().count("\n") == 1
    shell = 'source ~/.bashrc; python; echo "$RAY_AUTH_MODE"'  # as Ray calls it
    run = subprocess.run(["bash", "--login", "-c", "-i", shell], env=home, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert run.stdout.split("\n")[:2] == ["the environment", "token"], run.stdout + run.stderr


def test_all_nodes_share_a_token() -> None:
    for name in FILES:
        assert config(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
        assert "ray get-auth-token --generate" in (ROOT / name).read_text(), "the header says how to make it"


@pytest.mark.parametrize("name", FILES)
def test_commands_are_shell(name: str) -> None:
    assert commands(name)
    for command in commands(name):
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert checked.returncode == 0, f"{command}\n{checked.stderr}"


def test_a_forgotten_file_system_is_said_at_once() -> None:
    mount = next(c for c in config("ray_cluster.yaml")["initialization_commands"] if "EDIT" in c)
    run = subprocess.run(["bash", "-c", mount], capture_output=True, text=True)
    assert run.returncode == 1 and "docs/cluster.md" in run.stdout
