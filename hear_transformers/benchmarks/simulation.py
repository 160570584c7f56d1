"""A bulk run as pools of processes that share cores: what each clip costs -> how long a run takes, and who is busy.

A clip goes from pool to pool, in order; within a process parts of the work follow each other. Processes get equal
shares of the cores, weighted by their priority, and never more cores than they have threads; a card serves one process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the work on a clip.

    Attributes
    ----------
    name : decode, resample, ...
    seconds : that it takes on one core, or on a card
    cores : that it can use at once, as many as it has threads; 0: it runs on a card
    """

    name: str
    seconds: float
    cores: float = 1.0


@dataclass(frozen=True, slots=True)
class Pool:
    """Processes that do the same work.

    Attributes
    ----------
    parts : of the work on a clip, one after the other
    processes : how many
    batch : clips that a process takes at once; fewer only if no more come
    weight : of a process where cores are short, 1 without a nice value
    ready_s : when they have started
    room : clips that may wait behind the pool until it pauses
    """

    parts: tuple[Part, ...]
    processes: int = 1
    batch: int = 1
    weight: float = 1.0
    ready_s: float = 0.0
    room: int = 64


@dataclass(frozen=True, slots=True)
class Run:
    """What a simulation found.

    Attributes
    ----------
    seconds : that the run takes
    core_seconds : of all cores together
    busy : part -> share of the time in which its processes were at it
    """

    seconds: float
    core_seconds: float
    busy: dict[str, float]

    @property
    def limit(self) -> str:
        """The part that was busiest."""
        return max(self.busy, key=lambda name: self.busy[name])


@dataclass(slots=True)
class _Job:
    """What one process is doing: a part of the work on some clips, and the seconds of a core or card that it lacks."""

    pool: int
    clips: int
    part: int
    left: float
    rate: float = 0.0


@dataclass(slots=True)
class _State:
    pools: Sequence[Pool]
    n_clips: int
    cores: float
    now: float = 0.0
    core_seconds: float = 0.0
    jobs: list[_Job] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)  # clips before each pool, and those that are done
    arrived: list[int] = field(default_factory=list)  # clips that have ever been there
    at_it: dict[str, float] = field(default_factory=dict)  # seconds, summed over processes


def simulate(pools: Sequence[Pool], n_clips: int, cores: float) -> Run:
    """Simulate a run.

    Parameters
    ----------
    pools : in the order in which clips go through them
    n_clips : at least 1
    cores : that all processes share
    """
    state = _State(pools, n_clips, cores)
    state.waiting = state.arrived = [0] * (len(pools) + 1)
    state.waiting, state.arrived = [n_clips, *state.waiting[1:]], [n_clips, *state.arrived[1:]]
    while state.arrived[-1] < n_clips:
        _start_jobs(state)
        _share_cores(state)
        _advance(state)
    busy: dict[str, float] = {}
    for pool in pools:
        for part in pool.parts:
            busy[part.name] = state.at_it.get(part.name, 0.0) / (state.now * pool.processes)
    return Run(state.now, state.core_seconds, busy)


def _start_jobs(state: _State) -> None:
    """Start free processes on clips that wait: those at the end of the line first, which makes room."""
    for i in reversed(range(len(state.pools))):
        pool = state.pools[i]
        free = pool.processes - sum(job.pool == i for job in state.jobs)
        while free and state.now >= pool.ready_s and state.waiting[i]:
            is_last = i + 1 == len(state.pools)
            under_way = sum(job.clips for job in state.jobs if job.pool == i)
            if not is_last and state.waiting[i + 1] + under_way >= max(pool.room, state.pools[i + 1].batch):
                break
            no_more = state.arrived[i] == state.n_clips
            if state.waiting[i] < pool.batch and not no_more:
                break
            clips = min(pool.batch, state.waiting[i])
            state.waiting[i] -= clips
            state.jobs.append(_Job(i, clips, 0, clips * pool.parts[0].seconds))
            free -= 1


def _share_cores(state: _State) -> None:
    """Set the rate of each job: on cores by weight, but no more than it can use, whose rest others get."""
    hungry = []
    for job in state.jobs:
        most = state.pools[job.pool].parts[job.part].cores
        if most:
            hungry.append((job, most, most * state.pools[job.pool].weight))
        else:
            job.rate = 1.0
    left = state.cores
    while hungry:
        total = sum(weight for _, _, weight in hungry)
        sated = [each for each in hungry if left * each[2] / total >= each[1]]
        if not sated:
            for job, _, weight in hungry:
                job.rate = left * weight / total
            return
        for job, most, _ in sated:
            job.rate = most
            left -= most
        hungry = [each for each in hungry if each not in sated]


def _advance(state: _State) -> None:
    """Go on to the next time at which a part ends or a pool is ready."""
    ends = [job.left / job.rate for job in state.jobs]
    starts = [pool.ready_s - state.now for pool in state.pools if pool.ready_s > state.now]
    step = min([*ends, *starts], default=math.inf)
    assert step < math.inf, "no process can go on"
    state.now += step
    going = []
    for job, end in zip(state.jobs, ends, strict=True):
        part = state.pools[job.pool].parts[job.part]
        state.at_it[part.name] = state.at_it.get(part.name, 0.0) + step
        state.core_seconds += step * job.rate * bool(part.cores)
        job.left -= step * job.rate
        if end > step:
            going.append(job)
        elif job.part + 1 < len(state.pools[job.pool].parts):
            job.part += 1
            job.left = job.clips * state.pools[job.pool].parts[job.part].seconds
            going.append(job)
        else:
            state.waiting[job.pool + 1] += job.clips
            state.arrived[job.pool + 1] += job.clips
    state.jobs = going
