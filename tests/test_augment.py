"""Augmentations against torchvision, their randomness, and how their names are read."""

import jax
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from jaxcifar.augment.pipeline import PRESETS, Augmentation, normalise, parse
from jaxcifar.data.vision import import_torchvision
from jaxcifar.machine.errors import UserError

KEY = jax.random.key(0)


def augment(text, key, images, epoch=0, shape=None):
    """The augmented images, uint8 again; without mixing and other floats they are so to the bit."""
    shape = shape or images.shape[:-3]
    batch = {
        'image': images,
        'label': np.zeros(shape, int),
        'index': np.arange(np.prod(shape)).reshape(shape),
    }
    run = jax.jit(Augmentation(text, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    normal, _ = run(key, batch, np.int32(epoch))
    return np.rint(255 * np.asarray(normal)).astype(np.uint8)


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
    outputs = augment(f'crop(4, mode="{mode}")', KEY, images)
    found = which_crop(images, outputs, 4, torchvisions)
    assert (found.sum(0) == 1).all()
    assert chisquare(found.sum(1)).pvalue > 0.001  # all 81 shifts, equally often


def test_flip_probability():
    images = pictures(4000, size=4)
    outputs = augment('flip(0.3)', KEY, images)
    same = (outputs == images).all((1, 2, 3))
    mirrored = (outputs == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.mean() - 0.3) < 0.03  # four standard deviations


def test_joined_draws_are_independent():
    images = pictures(1000)
    outputs = augment('crop(1)+flip', KEY, images)
    straight = which_crop(images, outputs, 1, 'constant')
    mirrored = which_crop(images, outputs[:, :, ::-1], 1, 'constant')
    assert ((straight + mirrored).sum(0) == 1).all()
    assert chisquare(np.stack([straight.sum(1), mirrored.sum(1)]), axis=None).pvalue > 0.001


def test_alternating_flip_is_the_images_and_the_epochs():
    images = pictures(400, size=4)
    epochs = [augment('alternating_flip', key, images, e) for e, key in enumerate(jax.random.split(KEY, 3))]
    flipped = [(e != images).any((1, 2, 3)) for e in epochs]
    assert 150 < flipped[0].sum() < 250  # five standard deviations
    assert (flipped[1] == ~flipped[0]).all() and (flipped[2] == flipped[0]).all()
    np.testing.assert_array_equal(epochs[1][flipped[1]], images[flipped[1]][:, :, ::-1])


def test_draws_are_the_keys():
    images = pictures(64)
    first = augment('crop(4)+flip', KEY, images)
    np.testing.assert_array_equal(first, augment('crop(4)+flip', KEY, images))
    different = (first != augment('crop(4)+flip', jax.random.key(1), images)).any((1, 2, 3))
    assert different.mean() > 0.9


def test_members_with_their_own_batches():
    """Each as if it were alone, but for a blend's rounding; λ and the partners are its own too."""
    images, keys = pictures(3 * 16).reshape(3, 16, 16, 16, 3), jax.random.split(KEY, 3)
    labels, index = np.arange(48).reshape(3, 16), np.arange(48).reshape(3, 16)
    run = jax.jit(Augmentation('alternating_flip+randaugment(1,9)+cutmix(1.0)', (0.5,) * 3, (0.25,) * 3))
    batch = {'image': images, 'label': labels, 'index': index}
    together = run(keys, batch, np.int32(1))
    assert len(np.unique(together[1].weight)) == 3
    for k in range(3):
        alone = run(keys[k], jax.tree.map(lambda x, k=k: x[k], batch), np.int32(1))
        assert_same_but_for_blends(together[0][k], alone[0])
        jax.tree.map(lambda t, a, k=k: np.testing.assert_allclose(t[k], a, atol=1e-6), together[1], alone[1])


def assert_same_but_for_blends(ours, theirs):
    """A blend's last bit may cut off to the next grey level, in programs that are not the same."""
    away = np.abs(np.asarray(ours) - np.asarray(theirs))
    assert away.max() <= 1.01 / 255 / 0.25 and (away > 1e-6).mean() < 0.001


def test_four_devices_draw_and_mix_as_one():
    """Mixing takes images from other devices."""
    images = pictures(16)
    batch = {'image': images, 'label': np.arange(16), 'index': np.arange(16)}
    augmentation = Augmentation('crop(2)+flip+randaugment(1,9)+erasing+cutmix(1.0)', (0.5,) * 3, (0.25,) * 3)
    mesh = jax.make_mesh((4,), ('data',), (jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    one = jax.jit(augmentation)(KEY, batch, np.int32(0))
    four = jax.jit(augmentation)(KEY, jax.device_put(batch, sharding), np.int32(0))
    jax.tree.map(np.testing.assert_array_equal, one[1], four[1])
    assert_same_but_for_blends(one[0], four[0])


@pytest.mark.parametrize('text, same', [('', 'none'), ('crop(2)', 'crop(padding=2, mode="zeros")')])
def test_other_spellings(text, same):
    images = pictures(16)
    np.testing.assert_array_equal(augment(text, KEY, images), augment(same, KEY, images))
    np.testing.assert_array_equal(augment('none', KEY, images), images)


def test_presets_are_recipes_and_can_be_continued():
    for name, recipe in PRESETS.items():
        assert len(parse(name).steps + parse(name).mixes) == recipe.count('+') + 1
    images = pictures(16)
    joined = augment('basic+cutout(4)', KEY, images)
    np.testing.assert_array_equal(joined, augment('crop(4)+flip+cutout(4)', KEY, images))


@pytest.mark.parametrize(
    'text, complaint',
    [
        ('crap(4)+flip', "did you mean 'crop'"),
        ('crop(4, mode="reflct")', "did you mean 'reflect'"),
        ('crop', "missing 1 required positional argument: 'padding'"),
        ('crop("4")', "padding must be a whole number of pixels from 0 up, got '4'"),
        ('crop(-1)', 'from 0 up, got -1'),
        ('crop(1.5)', 'from 0 up, got 1.5'),
        ('crop(4, size=3)', "unexpected keyword argument 'size'"),
        ('crop(4, **{"mode": "reflect"})', 'unexpected keyword argument'),
        ('flip(2)', 'probability must be from 0 to 1, got 2'),
        ('flip("often")', 'wrong parameters of'),
        ('basic+crop_(1)', "did you mean 'crop'?"),
        ('cutmix+flip', 'got flip after cutmix'),
        ('erasing+crop(4)', 'crop after erasing'),
        ('basic(2)', 'expected the preset basic without parameters, got basic(2); it is crop(4)+flip'),
        ('randaugment(2,31)', 'm from 0 to 30, got 2 and 31'),
        ('trivial_augment(1)', 'bins must be a whole number from 2 up, got 1'),
        ('color_jitter(hue=.6)', 'hue must be from 0 to .5, got 0.6'),
        ('erasing(2)', 'probability must be from 0 to 1, got 2'),
        ('erasing(scale=(.3,.1))', 'scale must be two growing shares of the area, got (0.3, 0.1)'),
        ('erasing(value=(1,2))', 'value must be one number or three, got (1, 2)'),
        ('cutout(0)', 'size must be a whole number of pixels from 1 up, got 0'),
        ('mixup(0)', 'alpha must be above 0 and finite, got 0'),
        ('mixup(per="img")', "did you mean 'image'"),
        ('cutmix(1.0,.7)+mixup(1.0,.5)', 'of at most 1 together, got 0.7 + 0.5'),
        ('cutmix(1.0,.5)+mixup(1.0,.5,"image")', 'expected the same per for cutmix and mixup'),
        ('crop(four)', 'expected numbers or quoted words, got four'),
        ('erasing(scale=(.1,))', 'wrong parameters of'),
        ('flip\0', 'must be written like crop(4)+flip'),
        ('(' * 300 + ')' * 300, 'must be written like crop(4)+flip'),
        ('crop(4', 'must be written like crop(4)+flip'),
        ('crop(4)-flip', 'must be written like crop(4)+flip'),
        ('(lambda: 1)()', 'must be written like crop(4)+flip'),
        ('__import__("os")', "unknown augmentation '__import__'"),
        ('__import__("os").getcwd()', 'must be written like crop(4)+flip'),
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
