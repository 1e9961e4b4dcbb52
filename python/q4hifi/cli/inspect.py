"""The commands that look into a model file: inspect, verify."""

from __future__ import annotations

import sys

import click

from ..wording import and_more, printable
from .common import console, json_option, print_json, progress_bar, tensors_option, threads_option
from .files import INPUT
from .group import main

SHOWN_PROBLEMS = 20
"""Number of problems printed for a damaged file. It may have one for each tensor."""


@main.command()
@click.argument("file", type=INPUT)
@tensors_option
@json_option
def inspect(file: str, tensors: bool, as_json: bool) -> None:
    """Show what a model FILE holds: metadata, tensors, types, sizes.

    For a damaged file, show what can be read and what is wrong. The exit status is then 1.
    """
    from ..codec.overview import Overview
    from .overview_tables import overview_tables

    overview = Overview.open(file)
    if as_json:
        print_json(overview.as_dict())
    else:
        console().print(overview_tables(overview, tensors=tensors))
    for problem in overview.problems[:SHOWN_PROBLEMS]:
        click.echo(f"Error: {printable(problem)}", err=True)
    if more := and_more(len(overview.problems), SHOWN_PROBLEMS):
        click.echo(f"{more}; --json lists all", err=True)
    if overview.problems:
        sys.exit(1)


@main.command()
@click.argument("file", type=INPUT)
@threads_option
@json_option
def verify(file: str, threads: int | None, as_json: bool) -> None:
    """Check a model FILE for damage: structure, sizes, weights that are not finite.

    Prints what is wrong, and in which tensor. The exit status is 1 if something is wrong.
    """
    from ..pipeline.verify import verify_file

    with progress_bar() as progress:
        findings = verify_file(file, threads=threads, progress=progress)
    if as_json:
        found = [{"tensor": f.tensor, "message": f.message} for f in findings]
        print_json({"file": file, "sound": not findings, "findings": found})
    else:
        for finding in findings:
            place = "" if finding.tensor is None else f"{file}: {finding.tensor}: "
            click.echo(printable(place + finding.message))
        if not findings:
            click.echo(printable(f"{file}: sound"))
    if findings:
        sys.exit(1)
