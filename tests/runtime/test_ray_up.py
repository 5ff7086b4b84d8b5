"""`ray up` and `ray submit` with ray_cluster.local.yaml, over ssh to this very machine.

A user's machine, a head and a worker are played by three home folders; 127.0.0.2 is the head, 127.0.0.3 the worker. Their Ray has its
own ports and temporary folders, so it meets no other Ray of this machine; nothing here calls `ray stop` or `ray down`, which would end
those too. The one thing not done is `make env`: each node's environment is a fresh one that borrows the packages of this one, while
`seedbed` comes from the copied folder.
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
from typing import Any

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
printf '#!/bin/sh\\nexec ~/seedbed/.venv/bin/python -m ray.scripts.scripts "$@"\\n' > ~/seedbed/.venv/bin/ray
chmod +x ~/seedbed/.venv/bin/ray
"""

# In place of `ray stop`, which ends every Ray of this user: the Ray processes of this node alone.
STOP = """\
import contextlib, os, pathlib, time

def mine():
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            home = f"HOME={os.environ['HOME']}".encode() in (entry / "environ").read_bytes().split(b"\\0")
            command = (entry / "cmdline").read_bytes()
            if home and (b"site-packages/ray/" in command or command.startswith(b"ray::")):
                yield int(entry.name)

for i in range(60):
    for pid in (left := list(mine())):
        with contextlib.suppress(OSError):
            os.kill(pid, 15 if i < 30 else 9)
    if not left:
        break
    time.sleep(0.3)
(pathlib.Path.home() / "ray" / "ray_current_cluster").unlink(missing_ok=True)
"""

HELLO = """\
import json, os, sys, time
import ray, seedbed
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ray.init(address="auto", log_to_driver=False)

@ray.remote(num_cpus=0)
def there():
    return seedbed.__file__, getattr(seedbed, "WORD", "")

until = time.monotonic() + 240
while len(nodes := [n["NodeID"] for n in ray.nodes() if n["Alive"]]) < 2 and time.monotonic() < until:
    time.sleep(1)
print("hello " + json.dumps({
    "driver": there._function(),
    "nodes": ray.get([there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n, soft=False)).remote() for n in nodes]),
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
    def head(self) -> Path:
        return self.folder / "head"

    @property
    def worker(self) -> Path:
        return self.folder / "worker"

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
    config["provider"] |= {"head_ip": "127.0.0.2", "worker_ips": ["127.0.0.3"]}
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(at.folder / "key")}
    env = next(i for i, c in enumerate(config["setup_commands"]) if c.endswith("make env"))
    config["setup_commands"][env] = f"bash {at.folder / 'borrow'}"
    port, small = free_port(), "--num-cpus=2 --object-store-memory=134217728"
    for node, address in (("head", "127.0.0.2 --include-dashboard=false"), ("worker", "127.0.0.3")):
        start = config[f"{node}_start_ray_commands"][-1].replace("6379", str(port)).replace("8076", str(free_port()))
        config[f"{node}_start_ray_commands"] = [f"{sys.executable} {at.folder / 'stop'}", f"{start} {small} --node-ip-address={address}"]
    return write(at.clone / "loopback.yaml", yaml.safe_dump(config))


def end_processes_of(*homes: Path) -> None:
    """SIGTERM, then SIGKILL, for every process whose HOME is a played node's."""
    marks = {f"HOME={home}".encode() for home in homes}
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and marks & set((entry / "environ").read_bytes().split(b"\0")):
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
    by_address = f'case "$SSH_CONNECTION" in *" 127.0.0.3 "*) HOME={at.worker};; *) HOME={at.head};; esac'
    session = write(folder / "session", f'#!/bin/bash\n{by_address}\nexport HOME\ncd ~\nexec bash -c "$SSH_ORIGINAL_COMMAND"\n', 0o755)
    server = write(
        folder / "sshd_config",
        f"""\
Port {at.port}
ListenAddress 127.0.0.2
ListenAddress 127.0.0.3
HostKey {folder / "host_key"}
AuthorizedKeysFile {folder / "key.pub"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
ForceCommand {session}
""",
    )
    # The key once more: ssh itself takes ~ from the account and not from HOME, and would miss the copy that the head has.
    client = write(folder / "ssh_config", f"Port {at.port}\nIdentityFile {folder / 'key'}\nLogLevel ERROR\n")
    write(folder / "bin" / "ssh", f'#!/bin/sh\nexec {TOOLS["ssh"]} -F {client} "$@"\n', 0o755)
    for home in (at.head, at.worker):  # what Ray writes stays in there, and the head's ssh finds the port too
        write(home / ".bashrc", f"export RAY_TMPDIR={home} PATH={folder / 'bin'}:$PATH\n")
    packages, lib = sysconfig.get_paths()["purelib"], f"python{sys.version_info.major}.{sys.version_info.minor}"
    write(folder / "stop", STOP)
    write(folder / "borrow", BORROW.format(python=sys.executable, packages=packages, lib=lib))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen(
        [TOOLS["sshd"], "-D", "-e", "-f", str(server)], stdin=subprocess.DEVNULL, stderr=(folder / "sshd.log").open("w")
    )
    try:
        yield at
    finally:
        end_processes_of(at.head, at.worker)
        daemon.terminate()
        daemon.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def commit(folder: Path) -> str:
    return subprocess.run([TOOLS["git"], "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout


def said(output: str) -> dict[str, Any]:
    line = re.search(r"hello (\{.*\})", output)
    assert line, output[-4000:]
    return json.loads(line[1])


def up(at: Loopback, config: Path, *flags: str) -> None:
    begin = time.monotonic()
    done = at.ray("up", "--yes", "--no-config-cache", "--disable-usage-stats", *flags, config)
    assert done.returncode == 0, done.stdout[-6000:]
    print(" ".join(["ray up", *flags]), f"{time.monotonic() - begin:.1f} s")


@pytest.fixture(scope="module")
def config(loopback: Loopback) -> Path:
    """The cluster file of a cluster that is up."""
    assert loopback.ray("get-auth-token", "--generate").returncode == 0
    file = cluster_file(loopback)
    up(loopback, file)
    return file


def test_code_reaches_every_node(loopback: Loopback, config: Path) -> None:
    at = loopback
    script = write(at.clone / "hello_cluster.py", HELLO)
    submit = at.ray("submit", "--no-config-cache", config, script, "--", "--name", "two words", "'two words'")
    assert submit.returncode == 0, submit.stdout[-4000:]
    first = said(submit.stdout)
    on_head, on_worker = (str(home / "seedbed" / "platform" / "seedbed" / "__init__.py") for home in (at.head, at.worker))
    assert first["driver"] == [on_head, ""], "the driver runs the code that was copied"
    assert sorted(first["nodes"]) == [[on_head, ""], [on_worker, ""]], "and so does every node"
    assert str(first["python"]).startswith(str(at.head / "seedbed" / ".venv")) and first["auth"] == "token"
    assert first["argv"] == ["--name", "two", "words", "two words"], "docs/cluster.md says that the shell there splits arguments again"
    assert commit(at.head / "seedbed") == commit(at.worker / "seedbed") == commit(at.clone), "scores made there carry the commit"

    package = at.clone / "platform" / "seedbed" / "__init__.py"
    package.write_text(package.read_text() + '\nWORD = "changed"\n')
    up(at, config, "--no-restart")
    second = said(at.ray("submit", "--no-config-cache", config, script).stdout)
    assert sorted(second["nodes"]) == [[on_head, "changed"], [on_worker, ""]], "docs/cluster.md says that it reaches the head alone"
    up(at, config)
    third = said(at.ray("submit", "--no-config-cache", config, script).stdout)
    assert sorted(third["nodes"]) == [[on_head, "changed"], [on_worker, "changed"]], "and that this reaches all"

    failing = write(at.clone / "failing_cluster.py", "import sys; sys.exit(3)\n")
    assert at.ray("submit", "--no-config-cache", config, failing).returncode == 1, "whatever the script's own status was"


def test_study_over_two_nodes(loopback: Loopback, config: Path) -> None:
    out = loopback.folder / "shared" / "shapes"
    flags = ("--smoke", "--out", out, "--run.tracking-uri", f"sqlite:///{loopback.head / 'mlflow.db'}")
    submit = loopback.ray("submit", "--no-config-cache", config, "experiments/shapes_rib.py", "--", *flags, timeout=500)
    assert submit.returncode == 0, submit.stdout[-6000:]
    assert "RIB" in submit.stdout and str(out / "report.html") in submit.stdout, submit.stdout[-3000:]
    rows = json.loads((out / "scores.json").read_text())["rows"]
    assert {r["protocol"]["git"] for r in rows} == {commit(loopback.clone).strip()}
    assert (loopback.head / "mlflow.db").exists()
