"""What pyarrow has to be kept from in a Parquet file that anyone may have written; read before it reads.

A footer has no checksum. Where it lacks a type, holds one that Parquet does not have, or counts levels that
a column does not have, pyarrow ends the process by SIGABRT; and it allocates what the header of a page
claims, whatever the footer says, so that 60 KB unfold into gigabytes. Both are Thrift structs in the compact
protocol, of which little is needed to look at them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_DEPTH = 10
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _TEXT, _LIST, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 12
_OF_DATA = {0: 5, 3: 8}
"""The field of a page's header that describes its values, by its type: DATA_PAGE and DATA_PAGE_V2."""
_SCHEMA, _ROW_GROUPS = 2, 4
_TYPE, _REPETITION, _CHILDREN, _CODEC, _SIZES = 1, 3, 5, 4, 16
_REPETITIONS, _DEFINITIONS = 2, 3
_MOST = 7
"""The last of Parquet's physical types, and of its codecs."""
_OPTIONAL = 1
"""The repetition of every column that pyarrow writes unless it is told otherwise."""


class Page(NamedTuple):
    """What the header of a data page claims. unfolded_bytes: what pyarrow allocates for it."""

    num_values: int
    unfolded_bytes: int


def check_footer(data: bytes) -> None:
    """Raises ValueError for a file whose footer lacks a type or holds one that Parquet does not have.

    Of a file of ours: all of its columns are optional.
    """
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if start < 4 or data[-4:] != b"PAR1":
        raise ValueError("it has no footer")
    footer, _ = _struct(data, start)
    depths = _depths(_list(footer, _SCHEMA))
    for group in _list(footer, _ROW_GROUPS):
        for chunk, depth in zip(_list(group, 1), depths, strict=True):
            _check_chunk(chunk.get(3) if isinstance(chunk, dict) else None, depth)


def read_pages(data: bytes, start: int, size_bytes: int) -> Iterator[Page]:
    """Yields the pages of the column chunk at `start` of a file. Raises ValueError for what is none."""
    end = start + size_bytes
    if not 0 <= start <= end <= len(data):
        raise ValueError(f"a column at {start}..{end}, the file has {len(data)} bytes")
    at = start
    while at < end:
        header, at = _struct(data, at)
        described = header.get(_OF_DATA.get(_count(header, 1), 0))
        if not isinstance(described, dict):
            raise ValueError("a page does not hold data")
        at += _count(header, 3)
        if at > end:
            raise ValueError("a page ends behind its column")
        yield Page(_count(described, 1), unfolded_bytes=_count(header, 2))


def _depths(schema: list[Any]) -> list[int]:
    """Returns for each column in how many others it lies, itself among them."""
    depths: list[int] = []
    open_ = [_count(schema[0], _CHILDREN)] if schema else []
    for element in schema[1:]:
        while open_ and open_[-1] == 0:
            open_.pop()
        if not open_ or _count(element, _REPETITION) != _OPTIONAL:
            raise ValueError("its columns are not those of a file of ours")
        open_[-1] -= 1
        if _CHILDREN in element:
            open_.append(_count(element, _CHILDREN))
        elif _count(element, _TYPE) > _MOST:
            raise ValueError("a column has a type that Parquet does not have")
        else:
            depths.append(len(open_))
    return depths


def _check_chunk(described: Any, depth: int) -> None:
    if _count(described, _TYPE) > _MOST or _count(described, _CODEC) > _MOST:
        raise ValueError("a column has a type or codec that Parquet does not have")
    levels = described.get(_SIZES, {})
    if not isinstance(levels, dict) or any(
        field in levels and len(_list(levels, field)) not in (0, size)
        for field, size in ((_REPETITIONS, 1), (_DEFINITIONS, depth + 1))
    ):
        raise ValueError("a column counts levels that it does not have")


def _list(fields: Any, number: int) -> list[Any]:
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, list):
        raise ValueError("its footer does not describe its columns")
    return value


def _count(fields: Any, number: int) -> int:
    value = fields.get(number) if isinstance(fields, dict) else None
    if not isinstance(value, int) or value < 0:
        raise ValueError("a size, a number or a type is missing or negative")
    return value


def _struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Returns the fields of the struct at a place, by number, and the place behind it. Raises ValueError."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head, at = _byte(data, at)
        if head == 0:
            return fields, at
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, at = _integer(data, at)
        fields[number], at = (kind == _TRUE, at) if kind in (_TRUE, _FALSE) else _value(data, at, kind, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Returns the value of a kind at a place, None for one that nothing here needs, and the place behind it.

    An integer of another width than Parquet's is as good as missing: a reader skips it.
    """
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    if kind in (_I16, _I32, _I64):
        value, at = _integer(data, at)
        return value if kind == _I32 else None, at
    if kind in (_TRUE, _FALSE, _BYTE):
        return None, at + 1
    if kind == _DOUBLE:
        return None, at + 8
    if kind == _TEXT:
        length, at = _varint(data, at)
        return None, at + length
    if kind == _LIST:
        return _items(data, at, depth)
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    raise ValueError(f"it holds a value of kind {kind}")


def _items(data: bytes, at: int, depth: int) -> tuple[list[Any], int]:
    head, at = _byte(data, at)
    length, kind = head >> 4, head & 15
    if length == 15:
        length, at = _varint(data, at)
    items = []
    for _ in range(length):
        item, at = _value(data, at, kind, depth + 1)
        if at > len(data):
            raise ValueError("it ends too early")
        items.append(item)
    return items, at


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte, at = _byte(data, at)
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("it holds a number of more than 64 bits")


def _byte(data: bytes, at: int) -> tuple[int, int]:
    if at >= len(data):
        raise ValueError("it ends too early")
    return data[at], at + 1
