# SPDX-License-Identifier: Apache-2.0
"""The `kaito-ray` command: each command is a thin function around one of the library's.

Everything beyond typer is imported inside the command that needs it, so that `kaito-ray --help` stays fast.
Leaves with 0 when all is well, 1 when the input is at fault, 2 when the command line is.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kaito_ray.errors import CannotRun, InvalidManifest, KaitoRayError

app = typer.Typer(
    name="kaito-ray",
    help="One KAITO Workspace in, a language model served or tuned on Ray out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Output(StrEnum):
    """How a command prints: a table for people or JSON for programs."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="how to print")]


def main() -> None:
    """Run the command line; an expected error is a sentence on stderr for each thing wrong, and exit code 1."""
    try:
        app()
    except KaitoRayError as error:
        for problem in error.problems if isinstance(error, InvalidManifest) else [error]:
            typer.echo(f"kaito-ray: {problem}", err=True)
        sys.exit(1)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"kaito-ray {version('kaito-ray')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before any command."""
    del version  # its callback has done the work


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="YAML files with Workspaces; - is stdin", metavar="FILE...")],
    data: Annotated[bool, typer.Option("--data", help="also fetch and judge the data of Workspaces that tune")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print every problem of the Workspaces in FILE... as `FILE:LINE field.path: sentence`."""
    import os
    from dataclasses import asdict

    from kaito_ray.settings import Settings
    from kaito_ray.validate import validate_files

    settings = Settings.from_env(os.environ)
    findings = list(validate_files(files, settings))
    verdicts = []
    if data:
        from kaito_ray.data_check import check_data

        verdicts = list(check_data(files, settings))
        findings += [finding for verdict in verdicts for finding in verdict.findings]
    if output is Output.JSON:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for line in (*map(str, findings), *(line for verdict in verdicts for line in verdict.lines)):
            typer.echo(line)
    errors = sum(finding.severity == "error" for finding in findings)
    counts = ((len(files), "file"), (errors, "error"), (len(findings) - errors, "remark"))
    typer.echo(", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts), err=True)
    if errors:
        raise typer.Exit(1)


@app.command()
def plan(
    files: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="YAML file with Workspaces; - is stdin")
    ] = None,
    model: Annotated[str | None, typer.Option(help="plan this model instead of a file")] = None,
    instance_type: Annotated[
        str, typer.Option(help="with --model: the GPU size; the cheapest that fits by default")
    ] = "",
    context: Annotated[int | None, typer.Option(min=1, help="tokens of context to plan for")] = None,
    advise: Annotated[bool, typer.Option("--advise", help="rank the sizes that hold the model by price")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the nodes, the GPUs, the memory and the price of every Workspace in FILE, or of one model."""
    import os

    from kaito_ray import explain, plan_command
    from kaito_ray.settings import Settings

    if (model is None) == (not files):
        raise typer.BadParameter("give either -f FILE or --model NAME")
    if instance_type and model is None:
        raise typer.BadParameter("--instance-type goes with --model; in a file it is resource.instanceType")
    settings = Settings.from_env(os.environ)
    if model is None:
        answers = plan_command.answers_of_files(files or [], settings, context=context)
    else:
        answers = plan_command.answers_of_question(model, instance_type, settings, context=context)
    report = plan_command.Report(answers, settings, context=context, advise=advise)
    if output is Output.JSON:
        typer.echo(json.dumps(report.records(), indent=2))
    else:
        explain.print_all(report.views())
    if any(answer.plan is None for answer in answers):
        raise typer.Exit(1)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="one model, by hub id or alias")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List the models kaito-ray knows, or show one with the sizes it fits on."""
    import os

    from kaito_ray import explain, plan_command, plan_record
    from kaito_ray.hub import find_preset
    from kaito_ray.preset import load_catalogue
    from kaito_ray.settings import Settings

    settings = Settings.from_env(os.environ)
    catalogue = load_catalogue(settings.presets_dir)
    if name is None:
        if output is Output.JSON:
            typer.echo(json.dumps([plan_record.preset_record(preset) for preset in catalogue], indent=2))
        else:
            explain.print_all([explain.presets_view(list(catalogue))])
        return
    preset = find_preset(name, catalogue)
    if output is Output.JSON:
        typer.echo(json.dumps(plan_command.preset_details(preset, settings), indent=2))
    else:
        explain.print_all([explain.preset_view(preset, plan_command.preset_offers(preset, settings))])


@app.command()
def render(
    files: Annotated[list[Path], typer.Option("-f", "--file", help="YAML file with Workspaces; - is stdin")],
) -> None:
    """Print the Kubernetes objects of every Workspace in FILE as YAML; nothing when one of them has a problem."""
    import os

    from kaito_ray.manifest import examine_manifest
    from kaito_ray.manifest_plan import plan_manifest
    from kaito_ray.render import objects
    from kaito_ray.settings import Settings

    settings = Settings.from_env(os.environ)
    rendered, problems = [], []
    for file in files:
        manifest = examine_manifest(file, allow_private_urls=settings.allow_private_urls)
        problems += [finding for finding in manifest.findings if finding.severity == "error"]
        for planned in plan_manifest(manifest, settings):
            problems += planned.problems
            rendered += objects.render(planned.plan, settings) if planned.plan else []
    if problems:
        typer.echo("\n".join(map(str, problems)), err=True)
        raise typer.Exit(1)
    typer.echo(objects.to_yaml(rendered), nl=False)


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition of the Workspace as YAML."""
    from kaito_ray.crd import crd_yaml

    typer.echo(crd_yaml(), nl=False)


@app.command()
def pack(
    model: Annotated[str, typer.Argument(help="a folder, or a model by hub id or alias", metavar="MODEL")],
    to: Annotated[str, typer.Option(help="where to push it: registry/name:tag", metavar="IMAGE")],
    revision: Annotated[str | None, typer.Option(help="the commit on the hub, instead of the pinned one")] = None,
    name: Annotated[str, typer.Option(help="what a folder's model is called, such as org/model")] = "",
    license_: Annotated[str, typer.Option("--license", help="what a folder's licence is, such as apache-2.0")] = "",
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="the licence was read and permits passing the model on")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", help="image: tars that runtimes mount; modelpack: plain files for oras pull")
    ] = "image",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show layers and sizes, push nothing")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make an image of a model and push it to a registry, so that a cluster needs no hub."""
    import os
    from importlib.util import find_spec

    needed = ("aiohttp", "huggingface_hub", "numpy", "safetensors")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise CannotRun(f"this needs packages that are not installed: pip install {' '.join(missing)}")
    from kaito_ray.artifacts.pack import Form
    from kaito_ray.pack_command import PackWish
    from kaito_ray.pack_command import pack as pack_model
    from kaito_ray.settings import Settings
    from kaito_ray.stages import Stages

    if form not in list(Form):
        raise typer.BadParameter(f"--format is one of {', '.join(Form)}, got {form}")
    wish = PackWish(model, to, revision, name, license_, accept_license, Form(form))
    with Stages() as stages:
        packed = pack_model(wish, Settings.from_env(os.environ), stages, dry_run=dry_run)
    if output is Output.JSON:
        typer.echo(json.dumps(packed.record(), indent=2))
    elif dry_run:
        from rich import print as show

        show(packed.table())
    else:
        typer.echo(f"{packed.image}@{packed.digest}")


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="YAML file with one Workspace", metavar="FILE")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of 127.0.0.1 to serve on")] = 8000,
    once: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="ask one question, print the answer and leave")
    ] = None,
) -> None:
    """Serve the Workspace in FILE on this machine's own Ray until Ctrl-C; saving FILE again applies the change."""
    import os

    from kaito_ray.local import run as run_local
    from kaito_ray.settings import Settings

    run_local(file, port=port, once=once, settings=Settings.from_env(os.environ))


WorkspaceArgument = Annotated[str, typer.Argument(help="name of the Workspace", metavar="WORKSPACE")]
NamespaceOption = Annotated[str, typer.Option("-n", "--namespace", help="its namespace")]


@app.command()
def status(
    workspace: WorkspaceArgument, namespace: NamespaceOption = "default", output: OutputOption = Output.TABLE
) -> None:
    """Show how a Workspace of the cluster is doing and what it waits for."""
    from rich import print as show

    _require_kubernetes()
    from kaito_ray import status_command

    seen = status_command.overview(workspace, namespace)
    if output is Output.JSON:
        typer.echo(json.dumps(status_command.as_record(seen), indent=2))
    else:
        show(status_command.as_text(seen))


@app.command()
def chat(
    workspace: WorkspaceArgument,
    namespace: NamespaceOption = "default",
    model: Annotated[str, typer.Option(help="an adapter instead of the model itself")] = "",
    once: Annotated[str | None, typer.Option(metavar="PROMPT", help="ask one question and leave")] = None,
) -> None:
    """Talk to the model of a Workspace of the cluster, through its API server."""
    _require_kubernetes()
    from kaito_ray.chat_command import chat as talk

    def say(text: str) -> None:
        typer.echo(text, nl=False)

    talk(workspace, namespace, model=model, once=once, say=say)


def _require_kubernetes() -> None:
    """What talks to a cluster needs packages that the planner does without."""
    from importlib.util import find_spec

    if find_spec("kubernetes") is None:
        raise CannotRun("this needs the package kubernetes: pip install 'kaito-ray[operator]'")
