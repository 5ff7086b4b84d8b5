"""MLflow's pages of an output folder."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

from seedbed.runtime.mlflow_store import SETTINGS, default_address, mend_moved, sqlite_path
from seedbed.types import UserError


def open_ui(out: Path, port: int) -> None:
    """Serves the record of an output folder on 127.0.0.1 until Ctrl-C, and prints the address of its newest experiment."""
    path = sqlite_path(default_address(out))
    if not path.exists():
        raise UserError(
            f"{out} has no mlflow.db",
            file=out,
            field="--run",
            remedy="name the output folder of a run, or open the UI of the server it logged to",
        )
    if not free(port):
        raise UserError(f"port {port} is in use", field="--port", remedy="name another one with --port")
    mend_moved(path)
    with tempfile.TemporaryFile("w+") as log:
        # A session of its own: the server has children, and all of them shall end with this process.
        server = subprocess.Popen(
            ui_command(path, port), env={**SETTINGS, **os.environ}, cwd=path.parent, stdout=log, stderr=log, start_new_session=True
        )
        try:
            while free(port):
                if server.poll() is not None:
                    log.seek(0)
                    print(log.read()[-2000:], file=sys.stderr)
                    raise UserError("MLflow's server ended at once", file=path, field="--run", remedy="see its last lines above")
                time.sleep(0.2)
            print(f"MLflow: http://127.0.0.1:{port}/#/experiments/{newest_experiment(path)}/runs (Ctrl-C ends it)", flush=True)
            server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def ui_command(path: Path, port: int) -> list[str]:
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = ["--backend-store-uri", f"sqlite:///{path}", "--default-artifact-root", (path.parent / "mlartifacts").as_uri()]
    return [sys.executable, "-m", "mlflow", "server", *store, *address]


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def newest_experiment(path: Path) -> str:
    with closing(sqlite3.connect(path)) as base:
        row = base.execute("SELECT experiment_id FROM runs ORDER BY start_time DESC LIMIT 1").fetchone()
    return str(row[0]) if row else "0"
