"""The command ``python -m sam2_engine.training``; a module of its own, so that spawned processes
find it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sam2_engine.training.sources import load_sources
from sam2_engine.training.trainer import (
    CLIPS,
    STAGES,
    Stage,
    Trainer,
    new_model,
    scaled,
    tiny_is_zero,
)
from sam2_engine.weights import WeightsError, load_model


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 2 with one line on standard error where the input is wrong."""
    options = _parser().parse_args(arguments)
    if options.processes < 2:
        return _train(0, options)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        codes = mp.get_context("spawn").SimpleQueue()
        mp.start_processes(
            _train_together, (options, meeting, codes), options.processes, start_method="spawn"
        )
        return int(codes.get())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sam2_engine.training",
        description="Train a small SAM 2 in stages (geometry, images, clips). "
        "Run it again with the same --out to go on where it was stopped.",
    )
    add = parser.add_argument
    add(
        "--data",
        help="manifest.json of labelled images, of which only the split 'train' is used; "
        "without it all clips are synthetic",
    )
    add("--config", default="nano", choices=sorted(STAGES), help="what to train")
    add("--out", required=True, help="folder of the checkpoint and the log")
    add(
        "--from",
        dest="start",
        help="a trained model to go on from, a name or a file; by default only stages with clips "
        "follow",
    )
    add(
        "--stages",
        nargs="+",
        help="names of the stages to run; by default all, and with --from those with clips",
    )
    add("--minutes", type=float, help="how long all stages last together")
    add("--steps", type=int, help="stop after so many steps; run again to go on")
    add("--seed", type=int, default=0)
    add(
        "--processes",
        type=int,
        default=1,
        help="train in so many processes with averaged gradients; on a busy CPU several processes "
        "of one thread each are much faster than one of several threads",
    )
    add("--threads", type=int, help="threads of PyTorch in each process; its own choice by default")
    add("--workers", type=int, default=0, help="processes that make batches ahead, for each")
    add("--random-trunk", action="store_true", help="do without ImageNet's weights")
    return parser


@tiny_is_zero()
def _train(rank: int, options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    problem = None
    try:
        stages = _chosen_stages(options)
        if options.minutes:
            stages = scaled(stages, options.minutes)
        if options.start:
            model = load_model(options.start, device="cpu", dtype="float32")
        else:
            model = new_model(options.config, imagenet=not options.random_trunk)
        sources = load_sources(options.data) if options.data else []
        trainer = Trainer(model, stages, options.out, sources, options.seed, options.workers, rank)
        resumed = trainer.resume()
    except (OSError, ValueError, ModuleNotFoundError, WeightsError) as error:
        problem = str(error)
    problem = _first_of_all(problem)
    if problem is not None:
        if rank == 0:
            print(f"Error: {problem}", file=sys.stderr)
        return 2
    if rank == 0:
        print(f"{'Resumed' if resumed else 'Started'}: {trainer.progress}", flush=True)
    trainer.run(options.steps)
    return 0


def _chosen_stages(options: argparse.Namespace) -> tuple[Stage, ...]:
    stages = STAGES[options.config]
    if options.stages:
        known = [stage.name for stage in stages]
        for name in options.stages:
            if name not in known:
                raise ValueError(f"There is no stage {name!r}; there are: {', '.join(known)}.")
        return tuple(stage for stage in stages if stage.name in options.stages)
    if options.start:
        return tuple(stage for stage in stages if stage.kind == CLIPS)
    return stages


def _first_of_all(problem: str | None) -> str | None:
    """What is wrong in any of the processes, so that none trains without the others."""
    if not dist.is_initialized():
        return problem
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((one for one in problems if one is not None), None)


def _train_together(rank: int, options: argparse.Namespace, meeting: str, codes: Any) -> None:
    # Not by a URL, which has no place for a path of Windows.
    store = dist.FileStore(meeting, options.processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.processes)
    code = _train(rank, options)
    dist.destroy_process_group()
    if rank == 0:
        codes.put(code)
