"""Pictures of every kind: read rightly or refused in a line; written whole or not at all."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from styleforge_lib import pictures
from styleforge_lib.pictures import (
    WRITABLE_FORMATS,
    PictureError,
    check_target,
    from_array,
    from_image,
    load_picture,
    on_white,
    save_picture,
    with_alpha_of,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def rainbow() -> Image.Image:
    """Make a picture without symmetry: 6x4, every pixel another colour."""
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def saved(image: Image.Image, path: os.PathLike, **options) -> Image.Image:
    """Write the image with Pillow alone and read it with ours, which must come out clean."""
    image.save(path, **options)
    picture = load_picture(path)
    assert picture.mode in ("RGB", "RGBA")
    assert not picture.info
    return picture


def refusal(function, *arguments, **options) -> str:
    """Return the message of a PictureError, which must be one line."""
    with pytest.raises(PictureError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


# ---- modes ----


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "tga"])
def test_lossless_files_come_back_as_they_were(suffix, rainbow, tmp_path):
    picture = saved(rainbow, tmp_path / f"a.{suffix}")
    assert picture.mode == "RGB"
    assert np.array_equal(picture, rainbow)


def test_grey_and_bilevel(tmp_path):
    grey = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert np.asarray(saved(grey, tmp_path / "grey.png")).tolist() == [[[v] * 3 for v in (0, 100, 255)]]
    assert np.asarray(saved(grey.convert("1", dither=0), tmp_path / "two.png")).tolist() == [
        [[0] * 3, [0] * 3, [255] * 3]
    ]


@pytest.mark.parametrize(("suffix", "options"), [("png", {}), ("tif", {}), ("pgm", {})])
def test_sixteen_bit_grey_is_scaled_not_clipped(suffix, options, tmp_path):
    values = np.array([[0, 128, 257, 1000, 32768, 65535]], np.uint16)
    picture = saved(Image.fromarray(values), tmp_path / f"a.{suffix}", **options)
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 4, 128, 255]


def test_sixteen_bit_grey_of_the_other_byte_order():
    values = np.array([[0, 257, 65535]], ">u2")
    picture = from_image(Image.frombytes("I;16B", (3, 1), values.tobytes()))
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 1, 255]


def png(colour_type: int, row: bytes, width: int, *, depth: int = 16, **chunks: bytes) -> bytes:
    """Write a PNG of one row by hand, for what Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_and_transparent_grey(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2, struct.pack(">6H", 65535, 0, 32768, 0, 65535, 0), 2))
    assert np.asarray(load_picture(path)).tolist() == [[[255, 0, 128], [0, 255, 0]]]
    path.write_bytes(png(0, struct.pack(">3H", 0, 32768, 65535), 3, tRNS=struct.pack(">H", 32768)))
    picture = load_picture(path)
    assert np.asarray(picture).tolist() == [[[0, 0, 0, 255], [128, 128, 128, 0], [255, 255, 255, 255]]]


def test_palette_with_and_without_transparency(rainbow, tmp_path):
    palette = rainbow.quantize(24)
    assert np.array_equal(saved(palette, tmp_path / "a.png"), rainbow)
    index = palette.getpixel((0, 0))
    picture = saved(palette, tmp_path / "b.png", transparency=index)
    assert picture.mode == "RGBA"
    assert picture.getpixel((0, 0))[3] == 0
    assert picture.getpixel((1, 0)) == (*rainbow.getpixel((1, 0)), 255)


def test_alpha_is_kept(rainbow, tmp_path):
    rainbow.putalpha(Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10))
    assert np.array_equal(saved(rainbow, tmp_path / "a.png"), rainbow)
    grey = rainbow.convert("LA")
    assert np.array_equal(saved(grey, tmp_path / "b.png"), grey.convert("RGBA"))


def test_cmyk_jpeg_has_its_colours(tmp_path):
    image = Image.new("RGB", (16, 16), RED)
    picture = saved(image.convert("CMYK"), tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(picture, int) - RED).max() <= 3


@pytest.mark.parametrize("mode", ["F", "LAB", "La", "I"])
def test_modes_without_a_known_range_are_refused(mode):
    assert f"{mode!r} are not supported" in refusal(from_image, Image.new(mode, (2, 2)))


def test_float_tiff_is_refused_with_its_name(tmp_path):
    Image.new("F", (2, 2), 0.5).save(tmp_path / "float.tif")
    message = refusal(load_picture, tmp_path / "float.tif")
    assert "float.tif" in message
    assert "'F'" in message


# ---- rotation, colours, frames ----


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_turns_the_pixels_once(orientation, rainbow, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.asarray(rainbow)
    transposed = pixels.transpose(1, 0, 2)
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: transposed,
        6: transposed[:, ::-1],
        7: transposed[::-1, ::-1],
        8: transposed[::-1],
    }[orientation]
    picture = saved(rainbow, tmp_path / "a.png", exif=exif)
    assert np.array_equal(picture, upright)
    assert np.array_equal(from_image(picture), upright)  # not again


def test_damaged_exif_turns_nothing(rainbow, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(saved(rainbow, tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), rainbow)


def swapped_profile() -> bytes:
    """Return an RGB profile whose red is sRGB's blue, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colour_profile_is_applied_once(mode, tmp_path):
    image = Image.new("RGB", (2, 2), RED).convert(mode)
    picture = saved(image, tmp_path / "a.png", icc_profile=swapped_profile())
    assert np.abs(np.asarray(picture.convert("RGB"), int) - BLUE).max() <= 2
    assert np.array_equal(from_image(picture), picture)


@pytest.mark.parametrize("profile", [b"no profile", swapped_profile()[:200], b""])
def test_unreadable_profile_is_passed_over(profile, rainbow, tmp_path):
    assert np.array_equal(saved(rainbow, tmp_path / "a.png", icc_profile=profile), rainbow)


def test_profile_of_another_kind_of_picture_is_passed_over(tmp_path):
    grey = Image.new("L", (2, 2), 77)
    assert saved(grey, tmp_path / "a.png", icc_profile=swapped_profile()).getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_animation_gives_its_first_frame(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    picture = saved(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(picture.convert("RGB"), int) - RED).max() <= 4


# ---- sizes and faults ----


def test_one_pixel_and_wider_than_thirty_thousand(tmp_path):
    assert saved(Image.new("RGB", (1, 1), GREEN), tmp_path / "a.png").getpixel((0, 0)) == GREEN
    assert saved(Image.new("RGB", (30_011, 2)), tmp_path / "b.png").size == (30_011, 2)


def test_no_pixels():
    assert "no pixels" in refusal(from_image, Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_truncated(suffix, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = tmp_path / f"a.{suffix}"
    noise.save(path)
    whole = path.read_bytes()
    for length in (0, 1, 12, 40, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert path.name in refusal(load_picture, path), length


def test_a_lazily_opened_truncated_picture(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as image:
        assert "truncated or damaged" in refusal(from_image, image)


@pytest.mark.parametrize("content", [b"", b"just text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\nshowpage\n"])
def test_no_picture(content, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert "is no picture" in refusal(load_picture, path)


def test_no_file(tmp_path):
    assert "does not exist" in refusal(load_picture, tmp_path / "missing.png")
    assert "is a folder" in refusal(load_picture, tmp_path)
    refusal(load_picture, "nul\0byte")
    refusal(load_picture, "two\nlines.png")
    refusal(load_picture, "long" * 2000)


def test_decompression_bomb(rainbow, tmp_path, monkeypatch):
    rainbow.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # 24 pixels: Pillow warns, and we read
    assert load_picture(tmp_path / "a.png").size == (6, 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 11)
    assert "million pixels" in refusal(load_picture, tmp_path / "a.png")


# ---- arrays ----


def test_arrays_by_shape_and_dtype():
    grey = np.array([[0, 128, 255]], np.uint8)
    expected = np.repeat(grey[:, :, None], 3, 2)
    for array in (
        grey,
        grey[:, :, None],
        expected,
        grey.astype(np.uint16) * 257,
        (grey / 255).astype(np.float32),
        np.asfortranarray(expected / 255),
        expected[::-1, ::-1][::-1, ::-1],
    ):
        picture = from_array(array)
        assert picture.mode == "RGB"
        assert np.array_equal(picture, expected)
    rgba = np.dstack([expected, grey])
    assert from_array(rgba).mode == "RGBA"
    assert np.array_equal(from_array(rgba), rgba)
    assert from_array(np.full((1, 1), 1 + 1e-7)).getpixel((0, 0)) == WHITE


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8), np.uint8), "(3, 8, 8)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "(1, 8, 8, 3)"),
        (np.zeros((8, 8, 2), np.uint8), "(8, 8, 2)"),
        (np.zeros(8, np.uint8), "(8,)"),
        (np.zeros((0, 8), np.uint8), "no pixels"),
        (np.zeros((8, 8), np.int64), "int64"),
        (np.zeros((8, 8), bool), "bool"),
        (np.zeros((8, 8), complex), "complex128"),
        (np.full((8, 8), 200.0), "200"),
        (np.full((8, 8), -0.1), "-0.1"),
        (np.full((8, 8), np.nan), "nan"),
        (np.array([["a"]]), "<U1"),
    ],
)
def test_arrays_that_are_no_picture(array, words):
    assert words in refusal(from_array, array)


# ---- transparency ----


def test_transparent_parts_are_painted_on_white():
    picture = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        picture.putpixel((x, 0), (*RED, alpha))
    assert np.asarray(on_white(picture)).tolist() == [[[255, 255, 255], [255, 127, 127], [255, 0, 0]]]
    painting = Image.new("RGB", (6, 2), GREEN)
    result = with_alpha_of(painting, picture)
    assert result.mode == "RGBA"
    assert result.getpixel((0, 0)) == (*GREEN, 0)
    assert result.getpixel((5, 1)) == (*GREEN, 255)
    assert painting.mode == "RGB"


# ---- writing ----


@pytest.mark.parametrize("suffix", WRITABLE_FORMATS)
def test_written_files_come_back(suffix, tmp_path):
    across, down = np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 64))
    image = Image.fromarray(np.dstack([across, down, 255 - across, 100 + down / 2]).astype(np.uint8))
    path = tmp_path / f"a{suffix.upper()}"
    save_picture(image, path)
    picture = load_picture(path)
    keeps_alpha = suffix in (".png", ".tif", ".tiff", ".webp")
    assert picture.mode == ("RGBA" if keeps_alpha else "RGB")
    difference = np.abs(np.asarray(picture, int) - (image if keeps_alpha else on_white(image)))
    # JPEG and WebP are lossy: a grey level or two on a smooth ramp, more at a corner of it.
    assert difference.max() <= (20 if suffix in (".jpg", ".jpeg", ".webp") else 0)
    assert difference.mean() <= 2
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_alpha_in_a_format_that_cannot_hold_it_is_laid_on_white(tmp_path):
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    for suffix in (".jpg", ".bmp"):
        save_picture(clear, tmp_path / f"a{suffix}")
        assert np.asarray(load_picture(tmp_path / f"a{suffix}")).min() >= 254
    for suffix in (".png", ".tif", ".webp"):
        save_picture(clear, tmp_path / f"a{suffix}")
        assert np.asarray(load_picture(tmp_path / f"a{suffix}"))[..., 3].max() == 0


def test_jpeg_is_written_at_quality_92_without_losing_colour(tmp_path):
    save_picture(Image.new("RGB", (16, 16), RED), tmp_path / "a.jpg")
    Image.new("RGB", (16, 16), RED).save(tmp_path / "b.jpg", quality=92, subsampling=0)
    with Image.open(tmp_path / "a.jpg") as ours, Image.open(tmp_path / "b.jpg") as pillows:
        assert ours.quantization == pillows.quantization
        assert all(component[1:3] == (1, 1) for component in ours.layer)


def test_targets_that_are_refused(rainbow, tmp_path):
    for name in ("a", "a.gif", "a.eps", "a.xyz"):
        assert ".png, .jpg" in refusal(save_picture, rainbow, tmp_path / name)
    assert "no folder" in refusal(save_picture, rainbow, tmp_path / "missing" / "a.png")
    (tmp_path / "folder.png").mkdir()
    assert "not a regular file" in refusal(save_picture, rainbow, tmp_path / "folder.png")
    refusal(save_picture, rainbow, "two\nlines")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(("suffix", "longest"), [("jpg", 65500), ("webp", 16383)])
def test_a_size_that_the_format_cannot_hold(suffix, longest, tmp_path):
    check_target(tmp_path / f"a.{suffix}", size=(longest, 1))
    save_picture(Image.new("RGB", (longest, 1)), tmp_path / f"a.{suffix}")
    message = refusal(save_picture, Image.new("RGB", (1, longest + 1)), tmp_path / f"b.{suffix}")
    assert str(longest) in message
    save_picture(Image.new("RGB", (1, longest + 1)), tmp_path / "b.png")


def test_pictures_to_keep_are_not_overwritten(rainbow, tmp_path):
    source, link, hard = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    rainbow.save(source)
    link.symlink_to(source)
    os.link(source, hard)
    before = source.read_bytes()
    for target in (source, link, hard, tmp_path / "." / "a.png"):
        assert "would be overwritten" in refusal(save_picture, rainbow, target, keep=[tmp_path / "gone.png", source])
    assert source.read_bytes() == before
    save_picture(Image.new("RGB", (1, 1)), link)  # nothing to keep: the file behind the link is replaced
    assert link.is_symlink()
    assert load_picture(source).size == (1, 1)


def test_a_failed_write_leaves_the_old_file_and_no_other(rainbow, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    rainbow.save(path)
    before = path.read_bytes()

    def full_disk(self, file, *_, **__):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.Image.Image, "save", full_disk)
    assert "No space left" in refusal(save_picture, rainbow, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
