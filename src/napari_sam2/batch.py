"""Many images: jobs spread over processes or a cluster by dask, resumed after a stop, reported.

    jobs = jobs_of("scans", template="liver.sam2session")
    results = run_batch(jobs, Settings(out=Path("livers")))

Each image is done by one `run_job` in a worker; the worker keeps its model. What is done is on
disk (labels, and a record beside them), so a run that is stopped, or whose workers die, goes on
where it was.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from napari_sam2.batch_jobs import Job, JobError, TablePrompts, jobs_of
from napari_sam2.batch_report import write_report
from napari_sam2.batch_worker import (
    DONE,
    FAILED,
    INCOMPLETE,
    RECORDS,
    REPORTS,
    SKIPPED,
    FoundObject,
    JobResult,
    Settings,
    check_model,
    check_outputs,
    models_of,
    run_job,
)
from napari_sam2.io import check_target
from napari_sam2.io.guard import reason_of
from napari_sam2.targets import why_not, why_not_in

__all__ = [
    "DONE",
    "FAILED",
    "INCOMPLETE",
    "SKIPPED",
    "BatchError",
    "FoundObject",
    "Job",
    "JobError",
    "JobResult",
    "Settings",
    "TablePrompts",
    "jobs_of",
    "run_batch",
]

_RETRIES = 2  # of a job whose worker died
_CORES_PER_WORKER = 2
_HERE = "127.0.0.1"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SCHEDULER_S = 20  # seconds to wait for one to answer


class BatchError(RuntimeError):
    """A batch cannot start; the message is a sentence that says what to do."""


def run_batch(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    tables: Sequence[Path] = (),
    workers: int | None = None,
    scheduler: str | None = None,
    on_start: Callable[[], None] | None = None,
    progress: Callable[[JobResult], None] | None = None,
) -> list[JobResult]:
    """Do all jobs, and write report.html and report.csv into the folder.

    What would go wrong with every image is found out before any is looked at. A job that fails, or
    whose worker dies again and again, does not end the others. Where the run is stopped (Ctrl-C),
    the report tells of what is done, and the next run skips it.

    tables: that the jobs were made from, which are not replaced either.
    workers: processes on this machine; by default one for each graphics card, or else one for every
        two processor cores.
    scheduler: the address of a dask scheduler, such as "tcp://node1:8786", whose workers see the
        same files and have napari-sam2; in place of processes here.
    on_start: called when the first image is about to be looked at.
    progress: called with each result as it comes.

    Returns the results in the order of the jobs.

    Raises, before any image is looked at:
        BatchError: nothing can be written there, or there are no workers.
        WriteError: it would replace what it reads, or there is no such format of labels.
        SessionFileError: a template cannot be read.
        ModelError: a worker does not have the model or the device.

    Raises in the end WriteError, where the report cannot be written; the labels are there.
    """
    settings = replace(settings, out=Path(settings.out).absolute(), run=secrets.token_hex(8))
    jobs = [_absolute(job) for job in jobs]
    check_outputs(jobs, settings, tables)
    _prepare(settings.out)
    check_target(settings.out / f"name{settings.suffix}", overwrite=True)
    models = models_of(jobs, settings)
    results: dict[str, JobResult] = {}
    with _client(settings, workers, scheduler) as (client, own):
        for model in models:
            _check_model(client, model, own)
        if on_start is not None:
            on_start()
        try:
            for result in _results(client, jobs, own):
                results[result.name] = result
                if progress is not None:
                    progress(result)
        finally:
            ordered = [results[job.name] for job in jobs if job.name in results]
            write_report(settings.out, ordered, left=len(jobs) - len(ordered))
    return ordered


def _check_model(client: Any, name: str, settings: Settings) -> None:
    """Have a worker load a model, which it keeps: only there is it known whether it can be."""
    from napari_sam2.segmentation import ModelError

    try:
        client.submit(check_model, name, settings, pure=False, retries=_RETRIES).result()
    except ModelError:
        raise
    except Exception as error:  # of dask, or whatever the worker lacks
        raise BatchError(
            f"The model {name} cannot be loaded by a worker: is napari-sam2 installed there, and "
            f"is there enough memory? ({reason_of(error)})"
        ) from error


def _results(client: Any, jobs: Sequence[Job], settings: Settings) -> Iterator[JobResult]:
    """The results as they come."""
    from distributed import as_completed

    of: dict[Any, Job] = {}
    for job in jobs:
        future = client.submit(run_job, job, settings, pure=False, retries=_RETRIES)
        of[future] = job
    for future in as_completed(list(of), loop=client.loop):
        job = of.pop(future)
        if future.status == "finished":
            yield future.result()
        else:
            yield JobResult(
                job.name,
                str(job.image),
                FAILED,
                "The process that worked on it died, and again when it was tried anew; is there "
                f"enough memory? ({reason_of(future.exception())})",
            )
        future.release()


@contextmanager
def _client(
    settings: Settings, workers: int | None, scheduler: str | None
) -> Iterator[tuple[Any, Settings]]:
    """A client of the cluster, and the settings for its workers."""
    try:
        from distributed import Client, Scheduler, SpecCluster
    except ImportError as error:
        raise BatchError(
            'Batches need the package dask.distributed: pip install "napari-sam2[batch]".'
        ) from error
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=_SCHEDULER_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise BatchError(
                f"There is no dask scheduler at {scheduler}; start one with `dask scheduler`."
            ) from error
        with client:
            yield client, settings
        return
    specs = _specs_here(settings, workers)
    threads = settings.threads or _threads_of_each(len(specs))
    # Nobody outside this machine can reach them.
    addresses = {"host": _HERE, "port": 0, "dashboard": False, "dashboard_address": f"{_HERE}:0"}
    scheduler_spec = {"cls": Scheduler, "options": addresses}
    with (
        SpecCluster(workers=specs, scheduler=scheduler_spec, silence_logs=logging.ERROR) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client, replace(settings, threads=threads)


def _specs_here(settings: Settings, workers: int | None) -> dict[int, dict[str, Any]]:
    """The processes on this machine: as many as are asked for, or one for each graphics card, or
    else for every two cores. More than there are cards share them."""
    cards = _graphics_cards(settings.device)
    count = workers or len(cards) or max(1, _cores() // _CORES_PER_WORKER)
    threads = settings.threads or _threads_of_each(count)
    return {
        number: _worker(threads, cards[number % len(cards)] if cards else None)
        for number in range(count)
    }


def _threads_of_each(workers: int) -> int:
    return max(1, _cores() // workers)


def _worker(threads: int, card: str | None) -> dict[str, Any]:
    """A process that is started again when it dies."""
    from distributed import Nanny

    environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    if card is not None:
        environment[_VISIBLE] = card
    # No limit of memory: a large volume is no leak.
    options = {"host": _HERE, "nthreads": 1, "memory_limit": 0, "env": environment}
    options["silence_logs"] = logging.ERROR
    return {"cls": Nanny, "options": options}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _graphics_cards(device: str) -> list[str | None]:
    """The cards that a device stands for, by what `_VISIBLE` calls them: this process may have been
    given some of the machine's. None is one that every process finds by itself, and shares.
    """
    import torch

    if device in ("auto", "cuda") and (count := torch.cuda.device_count()):
        given = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
        return [*(given or map(str, range(count)))][:count]
    is_apple = device == "auto" and torch.backends.mps.is_available()
    return [None] if is_apple or device.startswith(("cuda:", "mps")) else []


def _prepare(out: Path) -> None:
    """The folder, and that it can be written to."""
    problem = None
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        problem = why_not_in(out) or why_not_in(out / RECORDS)
    except OSError as error:
        problem = error.strerror or str(error)
    if out.exists() and not out.is_dir():
        problem = "it is a file, and a folder is needed"
    if problem:
        raise BatchError(f"Nothing can be written to {out}: {problem}.")
    for report in REPORTS:
        if problem := why_not(out / report, overwrite=True):
            raise BatchError(f"{out / report} cannot be written: {problem}.")


def _absolute(job: Job) -> Job:
    """Workers may have another working folder."""
    paths = {
        name: Path(path).absolute()
        for name in ("image", "session", "template", "mask")
        if (path := getattr(job, name)) is not None
    }
    return replace(job, **paths)  # type: ignore[arg-type]
