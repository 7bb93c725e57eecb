"""Every seed and permutation: pure functions of the numbers and names that they stand for.

All of them are derived from sha256, never from a library's generator: no library promises that its
generator gives the same stream in its next version, and a run's seeds and labels must not change with one.
"""

import hashlib

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def key(*parts: object) -> int:
    """Returns the 64-bit number, 0..2^64-1, that stands for `parts`: the first 8 bytes of their sha256.

    The parts are joined by "/", big endian: `key(7, "class", 3)` hashes "7/class/3".
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def torch_seed(*parts: object) -> int:
    """Returns a seed, 0..2^63-1, for one use of a torch generator; other parts give an independent one."""
    return key(*parts) >> 1


def splitmix64(start: int, count: int) -> npt.NDArray[np.uint64]:
    """Returns the first `count` outputs of splitmix64 (Steele et al., 2014) from the state `start`.

    No two of them are equal: every step of it is a bijection of 64-bit numbers.
    """
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permutation(count: int, *parts: object) -> Int64:
    """Returns the permutation of 0..count-1 that `parts` name, as `(count,)` int64."""
    return np.argsort(splitmix64(key(*parts), count), kind="stable").astype(np.int64)


def hashed_order(count: int, *parts: object) -> Int64:
    """Returns 0..count-1 ordered by the hash of each number, as `(count,)` int64.

    Slower than `permutation`, for the order of a run's classes, which was first drawn this way.
    """
    return np.array(sorted(range(count), key=lambda number: key(*parts, number)), dtype=np.int64)
