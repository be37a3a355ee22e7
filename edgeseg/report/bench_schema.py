"""The document of `edgeseg bench --json` as a type, and its JSON schema: `python -m edgeseg.report.bench_schema`."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from edgeseg.distill.pipeline import Pipeline
from edgeseg.measure.ceilings import Ceilings, Reached
from edgeseg.measure.cross_check import CrossCheck
from edgeseg.measure.exam import Exam
from edgeseg.measure.first_frame import FirstFrame
from edgeseg.measure.paced import Paced
from edgeseg.measure.rows import Row


@dataclass(frozen=True)
class Method:
    """How the rows were measured."""

    seconds_per_row_and_mode: float
    block_seconds: float
    discarded_calls_per_block: int
    frames: int
    percentile_confidence: float


@dataclass(frozen=True)
class Load:
    """Share (0..1) of the CPUs that others used; `busy` above `busy_above`."""

    others_before: float | None
    others_during: float | None
    busy_above: float
    busy: bool


@dataclass(frozen=True)
class Dice:
    """Mean Dice of each row on `split`, as the bundle's manifest has it."""

    split: str
    rows: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Document:
    """Everything of one bench. Times are in ms or s as the names say; null: not defined, or not asked for."""

    schema: Literal["edgeseg.bench/2"]
    complete: bool
    interrupted: bool
    device: Literal["cpu"]
    bundle: str
    input: str
    threads: list[int]
    seed: int
    against: list[str] | None
    target_images_per_second: float
    default_row: str
    target_met: bool | None
    method: Method
    load: Load
    machine: dict[str, Any]
    rows: list[Row]
    first_frames: dict[str, FirstFrame] | None
    paced: Paced | None
    exam: Exam | None
    ceilings: Ceilings | None
    reached: dict[str, Reached] | None
    cross_check: CrossCheck | None
    pipeline: Pipeline | None
    dice: Dice
    missing: dict[str, str]
    others_during_parts: dict[str, float | None]


def json_schema() -> dict[str, Any]:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema",
            **nullable(TypeAdapter(Document).json_schema(mode="serialization"))}


def nullable(schema: Any) -> Any:
    """Every number may be null: JSON has no NaN, which an interval of one value has for its ends."""
    if isinstance(schema, list):
        return [nullable(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: nullable(value) for key, value in schema.items()}
    return changed | {"type": ["number", "null"]} if schema.get("type") == "number" else changed


if __name__ == "__main__":  # > docs/bench.schema.json
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
