"""Damage files: bytes anywhere, and whatever a format keeps in JSON or in a zip archive."""

import json
import math
import random
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, cast

Random = random.Random

_LARGEST_HEADER = 1 << 20
# Numbers at which counters overflow, sizes explode and signs turn.
_INTEGERS = (0, -1, 1, 2, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64, 10**30)


def mutate_file(path: Path, random: Random) -> None:
    """Damage a file in place, most often where it would be understood and seldom beyond repair."""
    data = path.read_bytes()
    ways: list[Callable[[bytes, Random], bytes]] = [_mutate_bytes]
    if _is_json(data):
        ways += [_mutate_json] * 3
    elif data[8:9] == b"{":
        ways += [_mutate_header] * 2
    elif data.startswith(b"PK\x03\x04"):
        ways += [_mutate_member] * 2
    path.write_bytes(random.choice(ways)(data, random))


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except (ValueError, RecursionError):
        return False


# Bytes


def _mutate_bytes(data: bytes, random: Random) -> bytes:
    """Damage bytes in one to four places, half of them near the beginning."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        end = len(data) if random.random() < 0.5 else min(len(data), 512)
        start = random.randrange(end + 1)
        length = min(random.choice((1, 1, 4, 8, 64, 4096)), len(data) - start)
        before = data[:start]
        part = data[start : start + length]
        after = data[start + length :]
        data = random.choice(_BYTE_CHANGES)(before, part, after, random)
    return data


def _flip(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    flipped = bytes(byte ^ (1 << random.randrange(8)) for byte in part)
    return before + flipped + after


def _overwrite(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    byte = random.choice((b"\x00", b"\xff", b"\x7f", bytes([random.randrange(256)])))
    return before + byte * len(part) + after


def _overwrite_number(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    number = random.choice(_INTEGERS) % 2**64
    return before + struct.pack(random.choice("<>") + "Q", number)[: len(part)] + after


def _delete(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    return before + after


def _repeat(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    return before + part * random.choice((2, 3, 50)) + after


def _insert(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    return before + random.randbytes(random.choice((1, 7, 300))) + part + after


def _truncate(before: bytes, part: bytes, after: bytes, random: Random) -> bytes:
    return before


# Most of them keep the length, because another one makes nearly all formats unreadable.
_BYTE_CHANGES = (
    *(_flip, _overwrite, _overwrite_number) * 4,
    *(_delete, _repeat, _insert, _truncate),
)


# JSON


def _mutate_json(data: bytes, random: Random) -> bytes:
    values = json.loads(data)
    for _ in range(random.choice((1, 1, 2))):
        _change_json(values, random)
    text = json.dumps(values)
    if random.random() < 0.05:  # json.dumps cannot nest so deep, but files can
        depth = random.choice((100, 5_000, 200_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode()


def _change_json(values: dict[str, Any], random: Random) -> None:
    """Replace, remove, add or move one entry of nested dicts and lists, in place."""
    holder, key = random.choice(_places(values))
    change = random.random()
    if change < 0.7:
        holder[key] = _odd_value(holder[key], random)
    elif change < 0.85:
        del holder[key]
    elif isinstance(holder, dict):
        holder[f"{key}_"] = holder[key]
    else:
        holder.append(holder[key])


def _places(values: Any) -> list[tuple[Any, Any]]:
    """Return every dict or list with each of its keys or indices, from the outermost inwards."""
    found: list[tuple[Any, Any]] = []
    pending: list[Any] = [values]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        for key in cast("list[Any]", keys):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                pending.append(holder[key])
    return found or [({"": None}, "")]


def _odd_value(value: Any, random: Random) -> Any:
    """Return something else than a value, often of the same type."""
    if isinstance(value, int | float) and random.random() < 0.5:
        factor = random.choice((-1, 0, 2, 1000, 10**9, 0.5))
        return value * factor
    texts = ("", "x" * 5000, "\0", "../../x", "a/b", "none", "\ud800", "nan", "猫")
    others: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"a": 1}, [1, 2, 3], [value])
    floats = (math.nan, math.inf, -math.inf, 1e308, 0.5, -0.0)
    return random.choice((*texts, *others, *floats, *_INTEGERS))


# Formats with an inside


def _mutate_header(data: bytes, random: Random) -> bytes:
    """Damage the JSON at the beginning of a safetensors file, and keep its length true."""
    length = int.from_bytes(data[:8], "little")
    if length > _LARGEST_HEADER:
        return _mutate_bytes(data, random)
    header = _mutate_json(data[8 : 8 + length], random)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _mutate_member(data: bytes, random: Random) -> bytes:
    """Damage one member of a zip archive, and keep the archive sound."""
    archive = zipfile.ZipFile(BytesIO(data))
    members = {info.filename: archive.read(info) for info in archive.infolist()}
    pickles = [name for name in members if name.endswith(".pkl")]
    chosen = random.choice(pickles if random.random() < 0.8 else list(members))
    members[chosen] = _mutate_bytes(members[chosen], random)
    output = BytesIO()
    compression = zipfile.ZIP_DEFLATED if random.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(output, "w", compression) as damaged:
        for name, content in members.items():
            damaged.writestr(name, content)
    return output.getvalue()
