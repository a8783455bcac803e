"""Ops and policies against torchvision's, on photographs: grey levels, bins, and what is drawn how often."""

import contextlib
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from sklearn.datasets import load_sample_images

from jaxcifar.augment import policies
from jaxcifar.augment.pipeline import parse
from jaxcifar.data.vision import import_torchvision

THEIRS = {
    'identity': 'Identity',
    'shear_x': 'ShearX',
    'shear_y': 'ShearY',
    'translate_x': 'TranslateX',
    'translate_y': 'TranslateY',
    'rotate': 'Rotate',
    'brightness': 'Brightness',
    'saturation': 'Color',
    'contrast': 'Contrast',
    'sharpness': 'Sharpness',
    'posterize': 'Posterize',
    'solarize': 'Solarize',
    'autocontrast': 'AutoContrast',
    'equalize': 'Equalize',
    'invert': 'Invert',
}
BLENDS = ('saturation', 'contrast', 'sharpness')  # sums of two products, which may round either way
# Pixels by which a source is moved: where it lies half-way between two, either may be taken. Which one
# torchvision takes depends on the processor, whose matrix product decides with its last bit.
NUDGES = [(x, y) for x in (1e-4, -1e-4) for y in (1e-4, -1e-4)]


@pytest.fixture(scope='module')
def v2():
    import_torchvision()
    from torchvision.transforms import v2

    return v2


@pytest.fixture(autouse=True)
def rounds_once(monkeypatch):
    """Torchvision's bins are rounded once, as ours: the last bit of torch's own depends on the processor."""
    original = torch.linspace

    def rounded_once(start, end, steps, **options):
        if options:  # of a grid of pixels
            return original(start, end, steps=steps, **options)
        found = policies.linspace(start, end, steps)
        np.testing.assert_allclose(found, original(start, end, steps), 2.4e-7, 1e-7)
        return torch.tensor(found, dtype=torch.float32)

    monkeypatch.setattr(torch, 'linspace', rounded_once)


def photographs(n, height, width):
    """Every eighth pixel of the two photographs that come with scikit-learn."""
    small = [picture[::8, ::8] for picture in load_sample_images().images]
    rng = np.random.default_rng(0)
    corners = [(rng.integers(54 - height), rng.integers(80 - width)) for _ in range(n)]
    return np.stack([small[i % 2][y : y + height, x : x + width] for i, (y, x) in enumerate(corners)])


def tensors(images):
    return torch.tensor(np.moveaxis(images, -1, -3).copy())


def arrays(images):
    return np.moveaxis(images.numpy(), -3, -1)


@contextlib.contextmanager
def nudged(x, y):
    """In the block, torchvision's affine changes take their pixels from so much further right and down."""
    from torchvision.transforms.v2.functional import _geometry

    original = _geometry._affine_grid

    def moved(theta, w, h, ow, oh):
        return original(theta, w, h, ow, oh) + torch.tensor([2 * x / w, 2 * y / h])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_geometry, '_affine_grid', moved)
        yield


def their_change(policy, images, op, magnitude):
    """What torchvision's policy class makes of images."""
    nearest = import_torchvision().transforms.InterpolationMode.NEAREST
    change = policy._apply_image_or_video_transform
    return arrays(change(tensors(images), THEIRS[op], magnitude, interpolation=nearest, fill={}))


def their_choices(policy, choices, op, magnitude):
    """All that images may become, [4,…] for [4,…]: pixels differ where a source is half-way between two."""
    if op not in policies.GEOMETRIC:
        return their_change(policy, choices, op, magnitude)
    changed = []
    for images, nudge in zip(choices, NUDGES):
        with nudged(*nudge):
            changed.append(their_change(policy, images, op, magnitude))
    return np.stack(changed)


def levels_away(images, choices):
    """[...,H,W]: grey levels between a pixel and the nearest of its choices, [4,...,H,W,C]."""
    return np.min([np.abs(images.astype(int) - choice).max(-1) for choice in choices], 0)


def their_bins(policy, op, size):
    """(magnitudes, whether there is a sign)"""
    bins, signed = policy._AUGMENTATION_SPACE[THEIRS[op]]
    found = bins(10 if op == 'invert' else 31, *size)
    return [0.0] if found is None else [float(m) for m in found], signed


@pytest.mark.parametrize('ranges', [policies.USUAL, policies.WIDE])
def test_every_op_at_every_magnitude_is_torchvisions(v2, ranges):
    """Of pictures that are not square."""
    size = 24, 32
    images = photographs(2, *size)
    unchanged = np.stack([images] * len(NUDGES))
    policy = v2.RandAugment() if ranges is policies.USUAL else v2.TrivialAugmentWide()
    rows, expected, names = [], [], []
    for op in policies.OPS:
        bins, signed = their_bins(policy, op, size)
        ours = policies.magnitudes(op, ranges, 31, size)
        if len(bins) > 1:
            scale = 255 if op == 'solarize' else 1
            np.testing.assert_array_equal(ours, scale * np.array(bins))
        for our_bin, their_bin in zip(ours, bins):
            for sign in (1, -1) if signed else (1,):
                rows.append(policies.change(op, sign * our_bin, size))
                expected.append(their_choices(policy, unchanged, op, sign * their_bin))
                names.append(op)
    table = jax.tree.map(lambda x: np.repeat(x, len(images), 0), policies.stack(rows))
    inputs = np.tile(images, (len(rows), 1, 1, 1))
    found = np.asarray(jax.jit(policies.apply, static_argnums=2)(inputs, table, tuple(policies.COLOURS)))
    choices = np.swapaxes(expected, 0, 1)
    assert (choices.min(0) != choices.max(0)).any(-1).mean() < 0.01  # few pixels have more than one
    away = levels_away(found.reshape(choices.shape[1:]), choices).max((1, 2, 3))
    worst = {name: max(a for a, n in zip(away, names) if n == name) for name in policies.OPS}
    assert {name for name, levels in worst.items() if levels} <= set(BLENDS)
    assert max(worst.values()) <= 1


def test_invert_and_hue_are_torchvisions(v2):
    images = photographs(4, 24, 24)
    np.testing.assert_array_equal(policies.colour.invert(images), 255 - images)
    shifts = np.linspace(-0.5, 0.5, 21, dtype=np.float32)
    expected = [arrays(v2.functional.adjust_hue(tensors(images), float(s))) for s in shifts]
    inputs = np.tile(images, (len(shifts), 1, 1, 1))
    found = jax.jit(policies.colour.hue)(inputs, np.repeat(shifts, len(images)))
    away = np.abs(np.asarray(found).reshape(np.shape(expected)).astype(int) - np.array(expected))
    assert away.max() <= 1 and (away > 0).mean() < 0.001


def test_extreme_pictures_are_torchvisions(v2):
    """One colour, one bright pixel, two colours: what divides by a range or a count."""
    images = np.full((3, 24, 24, 3), 77, np.uint8)
    images[1, 3, 4, 1], images[2, :, 12:] = 255, 200
    ops = 'autocontrast', 'equalize', 'contrast', 'saturation', 'sharpness'
    found = jax.jit(lambda x: [policies.COLOURS[op](x, jnp.full(3, 0.5)) for op in ops])(images)
    for op, changed in zip(ops, found):
        expected = their_change(v2.AutoAugment(), images, op, 0.5)
        assert np.abs(np.asarray(changed).astype(int) - expected).max() <= (op in BLENDS), op


def candidates(policy, image):
    """{what torchvision's policy can make of an image, [4,H,W,C] as bytes: its probability}"""
    chances: dict[bytes, float] = {}
    size = image.shape[:2]
    unchanged = np.stack([image] * len(NUDGES))

    def signs(op, magnitude, signed, chance):
        for sign in (1, -1) if signed else (1,):
            yield op, sign * magnitude, chance / (2 if signed else 1)

    def add(changed, chance):
        chances[changed.tobytes()] = chances.get(changed.tobytes(), 0) + chance

    if hasattr(policy, '_policies'):
        ours = {theirs: op for op, theirs in THEIRS.items()}
        for pair in policy._policies:
            options = []
            for name, probability, position in pair:
                bins, signed = policy._AUGMENTATION_SPACE[name]
                magnitude = 0.0 if position is None else float(bins(10, *size)[position])
                options.append([(None, 0.0, 1 - probability)])
                options[-1] += list(signs(ours[name], magnitude, signed, probability))
            for op, magnitude, chance in options[0]:
                first = unchanged if op is None else their_choices(policy, unchanged, op, magnitude)
                for op_2, magnitude_2, chance_2 in options[1]:
                    second = first if op_2 is None else their_choices(policy, first, op_2, magnitude_2)
                    add(second, chance * chance_2 / len(policy._policies))
        return chances
    for op in policies.OPS:
        bins, signed = their_bins(policy, op, size)
        if hasattr(policy, 'magnitude') and len(bins) > 1:
            bins = [bins[policy.magnitude]]
        for magnitude in bins:
            for choice in signs(op, magnitude, signed, 1 / len(policies.OPS) / len(bins)):
                add(their_choices(policy, unchanged, *choice[:2]), choice[2])
    return chances


@pytest.mark.parametrize('text', ['randaugment(1,9)', 'trivial_augment', 'auto_augment'])
def test_policies_draw_as_torchvisions(v2, text):
    """Each output is one of theirs, and as often as theirs."""
    policy = {
        'r': lambda: v2.RandAugment(1, 9),
        't': v2.TrivialAugmentWide,
        'a': lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    }[text[0]]()
    image = photographs(1, 24, 24)[0]
    chances = candidates(policy, image)
    assert abs(sum(chances.values()) - 1) < 1e-9
    ((_, augment),) = parse(text).steps
    outputs = np.asarray(jax.jit(augment)(jax.random.key(0), np.tile(image, (5000, 1, 1, 1))))
    counted = Counter(output.tobytes() for output in outputs)
    kinds, counts = np.stack([np.frombuffer(k, np.uint8) for k in counted]), list(counted.values())
    theirs = np.stack([np.frombuffer(c, np.uint8).reshape(len(NUDGES), -1) for c in chances], 1)
    centre = theirs.mean((0, 1))
    a, *b = (x.astype(np.float32) - centre.astype(np.float32) for x in (kinds, *theirs))
    nearest = np.min([(x**2).sum(1) - 2 * a @ x.T for x in b], 0).argmin(1)
    shape = len(kinds), *image.shape
    away = levels_away(kinds.reshape(shape), theirs[:, nearest].reshape(len(NUDGES), *shape))
    assert away.max() <= 2  # a blend after a blend
    found = np.bincount(nearest, counts, len(chances))
    expected = 5000 * np.array(list(chances.values()))
    assert found[expected == 0].sum() == 0
    often = expected >= 5
    rest = [[x[~often].sum()] if x[~often].sum() else [] for x in (found, expected)]
    assert chisquare(*(np.append(x[often], r) for x, r in zip((found, expected), rest))).pvalue > 0.001


def test_color_jitter_draws_as_torchvisions(v2):
    """Their order is seen where values are cut off."""
    image = photographs(1, 24, 24)[0]
    theirs = v2.ColorJitter(0.8, 0.8, 0.8, 0.4)
    torch.manual_seed(0)
    expected = np.stack([arrays(theirs(tensors(image))) for _ in range(500)]).astype(float)
    ((_, augment),) = parse('color_jitter(.8,.8,.8,.4)').steps
    found = np.asarray(jax.jit(augment)(jax.random.key(0), np.tile(image, (500, 1, 1, 1)))).astype(float)
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)), lambda x: x[:, 5, 5, 0]):
        assert ks_2samp(statistic(found), statistic(expected)).pvalue > 0.001
