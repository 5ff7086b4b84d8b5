"""`ray up` and `ray submit` with ray_cluster.local.yaml, over ssh to this very machine.

A user's machine and a head node are played by two home folders. The head's Ray has its own ports and its own temporary folder, so it
meets no other Ray of this machine; nothing here calls `ray stop` or `ray down`, which would end those too. The one thing not done is
`make env`: the node's environment is a fresh one that borrows the packages of this one, while `seedbed` comes from the copied folder.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]

ROOT = Path(__file__).resolve().parents[2]
TOOLS = {"sshd": shutil.which("sshd") or "/usr/sbin/sshd", "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen")}
TOOLS |= {"rsync": shutil.which("rsync"), "git": shutil.which("git")}

BORROW = """\
set -e
test -x ~/seedbed/.venv/bin/python || {python} -m venv --without-pip ~/seedbed/.venv
cat > ~/seedbed/.venv/lib/{lib}/site-packages/borrowed.pth <<END
$HOME/seedbed/platform
{packages}
END
printf '#!/bin/sh\\nexec {home}/seedbed/.venv/bin/python -m ray.scripts.scripts "$@"\\n' > ~/seedbed/.venv/bin/ray
chmod +x ~/seedbed/.venv/bin/ray
"""

HELLO = """\
import json, os, sys
import ray, seedbed
ray.init(address="auto", log_to_driver=False)

@ray.remote
def there():
    return seedbed.__file__

print("hello " + json.dumps({
    "file": seedbed.__file__, "task": ray.get(there.remote()), "word": getattr(seedbed, "WORD", ""),
    "argv": sys.argv[1:], "python": sys.executable, "auth": os.environ["RAY_AUTH_MODE"],
}))
"""


@dataclass
class Loopback:
    folder: Path
    port: int

    @property
    def clone(self) -> Path:
        return self.folder / "laptop" / "seedbed"

    @property
    def node(self) -> Path:
        return self.folder / "node"

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "OMP_"))}
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        home = self.folder / "laptop"
        return kept | {
            "HOME": str(home),
            "PATH": path,
            "RAY_TMPDIR": str(home / "ray"),
            "RAY_UP_enable_autoscaler_v2": "1",
            "NO_COLOR": "1",
        }

    def ray(self, *args: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """One `ray` command, as a user types it in a clone."""
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *map(str, args)],
            cwd=self.clone,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def clone_with_changes(target: Path) -> None:
    """A clone of this repository with the mounted folders as they are on disk."""
    subprocess.run([TOOLS["git"], "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target)], check=True)
    for name in ("platform", "experiments", "datasets", "benchmarks"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))


def cluster_file(at: Loopback) -> Path:
    """ray_cluster.local.yaml with this machine as its head, and ports of its own."""
    import yaml

    config = yaml.safe_load((ROOT / "ray_cluster.local.yaml").read_text())
    config["cluster_name"] = f"loopback-{at.folder.name}"
    config["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(at.folder / "key")}
    env = next(i for i, c in enumerate(config["setup_commands"]) if c.endswith("make env"))
    config["setup_commands"][env] = f"bash {at.folder / 'borrow'}"
    start = config["head_start_ray_commands"][-1]
    start = start.replace("--port=6379", f"--port={free_port()}").replace(
        "--object-manager-port=8076", f"--object-manager-port={free_port()}"
    )
    config["head_start_ray_commands"] = [f"{start} --num-cpus=2 --object-store-memory=268435456 --include-dashboard=false"]
    return write(at.clone / "loopback.yaml", yaml.safe_dump(config))


def end_processes_of(home: Path) -> None:
    """SIGTERM, then SIGKILL, for every process whose HOME is the played node's."""
    mark = f"HOME={home}".encode()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), sign)
        time.sleep(1)


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    missing = [name for name, path in TOOLS.items() if not path or not Path(path).exists()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} (apt: openssh-server, openssh-client, rsync, git)")
    if not (ROOT / ".git").is_dir():
        pytest.skip("not a git clone")
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))  # short: Unix sockets below it have at most 107 characters
    at = Loopback(folder, free_port())
    clone_with_changes(at.clone)
    for name in ("host_key", "key"):
        subprocess.run([TOOLS["ssh-keygen"], "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    session = write(folder / "session", f'#!/bin/bash\nexport HOME={at.node}\ncd ~\nexec bash -c "$SSH_ORIGINAL_COMMAND"\n', 0o755)
    server = write(
        folder / "sshd_config",
        f"""\
Port {at.port}
ListenAddress 127.0.0.1
HostKey {folder / "host_key"}
AuthorizedKeysFile {folder / "key.pub"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
ForceCommand {session}
""",
    )
    client = write(folder / "ssh_config", f"Port {at.port}\nLogLevel ERROR\n")
    write(folder / "bin" / "ssh", f'#!/bin/sh\nexec {TOOLS["ssh"]} -F {client} "$@"\n', 0o755)
    write(at.node / ".bashrc", f"export RAY_TMPDIR={at.node}/ray\n")  # this head's Ray keeps to itself
    packages, lib = sysconfig.get_paths()["purelib"], f"python{sys.version_info.major}.{sys.version_info.minor}"
    write(folder / "borrow", BORROW.format(python=sys.executable, packages=packages, lib=lib, home=at.node))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        [TOOLS["sshd"], "-D", "-e", "-f", str(server)], stdin=subprocess.DEVNULL, stderr=(folder / "sshd.log").open("w")
    )
    try:
        yield at
    finally:
        end_processes_of(at.node)
        daemon.terminate()
        daemon.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def said(output: str) -> dict[str, object]:
    line = re.search(r"hello (\{.*\})", output)
    assert line, output[-4000:]
    return json.loads(line[1])


def test_up_submit_change_submit(loopback: Loopback) -> None:
    assert loopback.ray("get-auth-token", "--generate").returncode == 0
    config = cluster_file(loopback)
    begin = time.monotonic()
    up = loopback.ray("up", "--yes", "--no-config-cache", "--disable-usage-stats", config)
    print(f"ray up: {time.monotonic() - begin:.1f} s")
    assert up.returncode == 0, up.stdout[-6000:]

    script = write(loopback.clone / "hello_cluster.py", HELLO)
    submit = loopback.ray("submit", "--no-config-cache", config, script, "--", "--name", "two words", "'two words'")
    assert submit.returncode == 0, submit.stdout[-4000:]
    first = said(submit.stdout)
    copied = str(loopback.node / "seedbed" / "platform" / "seedbed" / "__init__.py")
    assert first["file"] == first["task"] == copied, "the code of the copied folder runs, in the driver and in the cluster"
    assert str(first["python"]).startswith(str(loopback.node / "seedbed" / ".venv")) and first["auth"] == "token"
    assert first["argv"] == ["--name", "two", "words", "two words"], "docs/cluster.md says that the shell there splits arguments again"

    node_git = subprocess.run([TOOLS["git"], "-C", str(loopback.node / "seedbed"), "rev-parse", "HEAD"], capture_output=True, text=True)
    clone_git = subprocess.run([TOOLS["git"], "-C", str(loopback.clone), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert node_git.stdout == clone_git.stdout != "", "scores made there carry the commit"

    package = loopback.clone / "platform" / "seedbed" / "__init__.py"
    package.write_text(package.read_text() + '\nWORD = "changed"\n')
    begin = time.monotonic()
    again = loopback.ray("up", "--yes", "--no-restart", "--no-config-cache", "--disable-usage-stats", config)
    print(f"ray up --no-restart: {time.monotonic() - begin:.1f} s")
    assert again.returncode == 0, again.stdout[-4000:]
    assert said(loopback.ray("submit", "--no-config-cache", config, script).stdout)["word"] == "changed"

    failing = write(loopback.clone / "failing_cluster.py", "import sys; sys.exit(3)\n")
    assert loopback.ray("submit", "--no-config-cache", config, failing).returncode == 1, "whatever the script's own status was"
