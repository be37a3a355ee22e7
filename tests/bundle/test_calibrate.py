import json
import shutil
from collections import Counter
from dataclasses import replace
from functools import partial

import nibabel
import numpy as np
import pytest
import tiny_bundle
import tiny_run

from edgeseg.bundle.calibrate import calibration_frames, draw_frames, remembering, without_path
from edgeseg.bundle.leak import check_own, sha256
from edgeseg.bundle.recipe import STRATA, CalibrationRecipe
from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import CaseRef, Dataset, open_data

GRID = Preprocessing((16, 16), (1.0, 1.0))


def toy_case(patient, phase, slices, constant, shape=(12, 20)) -> Case:
    frames = np.random.default_rng([int(patient[1:]), phase == "ED"]).normal(size=(slices, 1, *shape)) * 100
    if constant:
        frames[1:] = 5
    return Case(f"{patient}_{phase}", patient, frames, (1.0, 1.0), phase=phase)


def toy_data(patients=6, slices=10, phases=("ED", "ES"), constant=False, groups=(None,), vendors=(None,), **other
             ) -> Dataset:
    """Groups and vendors go round the patients at different speeds."""
    refs = tuple(CaseRef(f"p{p}_{phase}", f"p{p}", "train", phase, groups[p % len(groups)],
                         vendors[p // len(groups) % len(vendors)],
                         partial(toy_case, f"p{p}", phase, slices, constant, **other))
                 for p in range(patients) for phase in phases)
    return Dataset("toy", "toy:", refs, None, "none")


class ToyRun:
    """What calibration asks of a run."""

    preprocessing = GRID

    def __init__(self, folder, train, dev=(), val=()):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "student.safetensors").write_bytes(b"weights")
        self.data = {"splits": {"train": train, "dev": dev, "val": val}}


def own(frames=12, **values) -> CalibrationRecipe:
    return CalibrationRecipe(frames=frames, **values)


def spread(counter) -> int:
    return max(counter.values()) - min(counter.values())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("some place"))


# which frames

def test_every_patient_gives_as_many_frames_as_any_other_and_both_phases_are_drawn():
    frames = draw_frames(toy_data(), GRID, 20, seed=0)
    assert len(frames) == 20
    assert spread(Counter(f.case.patient for f in frames)) <= 1
    assert spread(Counter(f.case.phase for f in frames)) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_every_stratum_that_is_known_is_as_even_as_the_data_allow(seed):
    data = toy_data(patients=30, groups=("A", "B", "C"), vendors=("X", "Y"))
    for count in (12, 31, 60):
        frames = draw_frames(data, GRID, count, seed)
        for value in ("phase", "group", "vendor"):
            assert spread(Counter(getattr(f.case, value) for f in frames)) <= 2, value
        assert spread(Counter(f.third for f in frames)) <= 1


def test_a_rare_group_is_drawn_first():
    data = toy_data(patients=20)
    rare = replace(data, refs=tuple(replace(r, group="rare" if r.patient in ("p3", "p7") else "common")
                                    for r in data.refs))
    assert Counter(f.case.group for f in draw_frames(rare, GRID, 4, 0)) == {"rare": 2, "common": 2}
    # as many frames of each patient go before that
    assert Counter(f.case.group for f in draw_frames(rare, GRID, 20, 0)) == {"rare": 2, "common": 18}


def test_phases_do_not_go_with_groups_or_with_places():
    data = toy_data(patients=60, groups=("A", "B", "C"))
    frames = draw_frames(data, GRID, 120, 0)
    assert min(Counter((f.case.group, f.case.phase, f.third) for f in frames).values()) >= 2
    assert len(Counter((f.case.group, f.case.phase, f.third) for f in frames)) == 3 * 2 * 3


def test_only_the_strata_that_are_asked_for_are_evened_out():
    data = toy_data(patients=40)
    uneven = replace(data, refs=tuple(replace(r, group="A" if int(r.patient[1:]) < 4 else "B") for r in data.refs))
    counts = [Counter(f.case.group for f in draw_frames(uneven, GRID, 8, seed, strata))["A"]
              for strata in (STRATA, ("phase", "position")) for seed in range(10)]
    assert set(counts[:10]) == {4}
    assert np.mean(counts[10:]) < 2


def test_a_single_frame_a_patient_still_covers_the_stack_and_the_phases():
    frames = draw_frames(toy_data(patients=9), GRID, 9, seed=3)
    assert len({f.case.patient for f in frames}) == 9
    assert set(Counter(f.third for f in frames).values()) == {3}
    assert set(Counter(f.case.phase for f in frames).values()) == {4, 5}


def test_no_frame_is_drawn_twice_even_when_more_are_asked_for_than_there_are():
    frames = draw_frames(toy_data(patients=2, slices=3), GRID, 100, seed=0)
    assert sorted((f.case.id, f.index) for f in frames) == [(f"p{p}_{e}", i) for p in (0, 1) for e in ("ED", "ES")
                                                            for i in range(3)]


def test_patients_with_many_frames_make_up_for_those_with_few():
    short, long = toy_data(patients=2, slices=1), toy_data(patients=4)
    data = replace(long, refs=(*short.refs, *long.refs[4:]))
    counts = Counter(f.case.patient for f in draw_frames(data, GRID, 24, 0))
    assert counts == {"p0": 2, "p1": 2, "p2": 10, "p3": 10}


def test_the_draw_depends_on_the_seed_and_on_nothing_else():
    first, again, other = (draw_frames(toy_data(), GRID, 8, seed) for seed in (1, 1, 2))
    assert [(f.case.id, f.index) for f in first] == [(f.case.id, f.index) for f in again]
    assert [(f.case.id, f.index) for f in first] != [(f.case.id, f.index) for f in other]


@pytest.mark.parametrize("window", ["centre", "tiles"])
@pytest.mark.parametrize("shape", [(12, 20), (16, 16), (31, 8), (40, 37)])
def test_a_calibration_frame_is_what_the_network_gets_in_use(shape, window):
    grid = replace(GRID, window=window)
    data = toy_data(patients=4, shape=shape)
    fed = set()

    def net(x):
        fed.update(map(sha256, x))
        return np.zeros((len(x), 2, 16, 16), np.float32)

    for case in data:
        grid.segment(case.frames, case.spacing, net)
    frames = draw_frames(data, grid, 40, 0)
    assert {sha256(f.window) for f in frames} <= fed
    if window == "tiles" and shape == (40, 37):  # not always the same of the twelve tiles
        case = data.refs[0].load()
        starts = grid.starts((40, 37))
        drawn = [next(k for k, (y, x) in enumerate(starts) if np.array_equal(tile(f, y, x), f.window)) for f in frames]
        assert len(starts) > 4
        assert len(set(drawn)) > 4
        assert case.frames.shape[-2:] == shape


def tile(frame, y, x):
    case = frame.case.load()
    return GRID.normalise(case.frames)[frame.index][:, y : y + 16, x : x + 16]


def test_a_window_in_which_nothing_happens_is_not_drawn():
    def load():
        frames = np.zeros((6, 1, 48, 48))
        frames[:, :, 20:28, 20:28] = np.random.default_rng(0).normal(size=(6, 1, 8, 8)) * 100
        return Case("c", "p", frames, (1.0, 1.0))

    data = Dataset("toy", "toy:", (CaseRef("c", "p", "train", None, None, None, load),), None, "none")
    frames = draw_frames(data, GRID, 6, 0)
    assert len(frames) == 6
    assert all(f.window.min() < f.window.max() for f in frames)


def test_cases_stay_in_memory_up_to_a_limit():
    reads = Counter()
    data = toy_data(patients=3, phases=("ED",))

    def load(ref):
        reads[ref.id] += 1
        return ref.load()

    counted = replace(data, refs=tuple(replace(r, load=partial(load, r)) for r in data.refs))
    held = remembering(counted, limit=2 * data.refs[0].load().frames.nbytes)
    for _ in range(4):
        list(held)
    assert reads == {"p0_ED": 1, "p1_ED": 1, "p2_ED": 4}


# the sheet

def test_the_sheet_counts_frames_and_names_nobody(tmp_path):
    data = toy_data(groups=("A", "B"))
    tensors, sheet = calibration_frames(ToyRun(tmp_path, data.patients()), data, own(seed=3))
    assert tensors.shape == (12, 1, 16, 16)
    assert (len(sheet.frames), sheet.patients, sheet.seed) == (12, 6, 3)
    assert sheet.strata == {"phase": {"ED": 6, "ES": 6}, "group": {"A": 6, "B": 6},
                            "position": {"first third": 4, "middle third": 4, "last third": 4}}
    assert "p0" not in sheet.model_dump_json()
    assert len({f.patient for f in sheet.frames}) == 6
    assert [f.sha256 for f in sheet.frames] == [sha256(x) for x in tensors]


def test_ids_are_plain_only_when_asked_for(tmp_path):
    data = toy_data()
    sheet = calibration_frames(ToyRun(tmp_path, data.patients()), data, own(keep_ids=True))[1]
    assert sheet.ids == "kept"
    assert {f.patient for f in sheet.frames} == set(data.patients())
    assert {f.case for f in sheet.frames} <= {r.id for r in data.refs}


def test_hashes_cannot_be_made_without_the_weights(tmp_path):
    data = toy_data()
    one = calibration_frames(ToyRun(tmp_path / "a", data.patients()), data, own(4))[1]
    run = ToyRun(tmp_path / "b", data.patients())
    (run.folder / "student.safetensors").write_bytes(b"others")
    two = calibration_frames(run, data, own(4))[1]
    assert [f.sha256 for f in one.frames] == [f.sha256 for f in two.frames]
    assert not {f.patient for f in one.frames} & {f.patient for f in two.frames}


@pytest.mark.parametrize(("spec", "shown"), [
    ("acdc:/data/some where/acdc?frames=4d", "acdc"),
    ("nifti:C:\\x\\y", "nifti"),
    ("phantom:cine?n=4&seed=7", "phantom:cine?n=4&seed=7"),
    ("acdc:/a + b/c + mnms:/d + phantom:cine", "acdc + mnms + phantom:cine"),
])
def test_the_source_has_no_path_in_the_sheet(spec, shown):
    assert without_path(spec) == shown


# sources

def test_phantoms_need_no_image_of_anybody(run):
    """Not even the run's own data are read."""
    recipe = own(8, source="phantom:cine?n=3&seed=5", name="cine-phantom")
    unread = replace(run.dataset(), refs=tuple(replace(r, load=None) for r in run.dataset().refs))
    tensors, sheet = calibration_frames(run, unread, recipe)
    assert tensors.shape == (8, 1, 64, 64)
    assert (sheet.synthetic, sheet.source, sheet.recipe) == (True, "phantom:cine?n=3&seed=5", "cine-phantom")
    assert sheet.patients == 1  # of three phantoms one trains, one is dev, one is val


def test_patients_of_the_run_are_not_synthetic(run):
    assert not calibration_frames(run, run.dataset(), own(4))[1].synthetic


def other_folder(path, count=4, first=50):
    """A folder of unlabelled images that the run has never seen."""
    path.mkdir()
    for i in range(count):
        frames = np.random.default_rng(first + i).integers(0, 300, (3, 40, 36)).astype(np.int16)
        nibabel.Nifti1Image(frames.transpose(2, 1, 0), np.diag([1.5, 1.5, 8, 1])).to_filename(
            path / f"other{first + i}.nii.gz")
    return path


def test_a_folder_of_images_without_labels_is_used_as_a_whole(run, tmp_path):
    tensors, sheet = calibration_frames(run, run.dataset(), own(source=f"nifti:{other_folder(tmp_path / 'my images')}"))
    assert (len(tensors), sheet.patients, sheet.source) == (12, 4, "nifti")
    assert "my images" not in sheet.model_dump_json()


def test_of_a_source_with_splits_only_training_patients_are_drawn(run, tmp_path):
    source = tiny_bundle.write_nnunet_data(tmp_path / "Dataset002", 8)
    for folder in ("imagesTr", "labelsTr"):
        for file in list((source / folder).iterdir()):
            file.rename(file.with_name(file.name.replace("case", "other")))
    names = [f"other{i}" for i in range(8)]
    # contents are those of the run's cases, so calibrate a run that was trained on something else
    toy = toy_data()
    for train in (names[:3], names[3:6]):
        (source / "split.json").write_text(json.dumps({"train": train, "dev": names[6:7], "val": names[7:]}))
        sheet = calibration_frames(ToyRun(tmp_path / "run", toy.patients()), toy,
                                   own(100, source=f"nnunet:{source}", keep_ids=True))[1]
        assert {f.patient for f in sheet.frames} == set(train)
    (source / "split.json").write_text(json.dumps({"dev": names[:4], "val": names[4:]}))
    with pytest.raises(EdgesegError, match="only 0 usable"):
        calibration_frames(ToyRun(tmp_path / "run", toy.patients()), toy, own(source=f"nnunet:{source}"))


# who may not

@pytest.mark.parametrize("held_out", ["dev", "val"])
def test_a_patient_that_was_held_out_of_training_cannot_calibrate(tmp_path, held_out):
    data = toy_data()
    run = ToyRun(tmp_path, data.patients()[1:], **{held_out: ["p0"]})
    with pytest.raises(EdgesegError, match=f"patient p0 was in {held_out}"):
        check_own(run, data)


def test_a_patient_who_is_new_since_training_cannot_calibrate(tmp_path):
    data = toy_data()
    with pytest.raises(EdgesegError, match="patient p5 is new"):
        check_own(ToyRun(tmp_path, data.patients()[:5]), data)


def test_cases_of_other_splits_are_never_drawn(tmp_path):
    data = toy_data()
    mixed = replace(data, refs=tuple(replace(r, split="dev" if r.patient == "p3" else "train") for r in data.refs))
    run = ToyRun(tmp_path, [p for p in data.patients() if p != "p3"], dev=["p3"])
    assert calibration_frames(run, mixed, own(100))[1].patients == 5


def image_of(run, patient):
    return next(iter((open_path(run) / "imagesTr").glob(f"{patient}_*")))


def open_path(run):
    return tiny_bundle.Path(run.recipe["data"][0].partition(":")[2])


@pytest.mark.parametrize("held_out", ["dev", "val"])
@pytest.mark.parametrize("name", ["{}", "{}_frame01", "{}_4d", "{}-copy"])
def test_another_source_with_the_name_of_a_held_out_patient_is_refused(run, tmp_path, held_out, name):
    patient = run.data["splits"][held_out][0]
    folder = other_folder(tmp_path / "images")
    next(folder.iterdir()).rename(folder / (name.format(patient) + ".nii.gz"))
    with pytest.raises(EdgesegError, match=f"{patient}.* has the name of a {held_out} patient"):
        calibration_frames(run, run.dataset(), own(source=f"nifti:{folder}"))
    # a longer number is another patient
    (folder / (name.format(patient) + ".nii.gz")).rename(folder / f"{patient}7.nii.gz")
    assert len(calibration_frames(run, run.dataset(), own(source=f"nifti:{folder}"))[0]) == 12


def test_merged_data_sets_hide_no_name(run, tmp_path):
    patient = run.data["splits"]["val"][0]
    folder = other_folder(tmp_path / "images")
    next(folder.iterdir()).rename(folder / f"{patient}.nii.gz")
    with pytest.raises(EdgesegError, match=f"nifti_{patient} has the name of a val patient"):
        calibration_frames(run, run.dataset(), own(source=f"nifti:{folder} + phantom:cine?n=3"))


@pytest.mark.parametrize("held_out", ["dev", "val"])
@pytest.mark.parametrize("part", ["whole", "one slice"])
def test_a_renamed_copy_of_a_held_out_patient_is_refused(run, tmp_path, held_out, part):
    patient = run.data["splits"][held_out][0]
    folder = other_folder(tmp_path / "images", 2)
    if part == "whole":
        shutil.copy(image_of(run, patient), folder / "unknown.nii.gz")
    else:
        image = nibabel.load(image_of(run, patient))
        nibabel.Nifti1Image(np.asarray(image.dataobj)[..., 1:2], image.affine).to_filename(folder / "unknown.nii.gz")
    # some of these small hearts are twice in the data set: let only this split be held out
    run = replace(run, data={**run.data, "splits": {"train": [], held_out: run.data["splits"][held_out]}})
    with pytest.raises(EdgesegError, match=f"of unknown is a copy of a frame of case.* of {held_out}") as raised:
        calibration_frames(run, run.dataset(), own(100, source=f"nifti:{folder}"))
    assert "\n" not in str(raised.value)


def test_without_the_held_out_patients_at_hand_no_other_image_is_taken(run, tmp_path):
    source = f"nifti:{other_folder(tmp_path / 'images')}"
    with pytest.raises(EdgesegError, match="restore the data"):
        calibration_frames(run, run.dataset().select("train"), own(source=source))


def test_a_source_of_other_channels_is_refused(run, tmp_path):
    folder = other_folder(tmp_path / "images", 1)
    only = next(folder.iterdir())
    shutil.copy(only, folder / "other_0001.nii.gz")
    only.rename(folder / "other_0000.nii.gz")
    with pytest.raises(EdgesegError, match=r"other_0000.nii.gz: has 2 channel\(s\), but the network takes 1"):
        calibration_frames(run, run.dataset(), own(source=f"nifti:{folder}"))


def test_constant_frames_do_not_count(tmp_path):
    data = toy_data(patients=1, phases=("ED",), constant=True)
    with pytest.raises(EdgesegError, match="only 1 usable frame"):
        calibration_frames(ToyRun(tmp_path, ["p0"]), data, own(10))
    data = toy_data(patients=2, phases=("ED",), constant=True)
    assert len(calibration_frames(ToyRun(tmp_path, ["p0", "p1"]), data, own(10))[0]) == 2


def test_an_image_that_is_all_constant_is_named(run, tmp_path):
    folder = other_folder(tmp_path / "images", 1)
    flat = nibabel.Nifti1Image(np.full((36, 40, 3), 7, np.int16), np.eye(4))
    flat.to_filename(next(folder.iterdir()))
    with pytest.raises(EdgesegError, match=r"other50.nii.gz: the image is constant"):
        calibration_frames(run, run.dataset(), own(source=f"nifti:{folder}"))


def test_a_single_image_of_one_slice_is_not_enough(run, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    nibabel.Nifti1Image(np.arange(1440, dtype=np.int16).reshape(36, 40, 1), np.eye(4)).to_filename(
        folder / "single.nii.gz")
    with pytest.raises(EdgesegError, match="only 1 usable frame"):
        calibration_frames(run, run.dataset(), own(source=f"nifti:{folder}"))


@pytest.mark.parametrize(("source", "message"), [
    ("nifti:/no/where", "no such folder"),
    ("phantom:cine?n=x", "n"),
])
def test_a_source_that_cannot_be_opened_is_named(run, source, message):
    with pytest.raises(EdgesegError, match=message) as raised:
        calibration_frames(run, run.dataset(), own(source=source))
    assert source in str(raised.value)


def test_acdc_strata_are_even_and_its_own_copy_is_told_apart(acdc, tmp_path):
    """On the real data: 100 frames of 65 patients, and a dev patient under another name."""
    data = open_data(f"acdc:{acdc}")
    splits = {s: list(data.select(s).patients()) for s in ("train", "dev", "val")}
    run = ToyRun(tmp_path / "run", splits["train"], splits["dev"], splits["val"])
    run.preprocessing = Preprocessing((192, 192), (1.5625, 1.5625), window="centre")
    strata = calibration_frames(run, data, own(100))[1].strata
    assert all(max(c.values()) - min(c.values()) <= 2 for c in strata.values()), strata
    folder = other_folder(tmp_path / "images", 1)
    patient = acdc / "training" / splits["dev"][0]
    shutil.copy(next(f for f in sorted(patient.iterdir()) if "frame" in f.name and "_gt" not in f.name),
                folder / "stranger.nii.gz")
    run.data["splits"]["val"] = []  # half the time
    with pytest.raises(EdgesegError, match=f"of stranger is a copy of a frame of {splits['dev'][0]}_frame.. of dev"):
        calibration_frames(run, data, own(40, source=f"nifti:{folder}"))
