"""Commands about runs that were submitted: where they are, what they said, ending and resuming them."""

from __future__ import annotations

import shlex
from typing import Annotated

from hpc_tumor.cli.options import (
    AnyPatterns,
    Json,
    Networks,
    Patterns,
    Runs,
    State,
    Verbose,
    Yes,
    find,
    find_named,
    flag,
    folder_of_runs,
    option,
    say_no_runs,
)
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError


def status(
    patterns: AnyPatterns = None,
    runs: Runs = None,
    state: State = None,
    model: Networks = None,
    sort: Annotated[
        str | None, option("--sort", value="COLUMN", text="name, state, epoch, left, best or heartbeat.")
    ] = None,
    watch: Annotated[bool, flag("--watch", "-w", text="Go on showing until all have ended, or Ctrl-C.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show runs: state, progress, scores so far, and why they wait or ended.

    Examples:

    hpc-tumor status --watch

    hpc-tumor status --state failed,lost --model unet
    """
    from hpc_tumor.cli.control import show_states, watch_runs
    from hpc_tumor.cli.views.runs import choose
    from hpc_tumor.cluster.observe.queue import read_states

    found = find(runs, patterns)
    if not found:
        out.note(say_no_runs(folder_of_runs(runs)))
    choose([], state, model, sort)  # what is not there to choose by is refused before one waits
    if watch:
        states = choose(watch_runs(found, lambda states: choose(states, state, model)), sort=sort)
    else:
        states = choose(read_states(found), state, model, sort)
    if found and not states:
        wanted = [f"--state {state}" if state else "", *(f"--model {name}" for name in model or [])]
        out.note(f"none of {len(found)} runs fits {' '.join(filter(None, wanted))}")
    show_states(states)


def logs(
    patterns: Patterns,
    runs: Runs = None,
    rank: Annotated[int, option("--rank", min=0, value="N", text="Rank whose output is shown.")] = 0,
    restart: Annotated[
        int | None, option("--restart", min=0, value="N", text="Of this start alone; 0: the first.")
    ] = None,
    follow: Annotated[bool, flag("--follow", "-f", text="Go on until the run ends, also while it is queued.")] = False,
    errors: Annotated[bool, flag("--errors", text="Why it failed; the traceback of the first rank to fail.")] = False,
    launcher: Annotated[bool, flag("--launcher", text="What SLURM and the job script said.")] = False,
    tail: Annotated[int | None, option("--tail", "-n", min=1, value="N", text="The last N lines.")] = None,
    verbose: Verbose = False,
) -> None:
    """Show what runs printed, over all of their restarts.

    Examples:

    hpc-tumor logs unet --follow

    hpc-tumor logs '*' --errors
    """
    from hpc_tumor.cli.control import follow_log, print_logs

    if follow and (errors or launcher or tail is not None or restart is not None):
        raise UsageError(
            "--follow shows what a rank prints from now on: leave out the options that choose other output."
        )
    found = find(runs, patterns)
    if not found:
        raise UsageError(f"{say_no_runs(folder_of_runs(runs))}: nothing was printed.")
    if len(found) > 1 and not errors:
        latest = ", ".join(item.name for item in found[-3:])
        raise UsageError(f"{' '.join(patterns)!r} fits {len(found)} runs; name one of them. The latest: {latest}.")
    if follow:
        follow_log(found[0], rank)
    else:
        print_logs(found, rank, restart, errors, launcher, tail)


def cancel(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """End runs. What they have learned so far stays, and `resume` goes on from there.

    Examples:

    hpc-tumor cancel unet

    hpc-tumor cancel all --state queued --yes
    """
    from hpc_tumor.cli.control import cancel_runs

    found, named = find_named(runs, patterns)
    cancel_runs(found, yes or named, state)


def resume(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    gpus: Annotated[int | None, option("--gpus", min=1, value="N", text="Another number of GPUs from here on.")] = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Start runs again that ended without a result; they go on from their last checkpoint.

    With --gpus N they go on at the same sample on another number of GPUs; the global batch stays.

    Example: hpc-tumor resume all --state failed,timeout
    """
    from hpc_tumor.cli.control import resume_runs

    found, named = find_named(runs, patterns)
    resume_runs(found, yes or named, gpus, state)


def rerun(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train runs again from the beginning, as new runs with the same settings; the old ones stay as they are.

    Example: hpc-tumor rerun all --state failed --yes
    """
    from hpc_tumor.cli.launch import rerun as rerun_all
    from hpc_tumor.cli.views.runs import choose
    from hpc_tumor.cluster.observe.queue import read_states

    found, named = find_named(runs, patterns)
    rerun_all([item.run for item in choose(read_states(found), state)] if state else found, yes or named)


def efficiency(patterns: AnyPatterns = None, runs: Runs = None, json: Json = False, verbose: Verbose = False) -> None:
    """Compare what runs asked for with what they used, and show the options to ask for next time.

    Example: hpc-tumor efficiency unet
    """
    from hpc_tumor.cli.views.efficiency import show_efficiency
    from hpc_tumor.cluster.observe.efficiency import read_efficiency

    found = find(runs, patterns)
    if not found:
        out.note(say_no_runs(folder_of_runs(runs)))
    show_efficiency(read_efficiency(found))


def clean(
    patterns: AnyPatterns = None,
    runs: Runs = None,
    delete: Annotated[bool, flag("--delete", text="Remove what is shown; without it, nothing is removed.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show files that nobody needs any more, with their sizes, and how large each run is; --delete removes them.

    Finished runs lose the checkpoints to go on from and the pickles of their jobs, all that ended temporary files.

    Without RUN also what runs share: code, half-made conversions, copies of stores on this machine's disk.

    The weights that were scored, checkpoints kept for good, and runs that go on or are not yours stay as they are.

    Examples:

    hpc-tumor clean

    hpc-tumor clean --delete
    """
    from hpc_tumor.cli.views.conversion import cleaning_tables, refuse_what_stays
    from hpc_tumor.cluster.observe.clean import clean as clean_runs

    folder = folder_of_runs(runs)
    done = clean_runs(folder, find(runs, patterns) if patterns and patterns != ["all"] else None, delete=delete)
    out.result(done.as_dict(), show=lambda: out.tables(cleaning_tables(done)))
    if done.failed:
        raise refuse_what_stays(done)
    if not done.leftovers:
        out.note("nothing to remove")
    elif not delete:
        option = "" if runs is None else f" --runs {shlex.quote(str(runs))}"
        command = shlex.join(["hpc-tumor", "clean", *(patterns or [])])
        out.hints("Nothing was removed.", [(f"{command}{option} --delete", "removes it")])
