"""`medseg predict` on files of every kind, good and hostile."""

import json
import os
import sys

import cv2
import numpy as np
import pytest

import medseg
from medseg.inference import Predictor, load_trained

from .pictures import files_in, picture, save


def expected(run, pixels):
    trained = load_trained(run)
    return np.array(trained.values, np.uint8)[Predictor(trained).labels(pixels)]


def mask_of(done, name):
    found = cv2.imread(str(done.folder / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found


def test_a_folder_of_many_kinds(predict, run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shown = {}
    for number, (ending, channels, dtype) in enumerate(
        [
            ("png", 3, np.uint8),
            ("png", 1, np.uint16),
            ("tif", 3, np.uint16),
            ("tiff", 1, np.uint8),
            ("bmp", 3, np.uint8),
        ]
    ):
        shown[f"i{number}"] = picture(40 + 9 * number, 30, channels, dtype, number)
        save(folder / f"i{number}.{ending}", shown[f"i{number}"])
    shown["array"] = picture(25, 31, 3)
    np.save(folder / "array.npy", shown["array"])
    save(folder / "photo.jpg", picture())
    (folder / "notes.txt").write_text("no image")
    done = predict("--images", folder, "--batch", 3)
    assert done.code == 0, done.err
    assert "7 images" in done.out
    for name, pixels in shown.items():
        assert np.array_equal(mask_of(done, name), expected(run, pixels)), name
    assert len(files_in(done.folder)) == 14 and len(files_in(folder)) == 8


def test_every_kind_of_result_and_the_document(predict, tmp_path):
    pytest.importorskip("roifile", reason="roifile is not installed: no ImageJ regions")
    path = save(tmp_path / "köře.png", picture(dtype=np.uint16))
    kinds = ("masks", "overlays", "outlines", "probabilities", "geojson", "imagej")
    done = predict("--images", path, "--write", *kinds, "--json", "--flips")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    (image,) = document["images"]
    assert sorted(image["files"]) == sorted(kinds)
    assert sum(image["pixels"].values()) == 40 * 30
    probabilities = np.load(image["files"]["probabilities"])
    labels = probabilities.argmax(0)
    mask = mask_of(done, "köře")
    assert np.mean(np.array([0, 128, 255])[labels] == mask) > 0.99
    for kind in kinds:
        assert os.path.getsize(image["files"][kind]) > 50


def test_windows_of_a_patch_network_and_of_the_flag(predict, patch_run, run, tmp_path):
    pixels = picture(100, 90)
    path = save(tmp_path / "large.png", pixels)
    done = predict("--images", path, weights=patch_run)
    assert done.code == 0 and np.array_equal(mask_of(done, "large"), expected(patch_run, pixels))
    wide = predict("--images", path, "--window", 50, "--overwrite")
    assert wide.code == 0 and wide.out
    assert (mask_of(wide, "large") != expected(run, pixels)).any()


def test_python_calls(run):
    predictor = medseg.Predictor(medseg.load_trained(run), flips=True, window=32)
    assert predictor.labels(picture(90, 70)).shape == (90, 70)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}])
def test_large_tiff_is_read_in_rows(predict, patch_run, tmp_path, monkeypatch, compression, layout):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: no TIFF rows")
    from medseg.inference import RowImage, open_images, sources

    pixels = picture(90, 75)
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, pixels, compression=compression, photometric="rgb", **layout)
    monkeypatch.setattr(sources, "_LARGE", 100)
    (image,) = open_images(path, 3)
    assert isinstance(image, RowImage)
    for start, stop in ((0, 90), (0, 1), (13, 50), (89, 90), (16, 32)):
        assert np.array_equal(image.rows(start, stop), pixels[start:stop])
    done = predict("--images", path, weights=patch_run)
    assert done.code == 0, done.err
    assert np.array_equal(mask_of(done, "large"), expected(patch_run, pixels))


def test_pages_of_a_tiff(predict, run, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: no pages")
    pages = [picture(seed=number) for number in range(3)]
    tifffile.imwrite(tmp_path / "stack.tif", np.stack(pages), photometric="rgb")
    done = predict("--images", tmp_path / "stack.tif")
    assert done.code == 0, done.err
    for number, pixels in enumerate(pages, 1):
        assert np.array_equal(mask_of(done, f"stack_{number:04d}"), expected(run, pixels))


def test_pages_need_tifffile(predict, tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed: no pages")
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((2, 20, 20), np.uint8))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    done = predict("--images", tmp_path / "stack.tif")
    assert done.code == 3 and "pip install 'medseg[formats]'" in done.err


def test_slices_of_a_nifti_volume(predict, run, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: no NIfTI")
    values = np.random.default_rng(0).normal(0, 300, (30, 40, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii.gz")
    done = predict("--images", tmp_path / "scan.nii.gz")
    assert done.code == 0, done.err
    low, high = values.min(), values.max()
    for number in range(3):
        shown = ((values[:, :, number].T - low) * (65535 / (high - low))).round()
        found = mask_of(done, f"scan_{number + 1:04d}")
        assert found.shape == (40, 30)
        assert np.mean(found == expected(run, shown.astype(np.uint16))) > 0.99


def test_dicom_in_its_window(predict, run, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: no DICOM")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    values = np.random.default_rng(0).integers(0, 4096, (40, 30), np.uint16)
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel = 40, 30, 1
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PhotometricInterpretation = "MONOCHROME1"
    file.RescaleSlope, file.RescaleIntercept = 2, -1000
    file.WindowCenter, file.WindowWidth = 500, 3000
    file.PixelData = values.tobytes()
    file.save_as(tmp_path / "scan.dcm", enforce_file_format=True)
    done = predict("--images", tmp_path / "scan.dcm")
    assert done.code == 0, done.err
    shown = ((values * 2.0 - 1000) + 1000).clip(0, 3000) * (65535 / 3000)
    shown = 65535 - shown.round().astype(np.uint16)
    assert np.mean(mask_of(done, "scan") == expected(run, shown)) > 0.99


def bad_files(folder):
    """Files that are no images, by name."""
    good = cv2.imencode(".png", picture())[1].tobytes()
    contents = {
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "text.jpg": b"hello",
        "wrong.tif": good[8:],
        "bomb.png": good[:16] + (1 << 30).to_bytes(4, "big") * 2 + good[24:],
        "pickle.npy": b"\x93NUMPY\x01\x00",
        "scan.dcm": b"nothing",
        "scan2.nii.gz": b"\x1f\x8b" + bytes(30),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    np.save(folder / "object.npy", np.array([{}], object), allow_pickle=True)
    np.save(folder / "float.npy", np.zeros((4, 4)))
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    return [*contents, "object.npy", "float.npy", "dangling.png"]


def test_bad_files_do_not_keep_the_good_ones(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    bad = bad_files(folder)
    for name in ("a", "z"):
        save(folder / f"{name}.png", picture())
    done = predict("--images", folder, "--json")
    assert done.code == 3, done
    document = json.loads(done.out)
    assert [image["name"] for image in document["images"]] == ["a", "z"]
    assert {os.path.basename(f["image"]) for f in document["failed"]} == set(bad)
    assert f"{len(bad)} of {len(bad) + 2} files were left out" in done.err
    assert files_in(done.folder) == [
        "masks/a.png",
        "masks/z.png",
        "overlays/a.png",
        "overlays/z.png",
    ]


def test_nothing_is_overwritten(predict, run, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    path = save(folder / "a.png", picture())
    before = path.read_bytes()
    done = predict("--images", folder, out=tmp_path)
    assert done.code == 2 and "holds the images that are read" in done.err
    (tmp_path / "link").symlink_to(tmp_path)
    assert predict("--images", folder, out=tmp_path / "link").code == 2
    assert predict("--images", folder).code == 0
    again = predict("--images", folder)
    assert again.code == 2 and "--overwrite" in again.err
    assert predict("--images", folder, "--overwrite").code == 0
    assert path.read_bytes() == before
    away = tmp_path / "away"
    (away / "elsewhere").mkdir(parents=True)
    (tmp_path / "out2").mkdir()
    (tmp_path / "out2" / "masks").symlink_to(away / "elsewhere")
    done = predict("--images", folder, out=tmp_path / "out2")
    assert done.code == 2 and "link to elsewhere" in done.err and not files_in(away)


def test_masks_that_somebody_drew_are_never_replaced(predict, tmp_path):
    """A data folder's own masks, where it is named for the results as well."""
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        path = save(tmp_path / "set" / kind / "a.png", picture())
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "set" / "images")
    for images in (tmp_path / "set", tmp_path / "set" / "images", tmp_path / "link"):
        done = predict("--images", images, "--overwrite", out=tmp_path / "set")
        assert done.code == 2 and "the place of the masks of the images that are read" in done.err
    assert path.read_bytes() == before
    (tmp_path / "set" / "masks").rename(tmp_path / "drawn")  # nothing there would be replaced,
    done = predict("--images", images, out=tmp_path / "set")  # but a training would take it
    assert done.code == 2 and not (tmp_path / "set" / "masks").exists()
    assert (
        predict("--images", tmp_path / "set", "--write", "overlays", out=tmp_path / "set").code == 0
    )


def test_each_file_that_was_left_out_is_named(predict, tmp_path):
    save(tmp_path / "a.png", picture())
    for name in "bcd":
        (tmp_path / f"{name}.png").write_bytes(b"")
    done = predict("--images", tmp_path)
    assert done.code == 3 and "1 images in" in done.out and "(3 of 4 files" in done.err
    for name in "bcd":
        assert (done.out + done.err).count(f"{name}.png cannot be read") == 1


def test_names_that_collide_are_refused(predict, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.png", picture())
    save(folder / "A.bmp", picture())
    done = predict("--images", folder)
    assert done.code == 3 and "would both be written as" in done.err
    assert not done.folder.exists()


def test_wrong_flags_are_refused_in_a_sentence(predict, tmp_path):
    path = save(tmp_path / "a.png", picture())
    (tmp_path / "file").write_text("")
    (tmp_path / "none").mkdir()
    cases = [
        ((), 2, "--images"),
        (("--images", tmp_path / "x.png"), 3, "is not there"),
        (("--images", tmp_path / "none"), 3, "holds no image"),
        (("--images", tmp_path / "file"), 3, "no image file by its name"),
        (("--images", path, "--write", "maks"), 2, "did you mean masks?"),
        (("--images", path, "--batch", "0"), 2, "--batch 0"),
        (("--images", path, "--window", "0"), 2, "--window 0"),
        (("--images", path, "--device", "tpu"), 2, "--device tpu"),
        (("--images", path, "--overlap", "nan"), 2, "--overlap"),
    ]
    for flags, code, words in cases:
        done = predict(*flags)
        assert done.code == code and words in done.err, (flags, done.err)
    done = predict("--images", path, out=tmp_path / "file")
    assert done.code == 2 and "--out" in done.err
