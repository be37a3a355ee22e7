"""Who is trained in a search, who goes on, and who lies on the Pareto front: three small rules, each said once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BY_RULE = 0.75
"""Share of the first rung's places that go by the rule, the others are drawn."""


def promising(fast: Sequence[Mapping[str, Any]], count: int, seed: int) -> dict[str, str]:
    """{name: why} of at most `count` candidates worth a training.

    BY_RULE of the places: the candidates in order of latency are cut into buckets of equal numbers, and each bucket
    gives the one with the most multiply-accumulates and the one with the most parameters (who computes and who knows
    most in that time). The others are drawn by the seed, so that the rule is not the only voice.
    """
    ordered = sorted(fast, key=lambda r: (r["ms"], r["name"]))
    if len(ordered) <= count:
        return {r["name"]: "all that are fast enough" for r in ordered}
    chosen: dict[str, str] = {}
    buckets = np.array_split(np.arange(len(ordered)), max(1, int(count * BY_RULE) // 2))
    for bucket in buckets:
        for what, text in (("macs", "most MACs of its latency"), ("parameters", "most parameters of its latency")):
            left = [ordered[k] for k in bucket if ordered[k]["name"] not in chosen]
            if left and len(chosen) < count:
                chosen[max(left, key=lambda r: r[what])["name"]] = text
    rest = [r["name"] for r in ordered if r["name"] not in chosen]
    for k in np.random.default_rng([seed, 1]).permutation(len(rest))[: count - len(chosen)]:
        chosen[rest[k]] = "drawn"
    return chosen


def pareto(rows: Sequence[tuple[str, float, float]]) -> list[str]:
    """Names of (name, ms, Dice) such that nobody is as fast and better, in order of ms."""
    front, best = [], -1.0
    for name, _, dice in sorted(rows, key=lambda r: (r[1], -r[2])):
        if dice > best:
            front.append(name)
            best = dice
    return front


def halve(results: Mapping[str, Mapping[str, Any]], controls: Sequence[str], keep: int) -> tuple[list[str], list[str]]:
    """(names that go on, names discarded): the `keep` best by dev Dice; controls go on beside them whatever they reach.

    Those that failed never go on.
    """
    ranked = sorted((n for n, r in results.items() if "failed" not in r), key=lambda n: -results[n]["dice"])
    drawn = [n for n in ranked if n not in controls]
    kept = [n for n in ranked if n in controls or n in drawn[:keep]]
    return kept, [n for n in results if n not in kept]
