"""Image files that are damaged, huge, or of another kind."""

import io
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.faults.outcomes import Case
from jaxcifar.data.stream import eval_transform, read
from jaxcifar.data.vision import is_image, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
SAVED = {
    'png': {},
    'jpg': {'quality': 90},
    'gif': {},
    'bmp': {},
    'tif': {},
    'webp': {},
    'jp2': {},
    'ico': {},
    'tga': {},
    'ppm': {},
    'avif': {},
}


class Harmless:
    """A pickle that would leave a file behind if anything ran it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        """Return what running the pickle would do."""
        return Path.touch, (self.path,)


def damaged(data: bytes, draw: random.Random, count: int) -> Iterator[bytes]:
    """Yield damaged copies: cut off, or with one or eight bytes replaced, often near the beginning."""
    for i in range(count):
        if i % 3 == 0:
            yield data[: draw.randrange(len(data))]
            continue
        copy = bytearray(data)
        for _ in range(1 if i % 3 == 1 else 8):
            copy[draw.randrange(min(len(data), 200) if i % 2 else len(data))] = draw.randrange(256)
        yield bytes(copy)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG file of these chunks (kind, content)."""
    parts = [struct.pack('>I', len(d)) + k + d + struct.pack('>I', zlib.crc32(k + d)) for k, d in chunks]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def header(width: int, height: int) -> tuple[bytes, bytes]:
    """Return the chunk that says how large a PNG image is."""
    return b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)


OTHERS = {
    'nothing': b'',
    'text': b'hello',
    'a page': b'<!DOCTYPE html><html>404</html>',
    'svg': b'<svg/>',
    'NUL': bytes(1000),
    'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n',
    'bits': b'\xff' * 1000,
    'a pickle': pickle.dumps([1]),
    'four thousand million pixels a side': png(header(2**31 - 1, 2**31 - 1)),
    'no pixels': png(header(0, 0)),
    'twenty thousand pixels a side': png(header(20_000, 20_000), (b'IDAT', zlib.compress(b''))),
    'a text of 100 MB': png(header(4, 4), (b'zTXt', b'k\0\0' + zlib.compress(b'a' * 10**8))),
}


def cases(folder: Path, share: float = 1) -> Iterator[Case]:
    """Yield image files as predictions, folders and streams read them."""
    draw, count = random.Random(0), round(share * 60)
    readers: list[Callable] = [partial(read_image, size=8), partial(read, transform=eval_transform(8))]

    def case(name: str, ending: str, data: bytes) -> Iterator[Case]:
        path = folder / f'image.{ending}'

        def attempt(reader):
            path.write_bytes(data)
            try:
                return reader(path)
            except Exception as error:  # as all who read images do: Pillow raises nearly anything
                raise OSError(0, f'unreadable: {error!r}', str(path)) from error

        for reader in readers:
            yield Case(
                name,
                partial(attempt, reader),
                lambda x: 'pixels that Pillow can read' * (x.shape == (8, 8, 3)),
            )
        bare = folder / 'image'
        yield Case(
            f'{name}, no ending',
            lambda: (bare.write_bytes(data), is_image(str(bare))),
            lambda x: 'told apart by its first bytes',
        )

    for ending, options in SAVED.items():
        buffer = io.BytesIO()
        Image.fromarray(PIXELS).save(
            buffer, {'jpg': 'JPEG', 'tif': 'TIFF', 'jp2': 'JPEG2000'}.get(ending, ending), **options
        )
        for i, data in enumerate(damaged(buffer.getvalue(), draw, count)):
            yield from case(f'{ending} {i}', ending, data)
    for name, data in OTHERS.items():
        yield from case(name, 'png', data)
