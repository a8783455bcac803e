"""Mixup and CutMix: shares, boxes, and that labels go with the pixels; erasing and Cutout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import beta, chisquare, ks_2samp, kstest

from jaxcifar.augment.mixing import Targets, mix_batch
from jaxcifar.augment.pipeline import Augmentation, parse
from jaxcifar.data.vision import import_torchvision
from jaxcifar.engine.losses import cross_entropy

LABELS = np.arange(8)


def mixed(text, draws=1, size=8):
    """(images [draws,8,size,size,1], Targets) of batches of eight images, each all of its label."""
    images = np.broadcast_to(LABELS[:, None, None, None], (8, size, size, 1)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), draws)
    run = jax.jit(
        jax.vmap(lambda key: mix_batch(parse(text).mixes, key, jnp.asarray(images), jnp.asarray(LABELS)))
    )
    return jax.device_get(run(keys))


@pytest.mark.parametrize(('name', 'per'), [('mixup', 'batch'), ('cutmix', 'image')])
def test_labels_go_with_the_pixels(name, per):
    images, targets = mixed(f'{name}(.5,per="{per}")', 500)
    weight, first, second = targets.weight, targets.first, targets.second
    np.testing.assert_allclose(images.mean((2, 3, 4)), weight * first + (1 - weight) * second, atol=1e-5)
    assert (np.sort(second) == LABELS).all()  # a permutation, and not always the same
    assert len(np.unique(second, axis=0)) > 400
    assert len(np.unique(weight[0])) == 1 if per == 'batch' else len(np.unique(weight[0])) > 3
    if name == 'mixup':
        assert kstest(weight[:, 0], beta(0.5, 0.5).cdf).pvalue > 0.001
    else:
        one_of_two = (images[..., 0] == first[..., None, None]) | (images[..., 0] == second[..., None, None])
        assert one_of_two.all()


def test_boxes_are_torchvisions():
    """The share of the image that is kept, and where the box lies, in their distribution."""
    import_torchvision()
    from torchvision.transforms import v2

    torch.manual_seed(0)
    theirs = v2.CutMix(num_classes=8)
    boxes = [theirs.make_params([torch.zeros(8, 1, 16, 16)]) for _ in range(2000)]
    images, targets = mixed('cutmix(1.0)', 2000, size=16)
    assert ks_2samp(targets.weight[:, 0], [b['lam_adjusted'] for b in boxes]).pvalue > 0.001
    at = targets.second != targets.first
    i = at.argmax(1)
    taken = images[np.arange(2000), i, :, :, 0] != targets.first[np.arange(2000), i, None, None]
    rows = taken.any(2)
    tops = rows.argmax(1)[rows.any(1)]
    expected = [b['box'][1] for b in boxes if b['lam_adjusted'] < 1]
    assert ks_2samp(tops, expected).pvalue > 0.001


def test_one_draw_chooses_between_mixes():
    images, targets = mixed('cutmix(1.0,.3)+mixup(1.0,.5)', 1500)
    cut = np.array([(image == np.rint(image)).all() for image in images])
    apart = (targets.weight < 1).any(1)
    empty = 0.3 * 0.25**2  # of CutMix's boxes have less than two of eight pixels a side: λ > 1 - .25²
    counts = [(cut & apart).sum(), (~cut).sum(), (~apart).sum()]
    assert chisquare(counts, 1500 * np.array([0.3 - empty, 0.5, 0.2 + empty])).pvalue > 0.001


def test_targets_average_what_both_labels_say():
    logits = jax.random.normal(jax.random.key(0), (8, 5))
    first, second, weight = LABELS % 5, (LABELS + 1) % 5, np.linspace(0, 1, 8, dtype=np.float32)
    loss = Targets(first, second, weight).mixed(lambda y: cross_entropy(logits, y, 0.1))
    soft = weight[:, None] * np.eye(5)[first] + (1 - weight[:, None]) * np.eye(5)[second]
    soft = 0.9 * soft + 0.1 / 5
    np.testing.assert_allclose(loss, -(soft * jax.nn.log_softmax(logits)).sum(1), rtol=1e-5)
    assert Targets(first).mixed(lambda y: y) is first


def test_erased_boxes_are_torchvisions():
    """Of images that are not square; in normalised space, where 0 is the mean colour."""
    import_torchvision()
    from torchvision.transforms import v2

    torch.manual_seed(0)
    theirs = v2.RandomErasing(1.0, (0.02, 0.6), (0.3, 3.3))
    drawn = [theirs.make_params([torch.zeros(3, 16, 24)]) for _ in range(3000)]
    ((_, erase),) = parse('erasing(.8, (.02, .6), value=2.0)').steps
    images = np.ones((3000, 16, 24, 3), np.float32)
    erased = np.asarray(jax.jit(erase)(jax.random.key(0), images)) == 2
    happened = erased.any((1, 2, 3))
    none = np.mean([d['v'] is None for d in drawn])
    assert abs(happened.mean() - 0.8 * (1 - none)) < 0.03
    boxes = erased[happened, :, :, 0]
    found = {'h': boxes.any(2).sum(1), 'w': boxes.any(1).sum(1)}
    found |= {'i': boxes.any(2).argmax(1), 'j': boxes.any(1).argmax(1)}
    assert (boxes.sum((1, 2)) == found['h'] * found['w']).all()
    for name, values in found.items():
        assert ks_2samp(values, [d[name] for d in drawn if d['v'] is not None]).pvalue > 0.001, name


def test_cutout_is_a_square_around_any_pixel():
    run = Augmentation('cutout(4)', (0.5,) * 3, (0.25,) * 3)
    batch = {'image': np.full((2000, 8, 8, 3), 255, np.uint8), 'label': np.zeros(2000, int)}
    images, _ = jax.jit(run)(jax.random.key(0), {**batch, 'index': batch['label']}, np.int32(0))
    holes = np.asarray(images[..., 0]) == 0
    rows, columns = holes.any(2).sum(1), holes.any(1).sum(1)
    assert (holes.sum((1, 2)) == rows * columns).all()
    # Around the eight rows: 2, 3, 4, 4, 4, 4, 4 and 3 of them.
    assert chisquare([(rows == s).sum() for s in (2, 3, 4)], [250, 500, 1250]).pvalue > 0.001
