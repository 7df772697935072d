"""A small camera RAW file, written by hand: a DNG, which is a TIFF with the values of a sensor in it."""

import struct

# TIFF's types: the number that stands for one, its bytes, and how `struct` writes it
BYTE, TEXT, SHORT, LONG, RATIONAL, SIGNED_RATIONAL = (1, "B"), (2, "B"), (3, "H"), (4, "I"), (5, "I"), (10, "i")
UNIT_MATRIX = [1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1]  # numerators and denominators


def directory(offset, tags):
    """The bytes of a TIFF directory that lies at `offset`: {tag: (type, values)}."""
    entries = struct.pack("<H", len(tags))
    beyond = b""  # values of more than four bytes lie behind the directory
    beyond_at = offset + 2 + 12 * len(tags) + 4
    for tag, ((number, letter), values) in sorted(tags.items()):
        content = struct.pack(f"<{len(values)}{letter}", *values)
        count = len(values) // 2 if (number, letter) in (RATIONAL, SIGNED_RATIONAL) else len(values)
        entries += struct.pack("<HHI", tag, number, count)
        if len(content) <= 4:
            entries += content.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", beyond_at + len(beyond))
            beyond += content + bytes(len(content) % 2)
    return entries + struct.pack("<I", 0) + beyond


def dng(sensor, orientation=1, preview=None, preview_size=None):
    """The bytes of a DNG; sensor: (H, W) uint16 behind filters RG/GB; preview: the bytes of a JPEG of that (W, H)."""
    height, width = sensor.shape
    values = sensor.astype("<u2").tobytes()

    def directories(values_at, preview_at, second_at):
        camera = {
            271: (TEXT, b"Nobody\0"), 272: (TEXT, b"Test\0"), 274: (SHORT, [orientation]),
            50706: (BYTE, [1, 4, 0, 0]), 50707: (BYTE, [1, 1, 0, 0]), 50708: (TEXT, b"Nobody Test\0"),
            50721: (SIGNED_RATIONAL, UNIT_MATRIX), 50728: (RATIONAL, [1] * 6), 50778: (SHORT, [21]),
        }  # fmt: skip
        raw = {
            254: (LONG, [0]), 256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [16]), 259: (SHORT, [1]),
            262: (SHORT, [32803]), 273: (LONG, [values_at]), 277: (SHORT, [1]), 278: (LONG, [height]),
            279: (LONG, [len(values)]), 284: (SHORT, [1]), 33421: (SHORT, [2, 2]), 33422: (BYTE, [0, 1, 1, 2]),
            50714: (LONG, [0]), 50717: (LONG, [65535]),
        }  # fmt: skip
        if preview is None:
            return directory(8, camera | raw), b""
        small = {
            254: (LONG, [1]), 256: (LONG, [preview_size[0]]), 257: (LONG, [preview_size[1]]), 258: (SHORT, [8, 8, 8]),
            259: (SHORT, [7]), 262: (SHORT, [6]), 273: (LONG, [preview_at]), 277: (SHORT, [3]),
            278: (LONG, [preview_size[1]]), 279: (LONG, [len(preview)]), 284: (SHORT, [1]), 330: (LONG, [second_at]),
        }  # fmt: skip
        return directory(8, camera | small), directory(second_at, raw)

    first, _ = directories(0, 0, 0)  # their lengths do not depend on where things lie
    second_at = 8 + len(first)
    _, second = directories(0, 0, second_at)
    values_at = second_at + len(second)
    first, second = directories(values_at, values_at + len(values), second_at)
    return b"II*\0" + struct.pack("<I", 8) + first + second + values + (preview or b"")
