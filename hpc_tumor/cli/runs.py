"""Commands on submitted runs: status, logs, cancel, resume, rerun, efficiency and clean."""

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
    flag,
    folder_of_runs,
    no_runs_message,
    only_run,
    option,
    select_named,
    select_runs,
)
from hpc_tumor.console import out
from hpc_tumor.errors import UsageError


def status(
    patterns: AnyPatterns = None,
    runs: Runs = None,
    state: State = None,
    model: Networks = None,
    sort: Annotated[
        str | None, option("--sort", value="KEY", text="Sort by name, state, epoch, left, best or heartbeat.")
    ] = None,
    watch: Annotated[bool, flag("--watch", "-w", text="Refresh until all runs have ended, or Ctrl-C.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show runs: state, progress, scores, and why they wait or ended.

    Examples:

    hpc-tumor status --watch

    hpc-tumor status --state failed,lost --model unet
    """
    from hpc_tumor.cli.control import show_states, watch_runs
    from hpc_tumor.cli.views.runs import filter_runs
    from hpc_tumor.cluster.observe.queue import read_states

    selected = select_runs(runs, patterns)
    if not selected:
        out.note(no_runs_message(folder_of_runs(runs)))
    filter_runs([], state, model, sort)  # reject wrong options before watching
    if watch:
        states = filter_runs(watch_runs(selected, lambda states: filter_runs(states, state, model)), sort=sort)
    else:
        states = filter_runs(read_states(selected), state, model, sort)
    if selected and not states:
        options = [f"--state {state}" if state else "", *(f"--model {name}" for name in model or [])]
        out.note(f"none of {len(selected)} runs matches {' '.join(filter(None, options))}")
    show_states(states)


def logs(
    patterns: Patterns,
    runs: Runs = None,
    rank: Annotated[int, option("--rank", min=0, value="N", text="Show the output of this rank.")] = 0,
    restart: Annotated[
        int | None, option("--restart", min=0, value="N", text="Show only this start; 0: the first.")
    ] = None,
    follow: Annotated[bool, flag("--follow", "-f", text="Follow the output until the run ends.")] = False,
    errors: Annotated[bool, flag("--errors", text="Show why runs failed: traceback of the first failed rank.")] = False,
    launcher: Annotated[bool, flag("--launcher", text="Show the output of SLURM and the job script.")] = False,
    tail: Annotated[int | None, option("--tail", "-n", min=1, value="N", text="Show only the last N lines.")] = None,
    verbose: Verbose = False,
) -> None:
    """Show the output of a run, including all of its restarts.

    Examples:

    hpc-tumor logs unet --follow

    hpc-tumor logs '*' --errors
    """
    from hpc_tumor.cli.control import follow_log, print_logs

    if follow and (errors or launcher or tail is not None or restart is not None):
        raise UsageError("--follow prints new output of a rank: leave out --errors, --launcher, --tail and --restart.")
    selected = select_runs(runs, patterns)
    if not selected:
        raise UsageError(f"{no_runs_message(folder_of_runs(runs))}: there are no logs.")
    if not errors:
        only_run(selected, " ".join(patterns))
    if follow:
        follow_log(selected[0], rank)
    else:
        print_logs(selected, rank, restart, errors, launcher, tail)


def cancel(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Cancel runs. They keep their checkpoints, and `resume` continues them.

    Examples:

    hpc-tumor cancel unet

    hpc-tumor cancel all --state queued --yes
    """
    from hpc_tumor.cli.control import cancel_runs

    selected, named = select_named(runs, patterns)
    cancel_runs(selected, yes or named, state)


def resume(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    gpus: Annotated[int | None, option("--gpus", min=1, value="N", text="Number of GPUs; default: as before.")] = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Resume runs that ended without a result from their last checkpoint.

    With --gpus N they continue at the same sample on N GPUs; the global batch size does not change.

    Example: hpc-tumor resume all --state failed,timeout
    """
    from hpc_tumor.cli.control import resume_runs

    selected, named = select_named(runs, patterns)
    resume_runs(selected, yes or named, gpus, state)


def rerun(
    patterns: Patterns,
    runs: Runs = None,
    state: State = None,
    yes: Yes = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train runs again from the beginning, as new runs with the same settings; the old runs are kept.

    Example: hpc-tumor rerun all --state failed --yes
    """
    from hpc_tumor.cli.launch import rerun as rerun_all
    from hpc_tumor.cli.views.runs import filter_runs
    from hpc_tumor.cluster.observe.queue import read_states

    selected, named = select_named(runs, patterns)
    rerun_all([item.run for item in filter_runs(read_states(selected), state)] if state else selected, yes or named)


def efficiency(patterns: AnyPatterns = None, runs: Runs = None, json: Json = False, verbose: Verbose = False) -> None:
    """Compare requested with used resources, and suggest options for the next submission.

    Example: hpc-tumor efficiency unet
    """
    from hpc_tumor.cli.views.efficiency import show_efficiency
    from hpc_tumor.cluster.observe.efficiency import read_efficiency

    selected = select_runs(runs, patterns)
    if not selected:
        out.note(no_runs_message(folder_of_runs(runs)))
    show_efficiency(read_efficiency(selected))


def clean(
    patterns: AnyPatterns = None,
    runs: Runs = None,
    delete: Annotated[bool, flag("--delete", text="Remove the files; without it, nothing is removed.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show files that are no longer needed, and the size of each run; --delete removes them.

    Finished runs lose their resume checkpoints and job pickles; all ended runs lose temporary files.

    Without RUN, shared files are included: code snapshots, unfinished conversions, copies of stores on local disk.

    Scored weights, permanent checkpoints, active runs and runs of other users are left alone.

    Examples:

    hpc-tumor clean

    hpc-tumor clean --delete
    """
    from hpc_tumor.cli.views.conversion import cleaning_tables, removal_error
    from hpc_tumor.cluster.observe.clean import clean as clean_runs

    folder = folder_of_runs(runs)
    selected = select_runs(runs, patterns) if patterns and patterns != ["all"] else None
    cleaning = clean_runs(folder, selected, delete=delete)
    out.result(cleaning.as_dict(), show=lambda: out.tables(cleaning_tables(cleaning)))
    if cleaning.failed:
        raise removal_error(cleaning)
    if not cleaning.leftovers:
        out.note("nothing to remove")
    elif not delete:
        option = "" if runs is None else f" --runs {shlex.quote(str(runs))}"
        command = shlex.join(["hpc-tumor", "clean", *(patterns or [])])
        out.hints("Nothing was removed.", [(f"{command}{option} --delete", "remove the files")])
