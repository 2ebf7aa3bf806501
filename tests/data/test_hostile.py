"""Files of strangers: damaged, boasting, linked, piped. A sentence each, and nothing else."""

import io
import json
import os
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medseg.data import header, load_table, read_image
from medseg.data.files import read_mask_values
from medseg.errors import UserError

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, packed=b""):
    """A gray PNG that declares these sides, whatever its data holds."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(packed)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width, height):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def jpeg(width, height):
    pixels = cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes()
    at = pixels.index(b"\xff\xc0") + 5
    return pixels[:at] + struct.pack(">HH", height, width) + pixels[at + 4 :]


def tiff(width, height, bits=8):
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 8), (278, 4, height), (279, 4, 16)]
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + rows + b"\0" * 20


def samples():
    """One good file of each kind, small."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (24, 20, 3), np.uint8)
    for extension in (".png", ".jpg", ".tif", ".bmp"):
        yield extension, cv2.imencode(extension, pixels)[1].tobytes()
    yield ".png", cv2.imencode(".png", pixels[:, :, 0].astype(np.uint16) * 200)[1].tobytes()
    palette = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] // 100).convert("P").save(palette, "PNG")
    yield ".png", palette.getvalue()


GOOD = list(samples())


@FEW
@given(
    good=st.sampled_from(GOOD),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_are_read_or_refused(tmp_path, good, cut, flips):
    extension, content = good
    damaged = bytearray(content[: max(1, int(cut * len(content)))])
    for place, value in flips:
        damaged[place % len(damaged)] = value
    path = tmp_path / f"a{extension}"
    path.write_bytes(damaged)
    for read in (read_image, read_mask_values):
        try:
            read(path)
        except UserError as error:
            assert error.code == 3 and str(path) in str(error)


@FEW
@given(content=st.binary(max_size=200), magic=st.sampled_from([b"", *header._READERS]))
def test_noise_behind_any_magic_is_refused(tmp_path, content, magic):
    path = tmp_path / "a.png"
    path.write_bytes(magic + content)
    with pytest.raises(UserError, match=r"a\.png"):
        read_image(path)


def test_other_formats_are_not_tried(tmp_path):
    """OpenCV would open many more, by what they begin with."""
    for extension in (".webp", ".jp2", ".ppm", ".hdr", ".gif"):
        done, packed = cv2.imencode(extension, np.full((16, 16, 3), 9, np.uint8))
        if done:
            path = tmp_path / "a.png"
            path.write_bytes(packed.tobytes())
            with pytest.raises(UserError, match="cannot be read as an image"):
                read_image(path)


@pytest.mark.parametrize("declare", [png, bmp, jpeg, tiff])
@pytest.mark.parametrize("sides", [(60000, 60000), (65535, 65535)])
def test_boasting_headers_are_refused_before_a_pixel_is_decoded(
    tmp_path, monkeypatch, declare, sides
):
    path = tmp_path / "a.png"
    path.write_bytes(declare(*sides))
    monkeypatch.setattr(header, "free_memory", lambda: 8 << 30)
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("was decoded"))
    with pytest.raises(UserError, match=f"has {sides[0]}x{sides[1]} pixels, too many"):
        read_image(path)


def test_a_tiff_that_pillow_does_not_know_is_measured_too(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(60000, 50000, bits=13))
    monkeypatch.setattr(header, "free_memory", lambda: 8 << 30)
    with pytest.raises(UserError, match="has 60000x50000 pixels, too many"):
        read_image(path)


def test_a_bomb_is_weighed_against_the_free_memory(tmp_path, monkeypatch):
    """144 million zeros in 140 kB."""
    path = tmp_path / "a.png"
    path.write_bytes(png(12000, 12000, b"\0" * (12001 * 12000)))
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(header, "free_memory", lambda: 1 << 30)
    with pytest.raises(UserError, match="too many for the memory that is free"):
        read_image(path)


def test_a_large_image_is_read_where_there_is_room(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(3000, 3000, b"\0" * (3001 * 3000)))
    assert read_image(path).shape == (3000, 3000, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_not_waited_for(small):
    (small.root / "images" / "cell0.png").unlink()
    os.mkfifo(small.root / "images" / "cell0.png")
    told = []

    def load():
        with pytest.raises(UserError, match=r"cell0\.png is no regular file") as caught:
            load_table(small.root)
        told.append(caught.value.code)

    worker = threading.Thread(target=load, daemon=True)
    worker.start()
    worker.join(20)
    assert told == [3]


def test_a_folder_with_the_name_of_an_image(small):
    (small.root / "images" / "cell0.png").unlink()
    (small.root / "images" / "cell0.png").mkdir()
    with pytest.raises(UserError, match=r"cell0\.png is no regular file"):
        load_table(small.root)


@pytest.mark.parametrize("csv", [False, True])
def test_links_out_of_the_folder(small, tmp_path, csv):
    secret = tmp_path / "secret.png"
    path = small.root / "images" / "cell0.png"
    path.rename(secret)
    path.symlink_to(secret)
    if csv:
        rows = [f"cell{n}.png,cell{n}.png,{'val' if n else 'train'}" for n in range(6)]
        small.text("split.csv", "image,mask,split", *rows)
    with pytest.raises(UserError, match=r"cell0\.png is a link to .*secret\.png, outside") as e:
        load_table(small.root)
    assert e.value.code == 3
    path.unlink()
    path.symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"cell0\.png is a link to a file that is not there"):
        load_table(small.root)
    path.unlink()
    path.symlink_to("cell0.png")
    with pytest.raises(UserError, match=r"cell0\.png is a link to a file that is not there"):
        load_table(small.root)


def test_linked_folders_are_fine(small, tmp_path):
    (tmp_path / "set2").mkdir()
    for part in ("images", "masks"):
        (tmp_path / "set2" / part).symlink_to(small.root / part)
    assert len(load_table(tmp_path / "set2").samples) == 6
    (tmp_path / "set3").symlink_to(tmp_path / "set2")
    assert len(load_table(tmp_path / "set3").samples) == 6


@pytest.mark.parametrize(
    "name",
    ["../../secret.png", "/etc/hostname", "a\0b.png", "x" * 5000, "images/../../s.png", ".", "~/x"],
)
def test_csv_names_that_lead_elsewhere(small, tmp_path, name):
    (tmp_path / "secret.png").write_bytes((small.root / "images" / "cell0.png").read_bytes())
    rows = ["image,mask,split", f"{name},cell0.png,train", "cell1.png,cell1.png,val"]
    (small.root / "split.csv").write_bytes("\n".join(rows).encode())
    with pytest.raises((UserError, OSError)) as caught:
        load_table(small.root)
    assert isinstance(caught.value, UserError) or caught.value.filename  # `guarded` names it
    assert getattr(caught.value, "code", 3) == 3


@FEW
@given(
    text=st.one_of(
        st.binary(max_size=120),
        st.lists(
            st.lists(
                st.one_of(
                    st.sampled_from(["image", "mask", "split", "cell0.png", "train", "val", '"']),
                    st.text(max_size=6),
                ),
                max_size=5,
            ).map(",".join),
            max_size=5,
        ).map(lambda lines: "\n".join(["image,mask,split", *lines]).encode(errors="replace")),
    )
)
def test_any_csv_is_read_or_refused(small, text):
    (small.root / "split.csv").write_bytes(text)
    try:
        load_table(small.root)
    except UserError as error:
        assert error.code == 3
        assert "\n" not in str(error).replace(str(small.root), "")


@FEW
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=4)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
        st.sampled_from([b"[" * 100_000, b'{"0":"a","1":' + b"9" * 5000 + b"}", b"{" * 5000]),
    )
)
def test_any_classes_json_is_read_or_refused(small, content):
    (small.root / "classes.json").write_bytes(content)
    try:
        load_table(small.root)
    except UserError as error:
        assert error.code == 3
