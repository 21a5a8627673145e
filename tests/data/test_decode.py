"""Every kind of image becomes RGB with the right values, and every damaged one a sentence."""

import contextlib
import logging
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from potstill.data import decode as module
from potstill.data.decode import EncodedImage, decode, decoding
from potstill.data.pixels import Cut
from potstill.errors import DataError


def file_of(image, form="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def gradient(height, width):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 // height, columns * 255 // width, rows * 0 + 90], axis=2).astype(np.uint8)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_kept_exactly(form):
    pixels = gradient(5, 7)
    decoded = decode(file_of(Image.fromarray(pixels), form), "x")
    np.testing.assert_array_equal(decoded, pixels)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable


def test_lossless_webp_and_a_path(tmp_path):
    pixels = gradient(6, 6)
    path = tmp_path / "a.webp"
    path.write_bytes(file_of(Image.fromarray(pixels), "WEBP", lossless=True))
    np.testing.assert_array_equal(decode(path, "x"), pixels)


def test_grey_and_two_level():
    grey = np.array([[0, 100, 255]], np.uint8)
    assert decode(file_of(Image.fromarray(grey)), "x").tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    assert decode(file_of(Image.fromarray(grey > 50)), "x").tolist() == [[[0] * 3, [255] * 3, [255] * 3]]


def test_palette():
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    assert decode(file_of(image), "x").tolist() == [[[10, 20, 30], [200, 100, 0], [7, 8, 9]]]
    assert decode(file_of(image, "GIF"), "x").tolist() == [[[10, 20, 30], [200, 100, 0], [7, 8, 9]]]


def test_a_transparent_palette_entry_shows_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    assert decode(file_of(image, transparency=1), "x").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_transparency_is_laid_on_white():
    pixels = np.array([[[40, 80, 120, 255], [40, 80, 120, 0], [0, 0, 0, 128]]], np.uint8)
    opaque, hidden, half = decode(file_of(Image.fromarray(pixels, "RGBA")), "x")[0].tolist()
    assert opaque == [40, 80, 120]
    assert hidden == [255, 255, 255]
    assert half == [127, 127, 127]


def test_grey_with_alpha():
    pixels = np.array([[[60, 255], [60, 0]]], np.uint8)
    assert decode(file_of(Image.fromarray(pixels, "LA")), "x").tolist() == [[[60] * 3, [255] * 3]]


def test_cmyk():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, 1] = [255, 0, 0, 0]  # cyan takes all red away
    pixels[0, 2] = [0, 0, 0, 255]  # black ink
    image = Image.fromarray(pixels, "CMYK")
    assert decode(file_of(image, "TIFF"), "x").tolist() == [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]
    wide = Image.fromarray(np.broadcast_to(pixels[:, 1:2], (16, 16, 4)).copy(), "CMYK")
    np.testing.assert_allclose(decode(file_of(wide, "JPEG", quality=95), "x")[8, 8], [0, 255, 255], atol=3)


DEEP = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
SHALLOW = [0, 0, 1, 1, 128, 255]  # round(v / 257)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_cut_off(form):
    decoded = decode(file_of(Image.fromarray(DEEP), form), "x")
    assert decoded[0, :, 0].tolist() == SHALLOW
    assert (decoded == decoded[..., :1]).all()


def test_sixteen_bit_grey_with_the_high_byte_first():
    decoded = decode(file_of(Image.frombytes("I;16B", (6, 1), DEEP.astype(">u2").tobytes()), "TIFF"), "x")
    assert decoded[0, :, 0].tolist() == SHALLOW


def test_sixteen_bit_colour_keeps_the_high_byte():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0x1234, 0x8000, 0xFFFF)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decode(png, "x").tolist() == [[[0x12, 0x80, 0xFF]]]


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[0.5]], np.float32), "x.tif has floating-point pixels"),
        (np.array([[70000]], np.int32), "x.tif has 32-bit pixels"),
        (np.array([[-1]], np.int32), "x.tif has 32-bit pixels"),
    ],
)
def test_values_without_an_agreed_range(pixels, message):
    with pytest.raises(DataError, match=message):
        decode(file_of(Image.fromarray(pixels), "TIFF"), "x.tif")


def as_stored(upright, number):
    """What a camera stores for an EXIF orientation: the inverse of what a viewer has to do."""
    turned = upright.transpose(1, 0, 2)
    return np.ascontiguousarray(
        {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: turned,
            6: turned[::-1],
            7: turned[::-1, ::-1],
            8: turned[:, ::-1],
        }[number]
    )


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("number", range(1, 9))
def test_exif_orientation_stands_the_image_upright(form, number):
    upright = gradient(4, 6)
    stored = as_stored(upright, number)
    exif = Image.Exif()
    exif[module.ORIENTATION] = number
    options = {"lossless": True} if form == "WEBP" else {}
    data = file_of(Image.fromarray(stored), form, exif=exif, **options)
    np.testing.assert_array_equal(decode(data, "x"), upright)


def test_damaged_exif_is_told_and_the_image_read(caplog):
    data = file_of(Image.fromarray(gradient(16, 8)), "WEBP", exif=b"no tiff header")
    with caplog.at_level(logging.WARNING):
        assert decode(data, "holiday.webp").shape == (16, 8, 3)
    assert "holiday.webp: its EXIF data are damaged" in caplog.text


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((2, 2), value, np.uint8)) for value in (30, 60)]
    assert decode(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")[0, 0].tolist() == [30] * 3


def test_a_camera_file_of_several_pictures():
    first, second = (Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (40, 90))
    decoded = decode(file_of(first, "MPO", save_all=True, append_images=[second]), "x")
    np.testing.assert_allclose(decoded, 40, atol=1)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_files_are_named(form):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), form)
    with pytest.raises(DataError, match=r"^Cannot read the image cat 7: [^.]+(\(.*\))?\.$"):
        decode(data[: len(data) // 2], "cat 7")


@pytest.mark.filterwarnings("ignore:Tag data larger", "ignore:Corrupt EXIF")
def test_damaged_bytes_never_get_out_as_another_error():
    random = np.random.default_rng(1)
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"):
        whole = np.frombuffer(file_of(Image.fromarray(gradient(24, 24)), form), np.uint8)
        for _ in range(40):
            spoilt = whole.copy()
            spoilt[random.integers(0, len(spoilt), 4)] = random.integers(0, 256, 4)
            with contextlib.suppress(DataError):
                assert decode(spoilt.tobytes(), "x").ndim == 3


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "it is empty"), (b"hello, this is text", "it is none of JPEG, PNG")]
)
def test_what_is_no_image(data, reason, tmp_path):
    with pytest.raises(DataError, match=f"Cannot read the image x: {reason}"):
        decode(data, "x")
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"Cannot read the image x: {reason}"):
        decode(path, "x")


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(DataError, match=r"Cannot read the image gone\.png: there is no such file"):
        decode(tmp_path / "gone.png", "gone.png")


def test_a_decompression_bomb_is_refused_before_it_unfolds(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 99)
    assert decode(file_of(Image.new("RGB", (9, 11))), "x").shape == (11, 9, 3)
    with pytest.raises(DataError, match="x has 10 x 10 pixels, more than the 99"):
        decode(file_of(Image.new("RGB", (10, 10))), "x")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_header_that_promises_too_many_pixels(side):
    with pytest.raises(DataError, match=f"x has {side} x {side} pixels|decompression bomb"):
        decode(b"P5 %d %d 255 " % (side, side), "x")


def test_postscript_is_not_read():
    with pytest.raises(DataError, match="it is none of JPEG"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "x.eps")


def jpeg(pixels, number=1, **options):
    """A JPEG file with an EXIF orientation."""
    exif = Image.Exif()
    exif[module.ORIENTATION] = number
    return file_of(Image.fromarray(pixels), "JPEG", quality=95, exif=exif, **options)


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize(("height", "width"), [(203, 301), (96, 160)])
def test_a_box_of_a_turned_photograph_is_the_same_at_every_scale(number, scale, height, width):
    upright = gradient(height, width)  # a full pixel off is 1.2 of 255 in the rows
    image = EncodedImage(jpeg(as_stored(upright, number), number), "x")
    assert image.full == (height, width)
    assert image.reducible
    raster = image.raster(scale)
    assert raster.pixels.size == (-(-width // scale), -(-height // scale))
    box = (11, 13, height - 15, width - 24)
    cut = Cut(box, (10, 10), (0, 0), (10, 10))
    expected = cut.pixels(EncodedImage(file_of(Image.fromarray(upright)), "x").raster()).numpy().astype(float)
    off = cut.pixels(raster).numpy() - expected
    assert np.abs(off).max() <= 2.5
    assert np.abs(off.mean(axis=(0, 1))).max() < 0.6  # a systematic shift of half a full pixel would be more


def test_a_reduced_photograph_begins_at_a_corner_of_the_file():
    """11 pixels at 1/8 are two, of 8 and of 3; turned upright, the one of 3 is the first."""
    for number, top, left in ((1, 0, 0), (2, 0, 3), (3, 5, 3), (4, 5, 0), (5, 0, 0), (6, 0, 3), (7, 5, 3), (8, 5, 0)):
        raster = EncodedImage(jpeg(as_stored(gradient(11, 13), number), number), "x").raster(8)
        assert (raster.top, raster.left) == (top, left)


def test_one_image_may_be_decoded_at_several_scales():
    image = EncodedImage(jpeg(gradient(64, 80)), "x")
    sizes = [image.raster(scale).pixels.size for scale in (1, 4, 1, 8, 2)]
    assert sizes == [(80, 64), (20, 16), (80, 64), (10, 8), (40, 32)]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_photographs_at_a_smaller_scale(mode):
    colour = Image.fromarray(gradient(64, 80)).convert(mode)
    small = EncodedImage(file_of(colour, "JPEG", quality=95), "x").raster(4).pixels
    assert small.mode == "RGB"
    assert small.size == (20, 16)
    whole = np.asarray(colour.convert("RGB"), np.float32).reshape(16, 4, 20, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(small) - whole).max() < 8
    assert np.abs(np.asarray(small) - whole).mean() < 1.5


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 2}, {"subsampling": 0, "restart_marker_rows": 1}]
)
def test_every_kind_of_jpeg_can_be_reduced(options):
    pixels = gradient(123, 77)
    small = np.asarray(EncodedImage(jpeg(pixels, **options), "x").raster(2).pixels, np.float32)
    assert small.shape == (62, 39, 3)
    assert np.abs(small[:61, :38] - pixels[:122, :76].reshape(61, 2, 38, 2, 3).mean(axis=(1, 3))).max() < 6


def test_a_camera_file_of_several_pictures_at_a_smaller_scale():
    first, second = (Image.fromarray(np.full((16, 24), value, np.uint8)) for value in (40, 90))
    image = EncodedImage(file_of(first, "MPO", save_all=True, append_images=[second]), "x")
    small = np.asarray(image.raster(8).pixels)
    assert small.shape == (2, 3, 3)
    np.testing.assert_allclose(small, 40, atol=1)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_other_formats_have_one_scale(form):
    image = EncodedImage(file_of(Image.fromarray(gradient(64, 64)), form), "cat 7")
    assert not image.reducible
    with pytest.raises(DataError, match=r"^cat 7 cannot be decoded at 1/2 of its size; a JPEG can"):
        image.raster(2)
    with pytest.raises(DataError, match="1/3"):
        EncodedImage(jpeg(gradient(64, 64)), "x").raster(3)


def test_a_photograph_smaller_than_the_scale_is_refused():
    with pytest.raises(DataError, match="decodes x at another scale than 1/8"):
        EncodedImage(jpeg(gradient(5, 5)), "x").raster(8)


@pytest.mark.parametrize("scale", [1, 8])
def test_truncated_photographs_open_and_are_named_when_they_are_decoded(scale):
    noise = np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    data = file_of(Image.fromarray(noise), "JPEG")
    image = EncodedImage(data[: len(data) // 2], "cat 7")
    assert image.full == (400, 400)
    with pytest.raises(DataError, match=r"^Cannot read the image cat 7: image file is truncated"):
        image.raster(scale)


def test_only_the_header_of_a_photograph_is_read_to_know_its_size(monkeypatch):
    data = jpeg(gradient(20, 30), 6)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert EncodedImage(data, "x").full == (30, 20)


def test_a_file_too_large_to_be_one_image_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg(gradient(16, 16)))
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(DataError, match=r"^x has [0-9]+ bytes, more than the 100 that one image file may have"):
        decode(path, "x")


def test_what_the_pixels_depend_on_is_told(monkeypatch):
    assert decoding(draft=True) == f"{decoding(draft=False)}, draft"
    before = decoding(draft=False)
    assert f"pillow {Image.__version__}, libjpeg" in before
    assert "+" not in before
    monkeypatch.setattr("PIL.__version__", "99.0")
    assert decoding(draft=False).startswith("pillow 99.0, ")
    assert decoding(draft=False) != before
