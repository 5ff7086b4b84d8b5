"""Where MLflow keeps its record: the tracking address, and the care of a sqlite file that lies in an output folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from seedbed.types import UserError

NETWORK_FILE_SYSTEMS = (
    "nfs",
    "cifs",
    "smb",
    "afs",
    "9p",
    "lustre",
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.gcsfuse",
    "fuse.rclone",
    "fuse.mount-s3",
)
"""Beginnings of file-system types on which sqlite's locks do not hold between machines."""
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "60",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""A dead server costs seconds, nothing is sent to third parties, nothing is printed. What the user has set stands."""


def quiet_mlflow() -> None:
    """Imports mlflow with our settings and without its messages."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow.tracking  # noqa: F401 (importing it sets the levels of its loggers)

    for name in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def tracking_address(out: Path, asked: str = "") -> str:
    """`--run.tracking-uri`, else MLFLOW_TRACKING_URI, else a sqlite file in the output folder; sqlite paths made absolute."""
    uri = asked or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or default_address(out)
    field = "--run.tracking-uri" if asked or not os.environ.get("MLFLOW_TRACKING_URI") else "MLFLOW_TRACKING_URI"
    if uri.startswith("sqlite:"):
        path, named = sqlite_path(uri), uri.removeprefix("sqlite:").strip("/").partition("?")[0]
        if named in ("", ":memory:") or not uri.startswith("sqlite:///"):
            raise UserError(f"{uri} names no file", field=field, remedy="write sqlite:////absolute/path/mlflow.db")
        refuse_network_file_system(path, field)
        return f"sqlite:///{path}"
    if urlsplit(uri).scheme in ("", "file"):
        folder = Path(uri.removeprefix("file://")).absolute()
        raise UserError(
            f"MLflow keeps no record in a plain folder any more ({uri})", field=field, remedy=f"write sqlite:///{folder / 'mlflow.db'}"
        )
    return uri


def default_address(out: Path) -> str:
    return f"sqlite:///{out.absolute() / 'mlflow.db'}"


def sqlite_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).absolute()


def refuse_network_file_system(path: Path, field: str, mounts: str | None = None) -> None:
    kind = file_system(path, Path("/proc/mounts").read_text() if mounts is None and os.path.exists("/proc/mounts") else mounts or "")
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        raise UserError(
            f"{path} lies on {kind}, where sqlite files get damaged",
            file=path,
            field=field,
            remedy="give a tracking server (--run.tracking-uri http://HOST:5000) or a local file (sqlite:////local/path/mlflow.db)",
        )


def file_system(path: Path, mounts: str) -> str:
    """Type of the file system that holds a path, by a table in the form of /proc/mounts; the last of equally long mount points counts."""
    found, longest = "", -1
    target = os.path.realpath(path)
    for line in mounts.splitlines():
        _, _, rest = line.partition(" ")
        point, kind = [*rest.split(" "), "", ""][:2]
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), point)
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            found, longest = kind, len(point)
    return found


def answers(uri: str, seconds: float = 3.0) -> bool:
    """Whether something listens at an http address; other addresses are found out by using them."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return True
    try:
        with socket.create_connection((parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


def artifact_root(uri: str, out: Path) -> str | None:
    """Folder of new experiments' artifacts; None where a server knows better."""
    if uri.startswith(("http:", "https:", "databricks")):
        return None
    return ((sqlite_path(uri).parent if uri.startswith("sqlite:") else out.absolute()) / "mlartifacts").as_uri()


def settle(uri: str) -> None:
    """Moves what sqlite keeps in its write-ahead log into the file, so that the file alone is the record."""
    if uri.startswith("sqlite:"):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(sqlite_path(uri), timeout=5)) as base:
            base.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def open_database(uri: str, out: Path) -> None:
    """Makes the sqlite file where it is missing, or mends the artifact addresses of one that came here with its folder."""
    path = sqlite_path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():
                _create(path, artifact_root(uri, out) or "")
            elif path == sqlite_path(default_address(out)):
                mend_moved(path)
    except OSError as error:
        raise UserError(
            f"{path} can't be written: {error.strerror}", file=path, field="--run.tracking-uri", remedy="name a file that you may write"
        ) from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path} can't be read: {error}",
            file=path,
            field="--run.tracking-uri",
            remedy="move it away (a new one is made), or name another",
        ) from error


def _create(path: Path, root: str) -> None:
    """Under a temporary name, then renamed: a kill leaves no half-made database, and nobody sees one."""
    quiet_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for stale in path.parent.glob(f".{path.name}.*.tmp*"):  # under the lock nobody else is at it
        stale.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    store = SqlAlchemyStore(f"sqlite:///{temporary}", root)
    store.engine.dispose()
    with contextlib.closing(sqlite3.connect(temporary)) as base:
        base.execute("PRAGMA journal_mode=WAL")  # readers (the UI) and writers do not wait for one another
    temporary.replace(path)


def mend_moved(path: Path) -> int:
    """Artifact addresses of a database whose folder was moved or copied point into the folder again; returns how many were mended.

    Every artifact of an output folder lies under its mlartifacts; what comes before that word is where the folder once was.
    """
    here = (path.parent / "mlartifacts").as_uri()
    mended = 0
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as base, base:
        tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, key, column in (
            ("experiments", "experiment_id", "artifact_location"),
            ("runs", "run_uuid", "artifact_uri"),
            ("logged_models", "model_id", "artifact_location"),
        ):
            if table not in tables:
                continue
            for ident, address in base.execute(f"SELECT {key}, {column} FROM {table}").fetchall():
                there, word, rest = (address or "").rpartition("/mlartifacts")
                local = there.startswith(("file:", "/")) and (rest == "" or rest.startswith("/"))
                if word and local and there + word != here:
                    base.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (here + rest, ident))
                    mended += 1
    return mended
