"""Tar bytes, made and read at the speed of memory.

In: the members of WebDataset samples, or a tar as a stream of chunks. Out: the other of the two.
Invariant: writing depends on names and bytes alone: no time, owner or mode of this machine; every block
that is read is either accounted for or the tar is refused.
Cost: about a microsecond a member each way, against 15 to 20 of `tarfile`, which makes an object of each.
`tarfile` still does what is rare: names that a ustar header has no room for, headers of other writers.
"""

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
_RECORD = 20 * BLOCK  # a tar's length is a multiple of it
_LARGEST = 8**11  # sizes are eleven octal digits
_BEFORE_SIZE = b"\0".join((b"0000644", b"0000000", b"0000000", b""))  # mode, owner, group
_AFTER_SIZE = b"00000000000\0"  # time
_AFTER_CHECKSUM = b"0" + bytes(100) + b"ustar\x0000" + bytes(247)
# The sum of all of the above, with the checksum's own field counted as eight spaces.
_FIXED_SUM = sum(_BEFORE_SIZE) + sum(_AFTER_SIZE) + sum(_AFTER_CHECKSUM) + 8 * ord(" ")
_PADDING = tuple(bytes(-size % BLOCK) for size in range(BLOCK))


def sample_bytes(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as a piece of a tar: a header, the bytes and padding for each member, in their order."""
    name = key.encode()
    name_sum = sum(name)
    parts = []
    for extension, body in members.items():
        ending, ending_sum = _ending(extension)
        size = len(body)
        if len(name) + len(ending) > 100 or size >= _LARGEST or not name.isascii() or not ending.isascii():
            parts.append(_rare_header(f"{key}.{extension}", size))
        else:
            digits = b"%011o" % size
            parts.append(
                b"%b%b%b\0%b%06o\0 %b"
                % (
                    (name + ending).ljust(100, b"\0"),
                    _BEFORE_SIZE,
                    digits,
                    _AFTER_SIZE,
                    _FIXED_SUM + name_sum + ending_sum + sum(digits),
                    _AFTER_CHECKSUM,
                )
            )
        parts += (body, _PADDING[size % BLOCK])
    return b"".join(parts)


@lru_cache(maxsize=4096)
def _ending(extension: str) -> tuple[bytes, int]:
    ending = b"." + extension.encode()
    return ending, sum(ending)


def _rare_header(name: str, size: int) -> bytes:
    """What tarfile writes for a name or a size that a ustar header has no room for."""
    header = tarfile.TarInfo(name)
    header.size = size
    return header.tobuf(tarfile.PAX_FORMAT)


def tar_bytes(samples: Iterable[tuple[str, Mapping[str, bytes]]], *, chunk_bytes: int) -> Iterator[bytes]:
    """A whole tar of samples, in pieces of at least `chunk_bytes`, but for the last."""
    pending: list[bytes] = []
    pending_bytes = written = 0
    for key, members in samples:
        piece = sample_bytes(key, members)
        pending.append(piece)
        pending_bytes += len(piece)
        if pending_bytes >= chunk_bytes:
            yield b"".join(pending)
            written += pending_bytes
            pending, pending_bytes = [], 0
    written += pending_bytes + 2 * BLOCK
    yield b"".join(pending) + bytes(2 * BLOCK + -written % _RECORD)


Members = tuple[list[str], list[bytes]]
"""Consecutive members of a tar: their names and their bytes."""


def read_members(chunks: Iterable[memoryview], *, check_sums: bool) -> Iterator[Members]:
    """The regular files of a tar in their order, about a chunk of them at a time; chunks may be used again.

    `chunks` are the tar's bytes, each but the last a multiple of 512 long. Memory: a chunk and its members.
    `check_sums`: whether to compare each header with its checksum; zstd's own checksum makes that needless.

    Raises:
        EOFError: the tar ends before its end mark.
        tarfile.TarError: a header is damaged, or of a kind that no sample needs.
    """
    reader = _Reader(check_sums)
    for chunk in chunks:
        found = reader.feed(chunk)
        if found[0]:
            yield found
    reader.finish()


def grouped(batches: Iterable[Members]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """WebDataset samples: consecutive members whose names agree up to the first dot, extension to bytes.

    Raises:
        tarfile.TarError: a sample has the same member twice.
    """
    current = ""
    sample: dict[str, bytes] = {}
    for names, bodies in batches:
        for name, body in zip(names, bodies, strict=True):
            key, _, extension = name.partition(".")
            if "/" in extension:  # a dot in a folder's name
                folder, _, file = name.rpartition("/")
                key, _, extension = file.partition(".")
                key = f"{folder}/{key}"
            if key != current:
                if sample:
                    yield current, sample
                current, sample = key, {}
            if extension in sample:
                raise tarfile.ReadError(f"sample {key} has two members {extension!r}")
            if extension:  # other files than members may lie in a tar
                sample[extension] = body
    if sample:
        yield current, sample


class _Reader:
    """Cuts chunks into members; keeps what began in one chunk and ends in a later one."""

    def __init__(self, check_sums: bool) -> None:
        self._check_sums = check_sums
        self._open: _Open | None = None
        self._long_name = ""  # what an extended header says of the next member
        self._num_end_bytes = 0

    def feed(self, chunk: memoryview) -> Members:
        """The members that end in this chunk."""
        found: Members = ([], [])
        at = self._continue(chunk, found) if self._open else 0
        headers = _Headers(chunk, check_sums=self._check_sums)
        while at < len(chunk) and not self._num_end_bytes:
            run = headers.run(at)
            at = self._take_run(chunk, run, found) if run else self._take_rare(chunk, at, found)
        if self._num_end_bytes:
            self._check_end(chunk, at)
        return found

    def finish(self) -> None:
        """Check that all was there; neither zstd nor tarfile mind a stream that ends between two members."""
        if self._open or self._num_end_bytes < 2 * BLOCK:
            raise EOFError("it ends too early")

    def _continue(self, chunk: memoryview, found: Members) -> int:
        assert self._open
        taken = min(self._open.missing, len(chunk))
        self._open.pieces.append(bytes(chunk[:taken]))
        self._open.missing -= taken
        if not self._open.missing:
            whole, self._open = self._open, None
            self._deliver(whole.kind, whole.name, b"".join(whole.pieces)[: whole.size], found)
        return taken

    def _take_run(self, chunk: memoryview, run: "_Run", found: Members) -> int:
        names, starts, sizes = run
        if self._long_name:
            names[0], self._long_name = self._long_name, ""
        at = starts[-1] + sizes[-1] + -sizes[-1] % BLOCK
        if at > len(chunk):
            self._begin(chunk, starts.pop(), tarfile.REGTYPE, names.pop(), sizes.pop())
            at = len(chunk)
        found[0].extend(names)
        found[1].extend(
            [bytes(chunk[start : start + size]) for start, size in zip(starts, sizes, strict=True)]
        )
        return at

    def _begin(self, chunk: memoryview, start: int, kind: bytes, name: str, size: int) -> None:
        missing = start + size + -size % BLOCK - len(chunk)
        self._open = _Open(kind, name, size, missing, [bytes(chunk[start:])])

    def _take_rare(self, chunk: memoryview, at: int, found: Members) -> int:
        """The tar's end, a member of another writer, or damage."""
        block = bytes(chunk[at : at + BLOCK])
        if len(block) < BLOCK:
            raise EOFError("it ends too early")
        if block == bytes(BLOCK):
            self._num_end_bytes = BLOCK
            return at + BLOCK
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        start, size = at + BLOCK, header.size if has_data or header.type in _EXTENDED else 0
        end = start + size + -size % BLOCK
        if end > len(chunk):
            self._begin(chunk, start, header.type, header.name, size)
            return len(chunk)
        self._deliver(header.type, header.name, bytes(chunk[start : start + size]), found)
        return end

    def _deliver(self, kind: bytes, name: str, body: bytes, found: Members) -> None:
        if kind == tarfile.GNUTYPE_LONGNAME:
            self._long_name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == tarfile.XHDTYPE:
            self._long_name = _pax_path(body)
        elif kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            found[0].append(self._long_name or name)
            found[1].append(body)
            self._long_name = ""
        elif kind == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(f"{name} is a sparse file")
        elif kind not in _EXTENDED:  # a folder or a link
            self._long_name = ""

    def _check_end(self, chunk: memoryview, at: int) -> None:
        if chunk[at:] != bytes(len(chunk) - at):
            raise tarfile.ReadError("something follows its end")
        self._num_end_bytes += len(chunk) - at


_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def _pax_path(body: bytes) -> str:
    """The `path` in a pax header's records, `LENGTH KEY=VALUE\\n` each; empty where it has none."""
    path = b""
    while body:
        digits, _, _ = body.partition(b" ")
        length = int(digits)
        key, equals, value = body[len(digits) + 1 : length - 1].partition(b"=")
        if length <= len(digits) or not equals or key == b"size":
            raise tarfile.ReadError("its extended header is damaged, or is of a member above 8 GiB")
        path = value if key == b"path" else path
        body = body[length:]
    return path.decode("utf-8", "surrogateescape")


@dataclass
class _Open:
    """A member that is not whole yet."""

    kind: bytes
    name: str
    size: int
    missing: int  # bytes to come, padding included
    pieces: list[bytes]


_Run = tuple[list[str], list[int], list[int]]
"""Names, first bytes and sizes of members that follow one another."""


class _Headers:
    """All places of a chunk where a plain header stands, or what looks like one inside of a member.

    A run follows the sizes from header to header, so that a look-alike is never taken for one. A header is
    plain if it is that of a regular file below 2 MiB with a name of up to 100 bytes; others are rare.
    """

    def __init__(self, chunk: memoryview, *, check_sums: bool) -> None:
        blocks = np.frombuffer(chunk, np.uint8, len(chunk) - len(chunk) % BLOCK).reshape(-1, BLOCK)
        words = blocks.view("<u8")
        places = np.flatnonzero(words[:, _MAGIC_WORD] == _MAGIC)
        sizes, plain = _sizes(words, places)
        if check_sums:
            plain &= _sums_are_right(blocks[places])
        self._places, self._sizes = places[plain], sizes[plain]
        self._names = blocks[self._places, :100].view("S100").ravel()
        following = self._places + 1 + (self._sizes + BLOCK - 1) // BLOCK
        self._breaks = np.flatnonzero(following[:-1] != self._places[1:])

    def run(self, at: int) -> _Run | None:
        """The longest chain of plain headers that begins at this byte."""
        first = int(np.searchsorted(self._places, at // BLOCK))
        if first == len(self._places) or self._places[first] != at // BLOCK:
            return None
        ending = int(np.searchsorted(self._breaks, first))
        last = int(self._breaks[ending]) if ending < len(self._breaks) else len(self._places) - 1
        chain = slice(first, last + 1)
        names = [name.decode("utf-8", "surrogateescape") for name in self._names[chain].tolist()]
        starts = (self._places[chain] + 1) * BLOCK
        return names, starts.tolist(), self._sizes[chain].tolist()


# A header as 64 words of eight bytes, little-endian.
_WORDS = BLOCK // 8
_SIZE_WORD, _MAGIC_WORD, _PREFIX_WORD = 128 // 8, 256 // 8, 344 // 8
_MAGIC = int.from_bytes(b"\0ustar\x000", "little")
_LARGE_SIZE_WORD, _LARGE_SIZE = 120 // 8, int.from_bytes(b"0000", "little")  # its upper half
_KIND_WORD, _KIND = 152 // 8, ord("0")  # its upper half: the kind, and three bytes of a link's name
_DIGITS = np.uint64(int.from_bytes(b"0000000\0", "little"))
_NO_DIGIT = np.uint64(~0x0007070707070707 & 0xFFFFFFFFFFFFFFFF)
_EVERY_16 = np.uint64(0x00FF00FF00FF00FF)
_EVERY_32 = np.uint64(0x0000FFFF0000FFFF)


def _sizes(
    words: NDArray[np.uint64], places: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The sizes in the headers at these places, and which of the headers are plain.

    Seven octal digits are read at once: neighbours are joined to pairs, then fours, then eight. The eighth
    digit is the zero byte that ends the field, hence the last shift.
    """
    flat, heads = words.ravel(), places * _WORDS
    digits = flat.take(heads + _SIZE_WORD) ^ _DIGITS
    plain = (
        (digits & _NO_DIGIT == 0)
        & (flat.take(heads + _LARGE_SIZE_WORD) >> 32 == _LARGE_SIZE)
        & (flat.take(heads + _KIND_WORD) >> 32 == _KIND)
        & (flat.take(heads + _PREFIX_WORD) == 0)
    )
    pairs = ((digits << 3) + (digits >> 8)) & _EVERY_16
    fours = ((pairs << 6) + (pairs >> 16)) & _EVERY_32
    return (((fours << 12) + (fours >> 32)) & 0xFFFFFFFF).astype(np.int64) >> 3, plain


def _sums_are_right(heads: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which headers have the checksum that they state: the sum of their bytes, its own field as spaces."""
    words = heads.view("<u8")
    # Eight bytes at a time, in lanes of 16 bits: each adds up 128 bytes, at most 32,640.
    lanes = ((words & _EVERY_16) + ((words >> 8) & _EVERY_16)).sum(axis=1)
    sums = lanes.view("<u2").reshape(-1, 4).sum(axis=1, dtype=np.int64)
    sums += 8 * ord(" ") - heads[:, 148:156].sum(axis=1, dtype=np.int64)
    stated = (heads[:, 148:154] - ord("0")).astype(np.int64) @ (8 ** np.arange(5, -1, -1))
    return np.asarray(sums == stated)
