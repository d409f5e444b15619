"""The report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from ftllm.evals.measure import Results
from ftllm.evals.report import (
    METRICS,
    OVERALL,
    Metric,
    differences,
    estimate,
    graded_tags,
    likelihood,
    likelihood_difference,
    reference_for,
    scored_tags,
    tagged,
)
from ftllm.evals.statistics import Estimate

# Faults worth a line by tag only where there are any.
FAULTS = {"unclosed", "looping", "cut"}


def tables(results: Results, against: str | None) -> Iterator[Table]:
    """A table of the replies, and one of the likelihoods, where there are any."""
    if results.graded:
        yield graded_table(results, against)
    if results.scored:
        yield likelihood_table(results, against)


def graded_table(results: Results, against: str | None) -> Table:
    """Metrics down, models across, and the difference of each from the model they are compared with."""
    reference = next((graded for graded in results.graded if graded.label == against), None)
    draw = results.settings
    drawn = "greedy" if draw.temperature == 0 else f"temperature {draw.temperature:g}, seed {draw.seed}"
    table = Table(
        title=f"{len(results.data.prompts)} graded prompts, {drawn}", title_justify="left", caption_justify="left"
    )
    table.caption = "shares in %; [95 % interval]" + ("; differences paired by prompt" if reference else "")
    for name in ("tag", ""):
        table.add_column(name, no_wrap=True)
    for graded in results.graded:
        table.add_column(Text(graded.label, overflow="fold"), justify="right")
        if reference is not None and graded is not reference:
            table.add_column("difference", justify="right")
    for tag in [None, *graded_tags(results)]:
        replies = [tagged(graded.outcomes, tag) for graded in results.graded]
        named = f"{tag or OVERALL} ({len(replies[0])})"
        compared = tagged(reference.outcomes, tag) if reference else []
        shifts = [
            differences(outcomes, compared) if reference is not None and graded is not reference else None
            for graded, outcomes in zip(results.graded, replies, strict=True)
        ]
        for metric in METRICS:
            estimates = [estimate(metric, outcomes) for outcomes in replies]
            if metric.key in FAULTS and tag is not None and not any(found.value for found in estimates):
                continue
            cells = []
            for found, shift in zip(estimates, shifts, strict=True):
                cells.append(show(found, metric))
                if shift is not None:
                    cells.append(show(shift[metric.key], metric, signed=True))
            table.add_row(Text(named), metric.title, *cells)
            named = ""
        table.add_section()
    return table


def likelihood_table(results: Results, against: str | None) -> Table:
    """Models down: nats per assistant token, by the library that computed them."""
    tags = scored_tags(results)
    table = Table(
        title=f"negative log-likelihood per assistant token, {len(results.data.samples)} conversations",
        title_justify="left",
    )
    for name in ("tag", "model", "through"):
        table.add_column(name, overflow="fold")
    for name in ("tokens", "nats per token", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    for tag in [None, *tags]:
        named = tag or OVERALL
        for scored in results.scored:
            kept = [i for i, sample in enumerate(scored.samples) if tag is None or tag in sample.tags]
            reference = reference_for(scored, results, against)
            difference = ""
            if reference is not None:
                difference = interval(likelihood_difference(scored, reference, tag), "+.4f")
            table.add_row(
                Text(named),
                Text(scored.label + (" (base)" if scored.is_base else "")),
                scored.through,
                str(sum(scored.tokens[i] for i in kept)),
                interval(likelihood(scored, tag), ".4f"),
                Text(difference),
                Text(reference.label if reference else ""),
            )
            named = ""
        table.add_section()
    return table


def show(found: Estimate, metric: Metric, *, signed: bool = False, bare: bool = False) -> Text:
    """`97.5 [95.1, 98.8]`: a share in percent, a mean as it is; `bare` without the interval."""
    form = "+.1f" if signed else ".1f"
    if bare:
        found = Estimate(found.value, None, None)
    return Text(interval(found, form, scale=100.0 if metric.kind == "share" else 1.0))


def interval(found: Estimate, form: str, *, scale: float = 1.0) -> str:
    """`value [low, high]`, each times `scale` in the format `form`; only the value where there is no interval."""
    value = format(found.value * scale, form)
    if found.low is None or found.high is None:
        return value
    return f"{value} [{format(found.low * scale, form)}, {format(found.high * scale, form)}]"
