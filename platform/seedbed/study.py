"""A study from outside: `run(experiment)` for Python, `main(experiment)` for a script with a command line.

What is given on the command line stands above `--smoke`, that above `--X.preset`, that above the script, that above the dataclass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from seedbed.config import Settings
from seedbed.types import UserError

if TYPE_CHECKING:
    from seedbed.local import Executor, Tracker
    from seedbed.pipeline import Experiment
    from seedbed.report import StudyResult

DONE, BAD_INPUT, SET_ASIDE, INTERRUPTED = 0, 2, 3, 130


Recipe = Callable[["Experiment"], Mapping[str, Any]]


def main(
    experiment: Experiment, smoke: Mapping[str, Any] | None = None, argv: Sequence[str] | None = None, recipe: Recipe | None = None
) -> NoReturn:
    """The command line of a study's script; ends the process with the documented status.

    `smoke` are the values that `--smoke` lays over the script's, by dotted names. `recipe` gives the script's own values for what was
    chosen (a method, its add-ons), for scripts in which one choice decides others.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with reported_errors():
        settings = parse(experiment, smoke or {}, arguments, recipe)
        if settings.explain:
            from seedbed.pipeline import explain

            explain(settings)
            sys.exit(DONE)
        result = run(settings)
    sys.exit(SET_ASIDE if any(stage.set_aside for stage in result.stages) else DONE)


def run(experiment: Experiment) -> StudyResult:
    """Runs a study, or what is missing of it; returns its scores and what the report shows. UserError: something a user can mend."""
    from seedbed.artefacts import hold
    from seedbed.stages import Study

    experiment.check()
    with hold(experiment.folder()):
        study = Study.open(experiment)  # data and settings are looked at before anything is started
        with executor(experiment, study.finished_on()) as work, tracker(experiment) as record:
            return study.run(work, record)


def parse(experiment: Experiment, smoke: Mapping[str, Any], arguments: Sequence[str], recipe: Recipe | None = None) -> Experiment:
    """The experiment with its recipe, presets, smoke values and command line laid over it, in that order of rank."""
    import tyro

    parsed = tyro.cli(type(experiment), default=experiment, args=arguments, description=_description())
    base: Experiment = experiment.replace(**recipe(parsed)) if recipe is not None else experiment
    for f in dataclasses.fields(experiment):
        chosen = getattr(parsed, f.name)
        if isinstance(chosen, Settings) and chosen.PRESETS and any(a.startswith(f"--{f.name}.preset") for a in arguments):
            base = dataclasses.replace(base, **{f.name: getattr(base, f.name).with_preset(chosen.preset)})  # type: ignore[attr-defined]
    if parsed.smoke:
        base = base.replace(**smoke)
    if base is experiment:
        return parsed
    return tyro.cli(type(experiment), default=base, args=arguments, description=_description())


def _description() -> str:
    import __main__

    return (__main__.__doc__ or "").strip()


@contextlib.contextmanager
def reported_errors() -> Iterator[None]:
    """A user's error as three lines and status 2; Ctrl-C as 130; anything else is a bug and keeps its traceback."""
    try:
        yield
    except UserError as error:
        if os.environ.get("SEEDBED_DEBUG") == "1":
            traceback.print_exc()
        print(error.text(), file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted: what is finished is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(INTERRUPTED)


@contextlib.contextmanager
def executor(experiment: Experiment, finished_on: str | None = None) -> Iterator[Executor]:
    """This process, or actors and workers of a Ray cluster; none is started for a study that is finished already."""
    run_config = experiment.run
    if finished_on is not None or run_config.executor == "local":
        from seedbed.local import LocalExecutor, local_device

        yield LocalExecutor(
            device=finished_on or local_device(run_config.device),
            threads=run_config.threads,
            workers=run_config.workers,
            commit_every=run_config.commit_every,
        )
        return
    from seedbed.runtime.launch import ray_executor

    with ray_executor(run_config, experiment.folder()) as work:
        yield work


@contextlib.contextmanager
def tracker(experiment: Experiment) -> Iterator[Tracker]:
    """The study's record."""
    with tracker_of(experiment.folder(), experiment.run.tracking_uri) as record:
        yield record


@contextlib.contextmanager
def tracker_of(out: str | os.PathLike[str], tracking_uri: str) -> Iterator[Tracker]:
    """MLflow where it is installed; the output folder has everything in any case."""
    from importlib.util import find_spec
    from pathlib import Path

    from seedbed.local import NullTracker

    if tracking_uri == "none" or find_spec("mlflow") is None:
        yield NullTracker()
        return
    from seedbed.runtime.tracking import MlflowTracker

    yield MlflowTracker(Path(out), tracking_uri)
