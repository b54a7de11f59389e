"""Stylize: every form of picture, every size, every way to name a style, and memory that does not suffice."""

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import nn

import styleforge_lib
from styleforge_lib import painter
from styleforge_lib.models.checkpoints import StyleError, list_styles
from styleforge_lib.models.transformer_net import TransformerNet
from styleforge_lib.painter import paint_device, painted_size, stylize
from styleforge_lib.pictures import PictureError


class Echo(nn.Module):
    """Paints the picture itself, and remembers what it was given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        assert x.shape[2] % 4 == 0
        assert x.shape[3] % 4 == 0
        assert min(x.shape[2:]) >= 8
        self.seen = x
        return x


@pytest.fixture(scope="module")
def net() -> TransformerNet:
    """Make an untrained network whose colours span the range."""
    torch.manual_seed(0)
    net = TransformerNet().eval()
    with torch.no_grad():
        net.deconv3.conv2d.weight *= 60
        net.deconv3.conv2d.bias += 128
    return net


@pytest.fixture
def photo() -> np.ndarray:
    """Make a picture without symmetry, (13, 22, 3) of uint8."""
    return np.random.default_rng(3).integers(0, 256, (13, 22, 3), dtype=np.uint8)


def expected_painting(net: TransformerNet, photo: np.ndarray) -> np.ndarray:
    """Return what the network alone paints, the edge repeated to a multiple of 4."""
    height, width = photo.shape[:2]
    rows = np.minimum(np.arange(max(8, -(-height // 4) * 4)), height - 1)
    columns = np.minimum(np.arange(max(8, -(-width // 4) * 4)), width - 1)
    x = torch.from_numpy(photo[rows][:, columns].transpose(2, 0, 1).copy())[None].float()
    with torch.inference_mode():
        y = net(x)[0, :, :height, :width].clamp(0, 255).round()
    return y.numpy().transpose(1, 2, 0).astype(np.uint8)


# ---- what is painted ----


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 4), (8, 8), (12, 16), (13, 22), (3, 1001)])
def test_any_size_is_painted_by_the_network_and_kept(size, net):
    photo = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    painting = stylize(photo, net)
    assert painting.mode == "RGB"
    assert painting.size == size[::-1]
    expected = expected_painting(net, photo)
    assert np.array_equal(painting, expected)
    if min(size) > 8:
        assert expected.std() > 10  # or the comparison would say little


def test_wider_than_thirty_thousand_pixels(net):
    assert stylize(np.zeros((1, 30_003), np.uint8), net).size == (30_003, 1)


@pytest.mark.parametrize("height", range(1, 14))
@pytest.mark.parametrize("width", [1, 7, 8, 10])
def test_padding_repeats_the_edge_and_is_cropped(height, width):
    photo = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    echo = Echo()
    assert np.array_equal(stylize(photo, echo), photo)
    padded = echo.seen[0].permute(1, 2, 0).numpy()
    assert np.array_equal(padded[-1, :width], photo[-1] if padded.shape[0] > height else padded[height - 1, :width])
    assert np.array_equal(padded[:height, -1], photo[:, -1] if padded.shape[1] > width else padded[:height, width - 1])


def test_every_form_of_picture_is_the_same_painting(photo, net, tmp_path):
    Image.fromarray(photo).save(tmp_path / "photo.png")
    tensor = torch.from_numpy(photo.transpose(2, 0, 1).copy())
    expected = np.asarray(stylize(photo, net))
    for form in (
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        Image.fromarray(photo),
        photo / 255,
        photo.astype(np.uint16) * 257,
        tensor,
        tensor.float(),
        tensor[None].double().requires_grad_(),
        tensor.float().to(memory_format=torch.contiguous_format).transpose(1, 2).contiguous().transpose(1, 2),
    ):
        assert np.array_equal(stylize(form, net), expected), type(form)


def test_grey_and_transparency(photo):
    assert np.array_equal(stylize(photo[:, :, 0], Echo()), np.repeat(photo[:, :, :1], 3, 2))
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:5] = 0
    painting = stylize(np.dstack([photo, alpha]), Echo())
    assert painting.mode == "RGBA"
    assert np.array_equal(np.asarray(painting)[..., 3], alpha)
    assert np.array_equal(np.asarray(painting)[5:, :, :3], photo[5:])
    assert (np.asarray(painting)[:5, :, :3] == 255).all()  # painted on white
    assert stylize(np.dstack([photo, alpha]), Echo(), size=44).getchannel("A").size == (44, 26)


def test_the_picture_given_stays_as_it_was(photo, net):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(photo)
    image.info["exif"] = exif.tobytes()
    before, copy = dict(image.info), photo.copy()
    assert stylize(image, net).size == (13, 22)  # turned upright
    assert image.info == before
    assert np.array_equal(image, copy)


def test_values_are_rounded_and_cut_to_the_range():
    class Values(nn.Module):
        def forward(self, x):
            return x * 0 + torch.tensor([-7.0, 100.6, 300.0])[:, None, None]

    assert stylize(np.zeros((9, 9), np.uint8), Values()).getpixel((4, 4)) == (0, 101, 255)


# ---- size ----


def test_size_is_the_long_side():
    assert painted_size((400, 300), None) == (400, 300)
    assert painted_size((400, 300), 200) == (200, 150)
    assert painted_size((300, 400), 800) == (600, 800)
    assert painted_size((1000, 1), 10) == (10, 1)
    assert painted_size((7, 7), np.int64(3)) == (3, 3)
    photo = np.zeros((30, 40), np.uint8)
    photo[:, 20:] = 255
    painting = stylize(photo, Echo(), size=20)
    assert painting.size == (20, 15)
    assert painting.getpixel((2, 7)) == (0, 0, 0)
    assert painting.getpixel((17, 7)) == (255, 255, 255)


@pytest.mark.parametrize("size", [0, -5, 2.5, "512", True, float("nan")])
def test_size_that_is_no_number_of_pixels(size, photo):
    with pytest.raises(ValueError, match="size must be the long side in pixels"):
        stylize(photo, Echo(), size=size)


# ---- pictures that are refused ----


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, 3, 8, 8), "(2, 3, 8, 8)"),
        (torch.zeros(8, 8), "(8, 8)"),
        (torch.zeros(8, 8, 3), "(8, 8, 3)"),
        (torch.zeros(3, 0, 8), "(3, 0, 8)"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "int32"),
        (torch.full((3, 8, 8), 0.5), "times 255"),
        (torch.full((3, 8, 8), -2.0), "-2"),
        (torch.full((3, 8, 8), 256.0), "256"),
        (torch.full((3, 8, 8), float("nan")), "nan"),
    ],
)
def test_tensors_that_are_no_picture(tensor, words):
    with pytest.raises(PictureError) as caught:
        stylize(tensor, Echo())
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_things_that_are_no_picture(tmp_path):
    for thing in (None, 3, b"bytes", [[1, 2]]):
        with pytest.raises(TypeError, match="image must be"):
            stylize(thing, Echo())
    with pytest.raises(PictureError, match="does not exist"):
        stylize(tmp_path / "missing.png", Echo())


# ---- styles and devices ----


def test_style_by_path_or_network(photo, net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "style.pth")
    assert np.array_equal(stylize(photo, tmp_path / "style.pth", device="cpu"), stylize(photo, net))
    with pytest.raises(StyleError, match="no style 'no_such_style'"):
        stylize(photo, "no_such_style")
    with pytest.raises(TypeError, match="name_or_path"):
        stylize(photo, 5)


@pytest.mark.parametrize("name", list_styles())
def test_shipped_style_paints_the_photo(name):
    photo = skimage.data.chelsea()
    painting = np.asarray(stylize(photo, name, size=160), float)
    original = np.asarray(stylize(photo, Echo(), size=160), float)
    grey = painting.mean(2)
    assert grey.std() > 20  # a network that was not trained paints an even grey
    assert np.corrcoef(grey.ravel(), original.mean(2).ravel())[0, 1] > 0.4  # and the cat is still there
    assert np.abs(painting - original).mean() > 10  # in another hand


def test_a_float16_network_paints_the_same_within_its_precision(photo, net):
    half = TransformerNet().eval()
    half.load_state_dict(net.state_dict())
    painting = stylize(photo, half.half())
    difference = np.abs(np.asarray(painting, int) - np.asarray(stylize(photo, net), int))
    assert difference.mean() < 2  # of 255: eleven bits through sixteen layers


def test_the_network_given_stays_as_it_was(photo, net):
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    stylize(photo, net, device="cpu")
    assert net.training
    net.eval()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.device.type == "cpu"


def test_a_network_that_paints_nan_or_another_shape_is_refused(photo):
    class Broken(nn.Module):
        def forward(self, x):
            x = x.clone()
            x[0, 0, 1, 1] = float("nan")
            return x

    with pytest.raises(StyleError, match="NaN"):
        stylize(photo, Broken())
    with pytest.raises(StyleError, match="keep the shape"):
        stylize(photo, nn.AvgPool2d(2))


def test_a_device_that_is_not_there(photo, net):
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(ValueError, match=f"device '{device}' is not available here") as caught:
            stylize(photo, net, device=device)
        assert str(caught.value).isprintable()
    assert paint_device("cpu") == torch.device("cpu")
    assert paint_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_painting_is_the_same(photo, net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "style.pth")
    expected = np.asarray(stylize(photo, net), int)
    for painting in (stylize(photo, net, device="cuda"), stylize(photo, tmp_path / "style.pth")):
        assert np.abs(np.asarray(painting, int) - expected).mean() < 2  # TF32 has as many bits as float16
    assert next(net.parameters()).device.type == "cpu"


# ---- memory ----


def test_a_painting_that_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(painter, "_free_bytes", lambda device: 2**30)
    echo = Echo()
    with pytest.raises(PictureError, match=r"painting 5000x4000 takes about 20\.5 GiB .* such as (\d+)") as caught:
        stylize(np.zeros((40, 50), np.uint8), echo, size=5000)
    assert not hasattr(echo, "seen")
    suggestion = int(str(caught.value).split()[-1])
    assert 800 < suggestion < 1200
    painter._check_memory(*painted_size((50, 40), suggestion), torch.device("cpu"))
    monkeypatch.setattr(painter, "_free_bytes", lambda device: None)  # cannot be told: it is tried
    painter._check_memory(5000, 4000, torch.device("cpu"))


def test_free_memory_is_believable():
    free = painter._free_bytes(torch.device("cpu"))
    assert free is None or 2**26 < free < 2**45


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x\ny"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_running_out_of_memory_is_one_line(error, photo):
    class Hungry(nn.Module):
        def forward(self, x):
            raise error

    with pytest.raises(PictureError, match="smaller size="):
        stylize(photo, Hungry())


def test_other_errors_of_a_network_are_its_own(photo):
    class Faulty(nn.Module):
        def forward(self, x):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        stylize(photo, Faulty())


# ---- the package ----


def test_public_names():
    assert styleforge_lib.stylize is stylize
    assert set(styleforge_lib.__all__) <= set(dir(styleforge_lib))
    for name in styleforge_lib.__all__:
        assert getattr(styleforge_lib, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such_name"):
        styleforge_lib.no_such_name  # noqa: B018
