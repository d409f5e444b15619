"""`ftllm train`: put an adapter on a base model, with or without the burden on user turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ftllm.progress import Reporter
    from ftllm.train.config import TrainConfig
    from ftllm.train.settings import Settings
    from ftllm.train.stage import TrainResult


def train_verb(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="Settings; all have defaults.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="PATH|REPO", help="The base: a directory, or a Hub repository.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH|REPO[=WEIGHT]", help="What to train on; may repeat; see below."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option("--stage", metavar="ft|sft", help="sft comes after ft; it has the preset sft.")
    ] = None,
    from_run: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="Go on from that run's adapter, on its base.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="ft|seed|sft", help="ft unless given; see below.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Of the run; numbered otherwise.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the printed configuration.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option("--backend", metavar="auto|unsloth|hf", help="What loads the base.")
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option("--eval", metavar="SHARE|PATH", help="Hold out 5%, or measure on other data, as it trains."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --name, or the latest unfinished run.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the whole configuration.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and train nothing.")] = False,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs are.")] = Path("runs"),
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="JSON lines on stdout, the last one `done`.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but warnings and errors on stderr.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Details and tracebacks.")] = False,
) -> None:
    """Train a LoRA adapter: Fragmented Training, its faithful form, or plain fine-tuning.

    The presets: `ft` shuffles 70 % of each user turn's words afresh every epoch, keeps code, URLs, LaTeX and numbers
    in place, and trains the assistant's turns; `seed` does exactly as the method's model card, whole sequence
    included; `sft` shuffles nothing. A setting is looked for in --set, then the options, then the file, then the
    preset. Ctrl-C saves a checkpoint; --resume goes on from it.

    Data is a file (JSONL, JSON, CSV, Parquet), a directory of such files, or a data set on the Hub: org/name,
    org/name:split, org/name:config:split, org/name@revision. Rows are messages, ShareGPT conversations, Alpaca or
    prompt/completion; which is found by looking (`ftllm data check`). A weight may follow: =0.5 trains half of the
    rows, =2 trains each twice an epoch.

    \b
    Examples:
      ftllm train models/nano/ft.yaml
      ftllm train --model models/nano --data mine.jsonl --eval 5% --set learning_rate=1e-3
      ftllm train --model org/name --data org/set:train --data mine.parquet=2 --preset sft --name control
      ftllm train --stage sft --from gemma-ft --data style.jsonl --name gemma-sft
      ftllm train --resume
    """
    from ftllm.progress import Reporter, silent
    from ftllm.train.processes import here

    reporter = Reporter(json_lines=json_output, quiet=quiet, verbose=verbose)
    if not here().first:  # the first of several processes speaks for all
        if print_config or dry_run:
            return
        reporter = silent()
    options = {"model": model, "data": data, "stage": stage, "from_run": from_run, "preset": preset,
               "backend": backend, "eval": held_out}  # fmt: skip
    if resume:
        given = [_option(option) for option, value in options.items() if value] + ["--set"] * bool(assignments)
        _finish(_resumed(given, config, name, runs, reporter, offline=offline), reporter)
        return
    resolved = _resolved(config, options, assignments or [], runs)
    if print_config:
        from ftllm.train.config import to_yaml

        typer.echo(to_yaml(resolved), nl=False)
    elif dry_run:
        from ftllm.train.preflight import dry_run as look

        look(resolved, reporter, runs=runs, offline=offline)
    else:
        from ftllm.train.stage import train

        _finish(train(resolved, reporter, runs=runs, name=name, offline=offline), reporter)


def _option(key: str) -> str:
    """The option that gives a key."""
    return "--" + key.removesuffix("_run")


def _resolved(config: Path | None, options: Mapping[str, object], assignments: list[str], runs: Path) -> TrainConfig:
    from ftllm.errors import UserError
    from ftllm.train.config import rebased, resolve
    from ftllm.train.lineage import with_parent
    from ftllm.train.settings import Setting, read_assignment, read_yaml

    layers: list[Settings] = []
    if config is not None and config.suffix.lower() in (".jsonl", ".csv", ".tsv", ".parquet"):
        raise UserError(f"{config} is no configuration but data", f"give it with --data {config}")
    if config is not None:
        layers.append(rebased(read_yaml(config), config.resolve().parent))
    named = {key: Setting(value, _option(key)) for key, value in options.items() if value}
    layers.append(rebased(named, Path.cwd()))
    layers.append(rebased(dict(map(read_assignment, assignments)), Path.cwd()))
    return resolve(with_parent(layers, runs))


def _resumed(
    given: list[str], config: Path | None, name: str | None, runs: Path, reporter: Reporter, *, offline: bool
) -> TrainResult:
    from ftllm import runs as places
    from ftllm.errors import UserError
    from ftllm.train.stage import resume

    if config is not None or given:
        what = given[0] if given else str(config)
        raise UserError(f"--resume goes on with the run's own settings, and cannot take {what}", "leave it out")
    if name is None:
        unfinished = [run for run in places.all_runs(runs) if not run.finished]
        if not unfinished:
            raise UserError(f"no unfinished run in {runs}", "start one with `ftllm train`")
        run = unfinished[-1]
        reporter.say(f"resuming {run.name}")
    else:
        found = places.find(name, runs)
        if found is None:
            raise UserError(f"no run {name} in {runs}", "`--runs DIR` says where runs are")
        run = found
    return resume(places.Run(run.path.resolve()), reporter, offline=offline)


def _finish(result: TrainResult, reporter: Reporter) -> None:
    import math

    reporter.say(f"trained {result.steps} steps in {result.seconds:.0f} s, mean loss {result.train_loss:.4f}")
    if result.eval_before is not None and result.eval_after is not None:
        reporter.say(
            f"held out: {result.eval_before:.4f} nats a token before, {result.eval_after:.4f} after "
            f"(perplexity {math.exp(result.eval_before):.3f}, {math.exp(result.eval_after):.3f})"
        )
    which = "" if result.adapter_step == result.steps else f" of step {result.adapter_step}, the best measured,"
    reporter.say(f"adapter{which} in {result.run.adapter}; `ftllm export {result.run.name}` makes a GGUF of it")
    reporter.say(f"report in {result.run.path / 'REPORT.md'}")
    reporter.done(
        run=str(result.run.path),
        adapter=str(result.run.adapter),
        steps=result.steps,
        train_loss=result.train_loss,
        eval_nll=result.eval_after,
        eval_nll_before=result.eval_before,
        adapter_step=result.adapter_step,
        share_moved=result.share_moved,
        seconds=result.seconds,
    )
