"""Where Ray is: `RAY_ADDRESS`, else the cluster whose head node this machine is, else a small Ray of this process tree.

Never, by chance, another user's: a cluster that was not named is joined only when its head process runs here under this user.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedbed.runtime.nodes import await_resources, gpu_share, look_at_nodes, offered
from seedbed.types import UserError

OBJECT_STORE = 256 << 20
"""Bytes of the own Ray's object store: only ids and states travel through it; pictures, maps and weights go through files."""
DEADLINE = 15 * 60.0
"""Seconds to wait for nodes that an autoscaler has to start."""


@dataclass(frozen=True)
class Cluster:
    """What a run found: where networks run, on how many nodes, and what a worker may ask for."""

    device: str
    """cpu or cuda."""
    nodes: int
    own: bool
    """True for a Ray that this run started and will end."""
    gpus_per_actor: float
    """Share of a GPU for each actor of per-image work; 0 on the CPU."""
    resources: Mapping[str, float] = field(default_factory=dict)


ATTEMPTS = 3
"""Starts of an own Ray, when it does not come up in time."""


def say_on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def connect(
    out: Path,
    *,
    actors: int = 1,
    workers: int = 1,
    threads: int = 1,
    device: str = "auto",
    deadline: float = DEADLINE,
    say: Callable[[str], None] = say_on_stderr,
) -> Iterator[Cluster]:
    """Connects to Ray, or starts one, and looks at what it offers before any stage does; leaves nothing running that it started.

    actors, workers, threads: actors of per-image work, training workers, CPUs of each. device: auto, cpu or cuda (UserError without any).
    """
    address = find_cluster()
    if address is None:
        refuse_missing_cuda(device)
    prepare_environment(own=address is None)
    with quiet_stderr():
        import ray

    if ray.is_initialized():  # the caller's: used, and left as it was
        yield _survey(out, actors, workers, threads, device, deadline, say, own=False)
        return
    _start(address, max(actors, workers) * threads + 1, device)
    session = _session_folder() if address is None else None
    try:
        yield _survey(out, actors, workers, threads, device, deadline, say, own=address is None)
    except BaseException:
        session = None  # what Ray's processes wrote may say why
        raise
    finally:
        ray.shutdown()
        if session is not None and not os.environ.get("SEEDBED_DEBUG"):
            shutil.rmtree(session, ignore_errors=True)


def prepare_environment(own: bool) -> None:
    """What Ray reads when it is imported. Values that the user has set stand."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints pages about dead workers and nodes to stdout; what they cost is told in our words.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|Raylet is terminated|has been marked dead")
    if own and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:  # Ray reads the mode when it is imported
        # A fresh secret for this process tree: nobody else on the machine can submit work to it, and nothing is written to ~/.ray.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not os.environ.get("SEEDBED_DEBUG"):
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextmanager
def quiet_stderr(*, shown_on_error: bool = True) -> Iterator[None]:
    """Holds back what C++ and Python write to the terminal meanwhile, and shows it after all where an error follows."""
    if os.environ.get("SEEDBED_DEBUG"):
        yield
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            if failed and shown_on_error:
                held.seek(0)
                sys.stderr.write(held.read().decode(errors="replace"))


def find_cluster() -> str | None:
    """Address of the cluster to join, None where this run starts its own Ray."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if named == "local":
        return None
    if named.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS is {named}: Ray's client protocol can't carry a study",
            field="RAY_ADDRESS",
            remedy="run on the head node: ray submit ray_cluster.yaml experiments/NAME.py",
        )
    if named and named != "auto":
        if not _answers(named):
            raise UserError(
                f"no Ray answers at {named}",
                field="RAY_ADDRESS",
                remedy="start the cluster (ray up ray_cluster.yaml), or unset RAY_ADDRESS",
            )
        return named
    own = _own_head()
    if named and own is None:
        raise UserError(
            "RAY_ADDRESS is auto, but no head node of yours runs here",
            field="RAY_ADDRESS",
            remedy="unset RAY_ADDRESS to use this machine alone",
        )
    return own


def _own_head() -> str | None:
    """`ray start --head` leaves its address in a file; it counts when file and listening process are this user's."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        if note.stat().st_uid != os.getuid():
            return None
        address = note.read_text().strip()
        port = int(address.rpartition(":")[2])
    except (OSError, ValueError):
        return None
    return address if os.getuid() in listeners(port) and _answers(address) else None


def listeners(port: int) -> set[int]:
    """User ids of the processes of this machine that listen on a TCP port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                local, state, uid = (line.split()[i] for i in (1, 3, 7))
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(uid))
    return found


def _answers(address: str, seconds: float = 5.0) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def _start(address: str | None, cpus: int, device: str) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": bool(os.environ.get("SEEDBED_DEBUG")), "logging_level": logging.ERROR}
    if address is not None:
        try:
            with quiet_stderr():
                ray.init(address=address, **quiet)
        except Exception as error:
            raise UserError(
                f"can't join the Ray cluster at {address}: {_first_line(error)}",
                field="RAY_ADDRESS",
                remedy="use the same versions of Python and Ray on every node (ray_cluster.yaml installs them), or unset RAY_ADDRESS",
            ) from error
        return
    gpus = 0
    if device != "cpu":
        import torch

        gpus = torch.cuda.device_count()
    for attempt in range(ATTEMPTS):
        try:
            with quiet_stderr(shown_on_error=attempt == ATTEMPTS - 1):
                ray.init(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
            return
        except Exception as error:
            ray.shutdown()
            # Ray gives its processes 30 s to start, which a machine that is busy with other work may exceed.
            if "timed out" in str(error) and attempt < ATTEMPTS - 1:
                continue
            raise UserError(
                f"Ray can't be started on this machine: {_first_line(error)}",
                field="--run.executor",
                remedy="say --run.executor local, which needs no Ray; SEEDBED_DEBUG=1 shows Ray's own messages",
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _session_folder() -> str | None:
    """Folder of the own Ray's logs and sockets; megabytes that nobody reads after a run that went well."""
    import ray

    with suppress(Exception):  # not a public interface
        return str(ray._private.worker._global_node.get_session_dir_path())
    return None


def refuse_missing_cuda(device: str) -> None:
    """`--run.device cuda` on this machine without any: said before Ray is started."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "--run.device is cuda, but this machine has no CUDA device that torch can use",
                field="--run.device",
                remedy="use --run.device auto or cpu, or run on a cluster with GPU workers",
            )


def _survey(
    out: Path, actors: int, workers: int, threads: int, device: str, deadline: float, say: Callable[[str], None], *, own: bool
) -> Cluster:
    import ray

    gpus = offered().get("GPU", 0.0)
    if device == "cuda" and gpus < 1:
        raise UserError(
            "--run.device is cuda, but no worker of the Ray cluster has a GPU or can be started with one",
            field="--run.device",
            remedy="use --run.device auto or cpu, or give the cluster GPU workers",
        )
    resolved = "cuda" if gpus >= 1 and device != "cpu" else "cpu"
    share = gpu_share(actors, gpus) if resolved == "cuda" else 0.0
    training = {"CPU": float(threads), **({"GPU": 1.0} if resolved == "cuda" else {})}
    imaging = {"CPU": float(threads), **({"GPU": share} if share else {})}
    if not own:
        # Actors may come one after the other, training workers only together.
        await_resources([imaging], [imaging] * actors, deadline, say)
        await_resources([training] * workers, [training] * workers, deadline, say)
    nodes = look_at_nodes(out)
    return Cluster(resolved, nodes, own, share, dict(ray.cluster_resources()))
