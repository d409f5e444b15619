"""What was measured, as numbers with intervals: by tag, and as differences between models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ftllm.evals.measure import Graded, Results, Scored
from ftllm.evals.replies import Outcome
from ftllm.evals.statistics import Estimate, mean, paired_difference, paired_ratio_difference, ratio, wilson
from ftllm.evals.tasks import all_tags

OVERALL = "overall"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Metric:
    """One number of a set of replies: a share of them, or a mean over all of them."""

    key: str
    title: str
    kind: Literal["share", "mean"]
    of: Callable[[Outcome], float]


METRICS = (
    Metric("accuracy", "accuracy", "share", lambda reply: reply.right),
    Metric("think_rate", "think rate", "share", lambda reply: reply.thinks),
    Metric("answer_tokens", "answer tokens", "mean", lambda reply: reply.answer_tokens),
    Metric("thought_tokens", "thought tokens", "mean", lambda reply: reply.thought_tokens),
    Metric("unclosed", "unclosed thoughts", "share", lambda reply: reply.unclosed),
    Metric("looping", "looping thoughts", "share", lambda reply: reply.looping),
    Metric("cut", "cut at the limit", "share", lambda reply: reply.cut),
)


def tagged(outcomes: Sequence[Outcome], tag: str | None) -> list[Outcome]:
    """The replies to prompts with a tag; all of them for None."""
    return [reply for reply in outcomes if tag is None or tag in reply.prompt.tags]


def estimate(metric: Metric, outcomes: Sequence[Outcome]) -> Estimate:
    """One metric of some replies, with its interval."""
    values = [metric.of(reply) for reply in outcomes]
    return wilson(int(sum(values)), len(values)) if metric.kind == "share" else mean(values)


def summary(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Every metric of some replies."""
    return {metric.key: estimate(metric, outcomes) for metric in METRICS}


def differences(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> dict[str, Estimate]:
    """Every metric of `ours` less that of `theirs`; both answered the same prompts in the same order."""
    return {
        metric.key: paired_difference([metric.of(a) for a in ours], [metric.of(b) for b in theirs])
        for metric in METRICS
    }


def graded_tags(results: Results) -> list[str]:
    """The prompts' tags in the order of their first use."""
    return all_tags(results.data.prompts)


def scored_tags(results: Results) -> list[str]:
    """The conversations' tags in the order of their first use."""
    return all_tags(results.data.samples)


def likelihood(scored: Scored, tag: str | None) -> Estimate:
    """Nats per assistant token of the conversations with a tag (all for None)."""
    return ratio(*_parts(scored, tag))


def likelihood_difference(ours: Scored, theirs: Scored, tag: str | None) -> Estimate:
    """Nats per assistant token of `ours` less that of `theirs`."""
    return paired_ratio_difference(_parts(ours, tag), _parts(theirs, tag))


def _parts(scored: Scored, tag: str | None) -> tuple[list[float], list[float]]:
    kept = [i for i, sample in enumerate(scored.samples) if tag is None or tag in sample.tags]
    return [scored.nats[i] for i in kept], [float(scored.tokens[i]) for i in kept]


def comparable(ours: Scored, theirs: Scored) -> bool:
    """Whether both scored the same tokens: models with other tokenizers cannot be compared by the token."""
    return ours.tokens == theirs.tokens


def reference_for(ours: Scored, results: Results, against: str | None) -> Scored | None:
    """What a likelihood is compared with: the model named by `against` or a run's base, by the same library first."""
    if ours.is_base or ours.label == against:
        return None
    others = [
        other
        for other in results.scored
        if other is not ours and (other.is_base or other.label == against) and comparable(ours, other)
    ]
    # False sorts before True: the same library first, then the model that was named.
    others.sort(key=lambda other: (other.through != ours.through, other.label != against))
    return others[0] if others else None


def as_json(results: Results, against: str | None) -> dict[str, Any]:
    """The whole report as one JSON object; `against` is the label of the model that others are compared with."""
    reference = next((graded for graded in results.graded if graded.label == against), None)
    return {
        "data": {
            "paths": [str(path) for path in results.data.paths],
            "prompts": len(results.data.prompts),
            "conversations": len(results.data.samples),
        },
        "settings": asdict(results.settings),
        "confidence": CONFIDENCE,
        "against": against,
        "graded": [_graded_json(graded, reference, graded_tags(results)) for graded in results.graded],
        "likelihood": [
            _scored_json(scored, reference_for(scored, results, against), scored_tags(results))
            for scored in results.scored
        ],
    }


def _graded_json(graded: Graded, reference: Graded | None, tags: Sequence[str]) -> dict[str, Any]:
    def part(tag: str | None) -> dict[str, Any]:
        outcomes = tagged(graded.outcomes, tag)
        found: dict[str, Any] = {"n": len(outcomes), **_all_json(summary(outcomes))}
        if reference is not None and reference is not graded:
            found["difference"] = _all_json(differences(outcomes, tagged(reference.outcomes, tag)))
        return found

    return {
        "model": graded.label,
        "file": str(graded.file),
        "seconds": round(graded.seconds, 3),
        OVERALL: part(None),
        "tags": {tag: part(tag) for tag in tags},
    }


def _scored_json(scored: Scored, reference: Scored | None, tags: Sequence[str]) -> dict[str, Any]:
    def part(tag: str | None) -> dict[str, Any]:
        _, tokens = _parts(scored, tag)
        found: dict[str, Any] = {"n": len(tokens), "tokens": int(sum(tokens))}
        found["nll_per_token"] = _json(likelihood(scored, tag))
        if reference is not None:
            found["difference"] = _json(likelihood_difference(scored, reference, tag))
        return found

    return {
        "model": scored.label,
        "through": scored.through,
        "weights": scored.weights,
        "base": scored.is_base,
        "seconds": round(scored.seconds, 3),
        "compared_with": None if reference is None else {"model": reference.label, "through": reference.through},
        OVERALL: part(None),
        "tags": {tag: part(tag) for tag in tags},
    }


def replies_json(results: Results) -> list[dict[str, Any]]:
    """Every reply, for reading: one object a prompt and model."""
    return [
        {
            "model": graded.label,
            "id": reply.prompt.id,
            "tags": list(reply.prompt.tags),
            "prompt": reply.prompt.messages[-1].content,
            "thought": reply.thought,
            "answer": reply.answer,
            "expected": reply.prompt.answer,
            "right": reply.right,
            "unclosed": reply.unclosed,
            "looping": reply.looping,
            "cut": reply.cut,
            "thought_tokens": reply.thought_tokens,
            "answer_tokens": reply.answer_tokens,
        }
        for graded in results.graded
        for reply in graded.outcomes
    ]


def _all_json(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {key: _json(value) for key, value in estimates.items()}


def _json(value: Estimate) -> dict[str, float | None]:
    return {"value": value.value, "low": value.low, "high": value.high}
