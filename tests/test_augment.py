"""Augmentations against torchvision, their randomness, and how their names are read."""

import jax
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from jaxcifar.data.augment import augment_batch, normalise, parse
from jaxcifar.data.vision import import_torchvision
from jaxcifar.errors import UserError

KEY = jax.random.key(0)


def pictures(n, size=16):
    """Smooth gradients with some noise: no two crops of one are alike, nor is it its mirror image."""
    rng = np.random.default_rng(0)
    slopes = rng.uniform(-6, 6, (2, n, 1, 1, 3))
    y, x = np.arange(size)[:, None, None], np.arange(size)[None, :, None]
    smooth = 128 + slopes[0] * (y - size / 2) + slopes[1] * (x - size / 2)
    return (smooth + rng.uniform(-20, 20, (n, size, size, 3))).clip(0, 255).astype(np.uint8)


def which_crop(images, outputs, padding, mode):
    """bool [(2·padding+1)², n]: which of torchvision's crops of its image each output is."""
    functional = import_torchvision().transforms.functional
    images, outputs = (torch.tensor(np.moveaxis(x, -1, 1).copy()) for x in (images, outputs))
    padded = functional.pad(images, [padding], padding_mode=mode)
    size, shifts = images.shape[-1], range(2 * padding + 1)
    crops = (functional.crop(padded, top, left, size, size) for top in shifts for left in shifts)
    return np.array([(crop == outputs).flatten(1).all(1).numpy() for crop in crops])


@pytest.mark.parametrize('mode, torchvisions', [('zeros', 'constant'), ('reflect', 'reflect')])
def test_crop_is_torchvisions(mode, torchvisions):
    images = pictures(81 * 25)
    outputs = parse(f'crop(4, mode="{mode}")')(KEY, images)
    assert outputs.dtype == np.uint8
    found = which_crop(images, outputs, 4, torchvisions)
    assert (found.sum(0) == 1).all()
    assert chisquare(found.sum(1)).pvalue > 0.001  # all 81 shifts, equally often


def test_flip_probability():
    images = pictures(4000, size=4)
    outputs = np.array(parse('flip(0.3)')(KEY, images))
    same = (outputs == images).all((1, 2, 3))
    mirrored = (outputs == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.3) < 0.03  # four standard deviations


def test_joined_draws_are_independent():
    images = pictures(1000)
    outputs = np.array(parse('crop(1)+flip')(KEY, images))
    straight = which_crop(images, outputs, 1, 'constant')
    mirrored = which_crop(images, outputs[:, :, ::-1], 1, 'constant')
    assert ((straight + mirrored).sum(0) == 1).all()
    assert chisquare(np.stack([straight.sum(1), mirrored.sum(1)]), axis=None).pvalue > 0.001


def test_draws_are_the_keys():
    images, augment = pictures(64), parse('crop(4)+flip')
    first = augment(KEY, images)
    np.testing.assert_array_equal(first, augment(KEY, images))
    different = (first != augment(jax.random.key(1), images)).any((1, 2, 3))
    assert different.mean() > 0.9


def test_members_with_their_own_batches():
    images, augment = pictures(3 * 16).reshape(3, 16, 16, 16, 3), parse('crop(4)+flip')
    keys = jax.random.split(KEY, 3)
    together = augment_batch(augment, keys, images)
    for k in range(3):
        np.testing.assert_array_equal(together[k], augment_batch(augment, keys[k], images[k]))


@pytest.mark.parametrize('text, same', [('', 'none'), ('crop(2)', 'crop(padding=2, mode="zeros")')])
def test_other_spellings(text, same):
    images = pictures(16)
    np.testing.assert_array_equal(parse(text)(KEY, images), parse(same)(KEY, images))
    np.testing.assert_array_equal(parse('none')(KEY, images), images)


@pytest.mark.parametrize(
    'text, complaint',
    [
        ('crap(4)+flip', "did you mean 'crop'"),
        ('crop(4, mode="reflct")', "did you mean 'reflect'"),
        ('crop', "missing 1 required positional argument: 'padding'"),
        ('crop("4")', "padding='4' is not a number of pixels"),
        ('crop(-1)', 'padding=-1'),
        ('crop(1.5)', 'padding=1.5'),
        ('crop(4, size=3)', "unexpected keyword argument 'size'"),
        ('crop(4, **{"mode": "reflect"})', 'unexpected keyword argument'),
        ('flip(2)', 'probability=2'),
        ('flip("often")', 'wrong parameters of'),
        ('crop(4', 'write it like crop(4)+flip'),
        ('crop(4)-flip', 'write it like crop(4)+flip'),
        ('(lambda: 1)()', 'write it like crop(4)+flip'),
        ('__import__("os")', "unknown augmentation '__import__'"),
        ('__import__("os").getcwd()', 'write it like crop(4)+flip'),
    ],
)
def test_mistakes_are_named(text, complaint):
    with pytest.raises(UserError) as caught:
        parse(text)
    assert complaint in str(caught.value) and '\n' not in str(caught.value)


def test_no_code_is_run(tmp_path):
    victim = str(tmp_path / 'written')
    for text in (
        f'crop(open({victim!r}, "w"))',
        f'crop(mode=open({victim!r}, "w"))',
        f'open({victim!r}, "w")',
    ):
        with pytest.raises(UserError):
            parse(text)
    assert not (tmp_path / 'written').exists()


def test_normalise():
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    normal = jax.jit(normalise)(images, mean, std)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, (images / 255 - np.array(mean)) / np.array(std), atol=1e-6)
