import pytest
import tiny_bundle
from measured_manifest import with_evidence

from edgeseg.bundle.metadata import metadata
from edgeseg.container import open_bundle
from edgeseg.manifest import ChannelNormalisation

# https://docs.monai.io/en/stable/mb_specification.html: mandatory keys, and those of every tensor (the name of the
# field for packages changed, both are there)
REQUIRED = {"version": str, "monai_version": str, "pytorch_version": str, "numpy_version": str,
            "optional_packages_version": dict, "required_packages_version": dict, "task": str, "description": str,
            "authors": str, "copyright": str, "network_data_format": dict}
OPTIONAL = {"changelog": dict, "intended_use": str, "data_source": str, "data_type": str}
TENSOR = {"type": str, "format": str, "modality": str, "num_channels": int, "spatial_shape": list, "dtype": str,
          "value_range": list, "is_patch_data": bool, "channel_def": dict}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return open_bundle(tiny_bundle.make_bundle(tmp_path_factory.mktemp("x") / "tiny.edgeseg")).manifest


def test_it_has_every_field_that_monai_asks_for(manifest):
    for m in (manifest, with_evidence(manifest)):
        found = metadata(m)
        for fields, values in ((REQUIRED | OPTIONAL, found),
                               *((TENSOR, tensor) for end in ("inputs", "outputs")
                                 for tensor in found["network_data_format"][end].values())):
            for name, kind in fields.items():
                assert type(values[name]) is kind, name
        assert found["version"] in found["changelog"]


def test_it_says_what_the_manifest_says(manifest):
    versions = {"torch": "2.13.0", "numpy": "2.4.6", "edgeseg": "0.1.0"}
    m = with_evidence(manifest).model_copy(update={"versions": versions})
    found = metadata(m)
    (image,), (pred,) = (found["network_data_format"][end].values() for end in ("inputs", "outputs"))
    assert image["channel_def"] == {"0": "MRI"}
    assert pred["channel_def"] == {"0": "background", "1": "RV", "2": "MYO", "3": "LV"}
    assert (image["num_channels"], pred["num_channels"], image["spatial_shape"]) == (1, 4, [32, 32])
    assert image["modality"] == "MR"
    assert found["pytorch_version"] == "2.13.0"
    assert found["required_packages_version"] == {"edgeseg": "0.1.0"}
    assert found["eval_metrics"]["val mean_dice openvino int8"] == 0.88


def test_nothing_is_made_up(manifest):
    found = metadata(manifest)
    assert found["monai_version"] == found["pytorch_version"] == found["authors"] == "n/a"
    assert "eval_metrics" not in found
    assert found["network_data_format"]["inputs"]["image"]["value_range"] == []


def test_tensor_names_are_those_of_the_network(manifest, tmp_path):
    import onnx

    graph = onnx.load(tiny_bundle.make_bundle(tmp_path / "a.edgeseg") / "model.fp32.onnx").graph
    found = metadata(manifest)["network_data_format"]
    assert found["outputs"]["pred"]["name"] == graph.output[0].name


@pytest.mark.parametrize(("channels", "kind", "modality", "value_range"), [
    (("CT",), "none", "CT", []), (("liver",), "ct", "CT", []), (("cineMRI", "T1 MR"), "zscore", "MR", []),
    (("R", "G", "B"), "rgb", "R, G, B", [0, 1]), (("MR", "CT"), "zscore", "MR, CT", [])])
def test_modalities_are_monais_words_only_where_there_is_no_doubt(manifest, channels, kind, modality, value_range):
    grid = manifest.preprocessing.model_copy(update={"channels": tuple(
        ChannelNormalisation(kind=kind, masked=False, mean=0, std=1, low=0, high=0) for _ in channels)})
    found = metadata(manifest.model_copy(update={"channels": channels, "preprocessing": grid}))
    image = found["network_data_format"]["inputs"]["image"]
    assert (image["modality"], image["value_range"]) == (modality, value_range)
