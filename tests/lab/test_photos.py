"""The sample photos: there without a network, cut and not squeezed, and the same for whoever asks next."""

import numpy as np
import pytest
import torch

from styleforge_lib.lab.photos import NAMES, photo, photo_tensor


@pytest.mark.parametrize("name", NAMES)
def test_all_are_there(name):
    picture = photo(name)
    assert picture.mode == "RGB"
    assert min(picture.size) >= 300


def test_a_changed_photo_does_not_change_the_next():
    first = photo("chelsea")
    first.thumbnail((10, 10))
    first.putpixel((0, 0), (255, 0, 0))
    assert photo("chelsea").size == (451, 300)


def test_no_such_photo():
    with pytest.raises(ValueError, match="no sample photo 'lena'; there are astronaut, chelsea, coffee, rocket"):
        photo("lena")


@pytest.mark.parametrize(("height", "width"), [(512, 512), (256, 256), (37, 50), (1, 4000), (300, 1), (1, 1)])
def test_tensors(height, width):
    x = photo_tensor("astronaut", height, width)
    assert (tuple(x.shape), x.dtype) == ((1, 3, height, width), torch.float32)
    assert x.is_contiguous()
    assert x.min() >= 0
    assert 1 < x.max() <= 255


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_no_pixels_are_refused(height, width):
    with pytest.raises(ValueError, match="both must be at least 1"):
        photo_tensor("astronaut", height, width)


def test_at_its_own_size_nothing_is_resampled():
    expected = torch.from_numpy(np.array(photo("astronaut"))).permute(2, 0, 1)[None].float()
    assert torch.equal(photo_tensor("astronaut", 512, 512), expected)


def test_the_photo_is_cut_in_the_middle_and_not_squeezed():
    """Half as wide: the middle half of every row, pixel for pixel."""
    assert torch.equal(photo_tensor("astronaut", 512, 256), photo_tensor("astronaut", 512, 512)[..., 128:384])
