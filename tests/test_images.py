"""Image files: what their pixels become, which folder becomes which part, and what is left out."""

import os

import numpy as np
import pytest
from PIL import Image

from jaxcifar.data.datasets import load_dataset
from jaxcifar.data.describe import describe
from jaxcifar.data.splits import evaluation_images, make_split
from jaxcifar.data.stream import eval_transform, read
from jaxcifar.data.vision import open_rgb, read_image
from jaxcifar.export.images import read_pictures
from jaxcifar.machine.errors import UserError

STEPS = np.arange(0, 256, 17, np.uint8)  # 16 grey levels, 0 to 255
GREY = np.repeat(STEPS[None], 16, 0)
BETWEEN = np.minimum(GREY * 257.0 + 128, 65535).astype(np.uint16)  # 128/257 of a grey level more
RED = np.stack([GREY, GREY // 2, 255 - GREY], -1)
ALPHA = np.where(np.arange(16) < 8, 0, 255).astype(np.uint8)[:, None] + np.zeros((1, 16), np.uint8)
ON_WHITE = np.where(ALPHA[..., None] == 0, 255, RED)


def grey(pixels):
    return np.repeat(pixels[..., None], 3, -1)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def rgba(pixels=RED):
    return Image.fromarray(np.concatenate([pixels, ALPHA[..., None]], -1))


def palette():
    image = Image.fromarray(GREY // 17, 'P')
    image.putpalette(np.stack([STEPS, STEPS // 2, 255 - STEPS], -1).ravel().tolist())
    return image


SHAPE_IN_ALPHA = Image.merge('LA', [Image.new('L', (16, 16)), Image.fromarray(ALPHA)])
FRAMES = {'save_all': True, 'append_images': [rgba()]}
# name: (image, ending, options of saving, the pixels it becomes, how)
KINDS = {
    'rgb': (Image.fromarray(RED), 'png', {}, RED, ''),
    'grey': (Image.fromarray(GREY), 'png', {}, grey(GREY), 'grey'),
    'grey16': (Image.fromarray(GREY.astype(np.uint16) * 257), 'png', {}, grey(GREY), '16-bit'),
    'grey16 between': (Image.fromarray(BETWEEN), 'tif', {}, grey(GREY), '16-bit'),
    'grey16 in pgm': (Image.fromarray(GREY.astype(np.uint16) * 257), 'pgm', {}, grey(GREY), '16-bit'),
    'float': (Image.fromarray(GREY.astype(np.float32) / 255), 'tiff', {}, grey(GREY), 'float'),
    '1-bit': (Image.fromarray(GREY > 100), 'png', {}, grey((GREY > 100) * np.uint8(255)), '1-bit'),
    'palette': (palette(), 'gif', {}, RED, 'palette'),
    'rgba': (rgba(), 'png', {}, ON_WHITE, 'transparent, on white'),
    'opaque': (Image.fromarray(RED).convert('RGBA'), 'webp', {'lossless': True}, RED, ''),
    'shape in alpha': (SHAPE_IN_ALPHA, 'png', {}, grey(255 - ALPHA), 'transparent, on white'),
    'transparent colour': (
        Image.fromarray(GREY), 'png', {'transparency': 34}, grey(np.where(GREY == 34, 255, GREY)),
        'transparent, on white',
    ),
    'cmyk': (Image.fromarray(RED).convert('CMYK'), 'tif', {}, RED, 'CMYK'),
    'frames': (Image.fromarray(RED), 'png', FRAMES, RED, 'first frame'),
    'turned': (Image.fromarray(RED), 'png', {'exif': turned()}, RED, 'EXIF orientation not applied'),
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_pixel_becomes_the_same_rgb_for_all_who_read_it(kind, tmp_path):
    image, ending, options, wanted, how = KINDS[kind]
    path = tmp_path / f'image.{ending}'
    image.save(path, **options)
    pixels, said = open_rgb(path)
    np.testing.assert_array_equal(np.asarray(pixels), wanted)
    assert said == how
    np.testing.assert_array_equal(read_image(path, 16), wanted)  # folders
    with Image.open(path) as opened:  # predictions
        names, seen = read_pictures([path, opened], 'cifar10', 16)
    np.testing.assert_array_equal(seen, [wanted, wanted])
    assert names == [str(path), 'image 1']
    lossless = read(path, lambda image: image)  # streams
    np.testing.assert_array_equal(np.asarray(lossless), wanted)
    assert read(path, eval_transform(16)).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ('image', 'complaint'),
    [
        (Image.fromarray(GREY.astype(np.float32)), 'expected float pixels from 0 to 1, got 0 to 255'),
        (Image.fromarray(np.full((4, 4), np.nan, np.float32)), 'expected float pixels from 0 to 1, got nan'),
        (Image.fromarray(GREY.astype(np.int32) * 257), 'expected pixels of 8 or 16 bits, got 32-bit'),
    ],
)
def test_pixels_of_unknown_scale_are_refused(image, complaint, tmp_path):
    image.save(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match=complaint):
        read_image(tmp_path / 'x.tif', 8)


def tree(folder, classes='ab', count=5, names='{}.png'):
    """Make image files `folder`/<class>/<i>.png: class k is of colour 50·k + 10."""
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new('RGB', (9, 8), (50 * k + 10, i, 7)).save(folder / name / names.format(i))


def flat(folder, count=3):
    """Make image files without classes."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new('RGB', (8, 8)).save(folder / f'{i}.png')


# {folder: images a class, 0 for images without classes}, images of (train, val, test), what is said
LAYOUTS = {
    'Training Testing': (
        {'Training': 5, 'Testing': 2}, (10, 0, 4), 'Training/ is the training part, Testing/ is the test part'
    ),
    'TRAIN Valid': ({'TRAIN': 5, 'Valid': 2}, (10, 0, 4), 'Valid/ is the test part'),
    'all three': (
        {'train': 5, 'val': 2, 'test': 1}, (10, 4, 2), 'val/ is the validation part, test/ is the test part'
    ),
    'other words': ({'train_set': 5, 'validation': 2, 'test2017': 1}, (10, 4, 2), 'test2017/ is the test'),
    'unlabelled test': (
        {'train': 5, 'val': 2, 'test': 0}, (10, 0, 4), 'val/ is the test part; not used: test/ (no class'
    ),
    'test in one folder': ({'train': 5, 'val': 2, 'test/unknown': 0}, (10, 0, 4), 'not used: test/ (no'),
    'twice': (
        {'seg_train/seg_train': 5, 'seg_test/seg_test': 2, 'seg_pred': 0}, (10, 0, 4), 'not used: seg_pred/'
    ),
    'train alone': ({'train': 5, 'raw': 0}, (8, 0, 2), 'as the test part; not used: raw/'),
    'one tree': ({'': 5}, (8, 0, 2), '2 class folders; a fifth of each class is set aside as the test part'),
    'a class train': ({'': 5, 'train': 0}, (12, 0, 3), '3 class folders'),
    'one tree and test': (
        {'': 5, 'test': 0}, (8, 0, 2), 'not used: test/ (no class folders); test/ is taken for a part: rename'
    ),
    'hidden': ({'': 5, '.thumbnails': 0, '__MACOSX': 0}, (8, 0, 2), '2 class folders'),
}  # fmt: skip


@pytest.mark.parametrize('kind', ['folder', 'stream', 'imagenet'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_folders_become_the_parts_that_they_are_named_after(layout, kind, tmp_path):
    folders, sizes, said = LAYOUTS[layout]
    for name, count in folders.items():
        tree(tmp_path / name, count=count) if count else flat(tmp_path / name, 5)
    dataset = load_dataset(f'{kind}:{tmp_path}', '', 8)
    labels = dataset.y_train, dataset.y_val if dataset.y_val is not None else (), dataset.y_test
    assert tuple(map(len, labels)) == sizes
    assert dataset.classes == (('a', 'b', 'train') if layout == 'a class train' else ('a', 'b'))
    assert dataset.notes[0].startswith(f'{tmp_path}: ') and said in dataset.notes[0]
    if kind == 'folder' and layout == 'all three':
        assert set(dataset.x_val[dataset.y_val == 1, :, :, 0].ravel()) == {60}


REFUSED = {
    'two classes of parts': ({'Training': 0, 'Testing': 0}, 'Training/ has no class folders'),
    'no training part': ({'test': 2, 'val': 2}, 'it has val/, test/ but no train/'),
    'two of a kind': ({'train': 5, 'test': 2, 'Testing': 2}, 'Testing/, test/ are all named as test images'),
    'no classes': ({'': 0}, 'it has no class folders'),
    'one class': ({'cats': 0}, 'expected at least 2 class folders, got only cats/'),
    'one class of a part': ({'train/cats': 0}, 'expected at least 2 class folders in '),
    'one too high': ({'photos': 5}, 'got only photos/; try '),
    'a class called dev': (
        {'dev': 0, 'cats': 0},
        'got only cats/; dev/ is taken for a part: rename it if it is',
    ),
    'two such classes': (
        {'dev': 0, 'test': 0},
        'dev/, test/ are taken for parts: rename those that are classes',
    ),
    'small': ({'': 1}, 'cannot set a test part aside: class a: expected 2 images or more, got 1'),
}


@pytest.mark.parametrize('kind', ['folder', 'stream'])
@pytest.mark.parametrize('layout', REFUSED)
def test_folders_without_a_reading_are_refused(layout, kind, tmp_path):
    for name, count in REFUSED[layout][0].items():
        tree(tmp_path / name, count=count) if count else flat(tmp_path / (name or 'top'))
    top = tmp_path / 'top' if '' in REFUSED[layout][0] and layout == 'no classes' else tmp_path
    with pytest.raises(UserError) as caught:
        load_dataset(f'{kind}:{top}', '', 8)
    assert REFUSED[layout][1] in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('kind', ['folder', 'stream'])
def test_classes_without_images_or_of_another_part_are_refused(kind, tmp_path):
    tree(tmp_path / 'train')
    tree(tmp_path / 'test', 'ac')
    with pytest.raises(UserError, match='the classes of the train and test parts differ in b, c'):
        load_dataset(f'{kind}:{tmp_path}', '', 8)
    for names, other in ('ab', 'AB'), ('ab', 'xy'), ('b\u00e9', ['e\u0301']):
        wanted, got = ', '.join(names), ', '.join(other)
        tree(tmp_path / got / 'train', names)
        tree(tmp_path / got / 'val', other)
        message = f'val: expected folders of the classes {wanted}, as in the training part, got {got}: rename'
        with pytest.raises(UserError, match=message):
            load_dataset(f'{kind}:{tmp_path / got}', '', 8)
    tree(tmp_path / 'other')
    (tmp_path / 'other' / 'c').mkdir()
    (tmp_path / 'other' / 'c' / 'notes.txt').write_text('none yet')
    with pytest.raises(UserError, match=r'other/c holds no images; expected image files as'):
        load_dataset(f'{kind}:{tmp_path}/other', '', 8)


@pytest.mark.parametrize('kind', ['folder', 'stream'])
def test_a_part_may_lack_classes_and_keeps_the_numbers_of_the_others(kind, tmp_path, capsys):
    tree(tmp_path / 'train', 'abcd')
    tree(tmp_path / 'val', 'bd', 2)
    tree(tmp_path / 'test', 'cd', 3)
    (tmp_path / 'test' / 'a').mkdir()
    dataset = load_dataset(f'{kind}:{tmp_path}', '', 8)
    assert dataset.y_val.tolist() == [1, 1, 3, 3] and dataset.y_test.tolist() == [2, 2, 2, 3, 3, 3]
    lacks = '2 of 4 classes have no images in the'
    assert capsys.readouterr().err == (
        f'warning: {tmp_path}/val: {lacks} val part: a, c\n'
        f'warning: {tmp_path}/test: {lacks} test part: a, b\n'
    )
    if kind == 'folder':
        assert set(dataset.x_test[dataset.y_test == 3, :, :, 0].ravel()) == {60}  # read as the second class


def test_a_folders_own_validation_part_chooses_the_weights(tmp_path, config):
    for part, count in (('train', 12), ('val', 3), ('test', 2)):
        tree(tmp_path / part, count=count)
    dataset = load_dataset(f'folder:{tmp_path}', '', 8)
    split = make_split(dataset, config)
    images = evaluation_images(dataset, split)
    assert {name: len(part.labels) for name, part in images.items()} == {
        'train': 24,
        'validation': 6,
        'test': 4,
    }
    np.testing.assert_array_equal(images['validation'].images, dataset.x_val)
    lines = describe(dataset, split)
    assert 'the 6 images of the validation part choose the weights; data.validation_size is not used' in lines
    config.data.validation = 'none'
    without = make_split(dataset, config)
    assert 'validation' not in evaluation_images(dataset, without)
    assert without.fingerprint() != split.fingerprint()
    assert any('are not used: data.validation chooses others' in line for line in describe(dataset, without))
    Image.new('RGB', (9, 8)).save(tmp_path / 'val' / 'a' / '0.png')
    config.data.validation = 'holdout'
    other = load_dataset(f'folder:{tmp_path}', '', 8)
    assert other.fingerprint() == dataset.fingerprint()
    assert make_split(other, config).fingerprint() != split.fingerprint()


def test_images_are_known_by_ending_or_content_and_the_others_counted(tmp_path, capsys):
    tree(tmp_path / 'a', [''], 4, '{}.JPG')
    tree(tmp_path / 'b', [''], 5)
    a = tmp_path / 'a'
    Image.fromarray(RED).save(a / 'x.jfif', 'JPEG')
    palette().save(a / 'y.gif')
    Image.fromarray(GREY.astype(np.uint16) * 257).save(a / 'no_ending', 'PNG')
    (a / '.hidden.png').write_bytes(b'no image')
    for thumbnails in '@eaDir', '.@__thumb':  # which would be tested on, and trained on as well
        (a / thumbnails).mkdir()
        Image.fromarray(RED).save(a / thumbnails / 'small.png')
    (tmp_path / 'stray.png').write_bytes(b'in no class')
    (a / 'dead.png').symlink_to(a / 'nowhere')
    (a / 'notes.txt').write_text('about the images')
    (a / 'Thumbs.db').write_bytes(bytes(100))
    (tmp_path / 'b' / 'broken.png').write_bytes(b'no image')
    (tmp_path / 'b' / 'cut.png').write_bytes((tmp_path / 'b' / '0.png').read_bytes()[:50])
    dataset = load_dataset(f'folder:{tmp_path}', '', 8)
    assert len(dataset.y_train) + len(dataset.y_test) == 12
    told = capsys.readouterr().err
    assert told.startswith(
        f'{tmp_path}: 12 images of 18 files used; 2 converted (16-bit 1, palette 1); 6 left out '
        '(a/dead.png: No such file or directory, b/broken.png: cannot identify image, b/cut.png: '
    )
    assert told.endswith(', …)\n') and told.count('\n') == 1
    assert len(load_dataset(f'stream:{tmp_path}', '', 8).fingerprint()) == 64
    told = capsys.readouterr().err
    assert told == (
        f'{tmp_path}: 15 images of 18 files used; 3 left out (a/Thumbs.db: not an image, a/notes.txt: not an '
        'image, stray.png: in no class folder)\n'
    )


def test_links_pipes_and_names_that_would_mislead(tmp_path, capsys):
    tree(tmp_path / 'a', ['Cat', 'cat'], 5)
    cat = tmp_path / 'a' / 'cat'
    (cat / 'again').symlink_to(tmp_path / 'a')  # all images would count some forty times
    os.mkfifo(cat / 'pipe.png')  # whoever opens it waits for ever
    (cat / 'x\ny.png').write_bytes(b'no image')
    (tmp_path / 'a' / 'self').symlink_to('self')
    assert len(load_dataset(f'folder:{tmp_path}/a', '', 8).y_train) == 8
    assert capsys.readouterr().err == (
        f'warning: {tmp_path}/a: Cat/, cat/ differ only in case or accents, and are 2 classes\n'
        f'{tmp_path}/a: 10 images of 13 files used; 3 left out (cat/x\\ny.png: cannot identify image, '
        'cat/pipe.png: not a file, cat/again: a link to a folder that it lies in)\n'
    )
    for kind in 'folder', 'stream':
        tree(tmp_path / kind / 'train', ['caf\u00e9', 'b'])
        tree(tmp_path / kind / 'test', ['cafe\u0301', 'b'])
        with pytest.raises(
            UserError, match=r'differ in .*; rename those that differ only in case or accents'
        ):
            load_dataset(f'{kind}:{tmp_path}/{kind}', '', 8)
    for part in 'treino', 'teste':
        tree(tmp_path / 'parts' / part)
    tree(tmp_path / 'deeper' / 'images' / 'train')
    tree(tmp_path / 'deeper', ['labels'])
    capsys.readouterr()
    for folder, words in (
        ('parts', 'teste/, treino/ are taken for classes, but all hold a/, b/: name parts train/ and test/'),
        (
            'deeper',
            'images/, labels/ are taken for classes, but images/ holds a folder to train on: try images',
        ),
    ):
        load_dataset(f'stream:{tmp_path}/{folder}', '', 8)
        assert capsys.readouterr().err == f'warning: {tmp_path}/{folder}: {words}\n'
    tree(tmp_path / 'names', ['a\nb', 'c'])
    with pytest.raises(UserError, match=r"class names that are a line of text, got 'a.{1,2}nb'"):
        load_dataset(f'folder:{tmp_path}/names', '', 8)
    tree(tmp_path / 'broken')
    for image in (tmp_path / 'broken' / 'a').iterdir():
        image.write_bytes(b'')
    with pytest.raises(UserError, match='no image of class a can be read'):
        load_dataset(f'folder:{tmp_path}/broken', '', 8)


def test_a_strip_is_not_scaled_to_gigabytes(tmp_path):
    Image.new('RGB', (1, 9000)).save(tmp_path / 'strip.png')
    with pytest.raises(ValueError, match='1x9000 pixels are too thin'):
        read(tmp_path / 'strip.png', eval_transform(224))
    assert read(tmp_path / 'strip.png', eval_transform(8)).shape == (8, 8, 3)


def test_small_classes_are_told_before_training(dataset, config):
    assert describe(dataset, make_split(dataset, config)) == [
        'training images per class: 20 in each of 4 classes'
    ]
    rows = np.flatnonzero((dataset.y_train > 0) | (np.arange(96) < 8))
    few = make_split(dataset, config)._replace(train=rows)
    assert describe(dataset, few) == [
        'training images per class: a 2, b 24, c 24, d 24',
        'classes with fewer than 10 training images: 1 (a 2)',
    ]


LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    'array',
    [
        LEVELS,
        LEVELS[..., None],
        LEVELS.astype(np.uint16) * 257,
        (LEVELS.astype(np.uint16) * 257).astype('>u2'),
        (LEVELS / 255)[..., None].repeat(3, 2),
        (LEVELS / 255).astype(np.float32),
        np.dstack([LEVELS, LEVELS, LEVELS, np.full_like(LEVELS, 255)]),
    ],
    ids=['grey', 'one channel', '16-bit', '16-bit of another machine', 'floats', 'grey floats', 'opaque'],
)
def test_arrays_are_read_as_files_are(array):
    wanted = LEVELS[..., None].repeat(3, 2)
    many = array[None].repeat(2, 0) if array.ndim == 3 else [array, array]
    np.testing.assert_array_equal(read_pictures(array, 'cifar10', 16)[1], [wanted])
    np.testing.assert_array_equal(read_pictures(many, 'cifar10', 16)[1], [wanted, wanted])
    np.testing.assert_array_equal(
        read_pictures(array, 'cifar10', 8)[1], read_pictures(Image.fromarray(wanted), 'cifar10', 8)[1]
    )


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (LEVELS.astype(float), 'image 0: expected float pixels from 0 to 1, got 0 to 255; divide it by'),
        (LEVELS.astype(int), 'expected uint8, uint16, or floats from 0 to 1, got int64'),
        (np.zeros((3, 16, 16)), 'got float64 [3, 16, 16]; move the channels to the end, or give many grey'),
        (np.zeros(16), 'expected [H,W], [H,W,3]'),
        ([], 'expected an image or more, got none'),
        (3, 'expected images as files, PIL images or arrays, got int'),
        ('no.png', 'no.png is not a readable image: No such file'),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(given, message):
    with pytest.raises(UserError) as caught:
        read_pictures(given, 'cifar10', 16)
    assert message in str(caught.value) and '\n' not in str(caught.value)
