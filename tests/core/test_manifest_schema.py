import json
from pathlib import Path

from edgeseg.manifest import Manifest

SCHEMA = Path(__file__).parents[2] / "docs" / "manifest.schema.json"


def test_the_published_schema_is_that_of_the_model():
    assert json.loads(SCHEMA.read_text("utf-8")) == Manifest.model_json_schema(), \
        "write it again: python -m edgeseg.manifest > docs/manifest.schema.json"
