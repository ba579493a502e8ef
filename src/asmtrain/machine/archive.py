"""Members of a static archive (`.a`): GNU's and BSD's ways to write names.

Invariant: members never overlap, so that what is read is at most the file; damage ends in `Damaged`.
"""

from collections.abc import Iterator

from asmtrain.machine.elf import Damaged

MAGIC, THIN_MAGIC = b"!<arch>\n", b"!<thin>\n"
_HEADER_BYTES = 60
_TABLES = ("/", "//", "/SYM64/", "__.SYMDEF", "__.SYMDEF SORTED", "__.SYMDEF_64")
"""Symbol tables and the table of long names."""


def members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each member that is a file of its own.

    Raises:
        Damaged: a header is none, or a member ends behind the file.
    """
    long_names = b""
    at = len(MAGIC)
    while at < len(content):
        header = content[at : at + _HEADER_BYTES]
        field = header[48:58].strip()
        if len(header) < _HEADER_BYTES or header[58:] != b"`\n" or not field.isdigit():
            raise Damaged(f"no archive member begins at byte {at}")
        start, size = at + _HEADER_BYTES, int(field)
        if start + size > len(content):
            raise Damaged(f"the member at byte {at} ends behind it")
        name, body = _named(header[:16].decode("latin-1").rstrip(), content[start : start + size], long_names)
        if name == "//":
            long_names = body
        if name not in _TABLES:
            yield name.removesuffix("/"), body
        at = start + size + size % 2


def _named(field: str, body: bytes, long_names: bytes) -> tuple[str, bytes]:
    if field.startswith("#1/") and field[3:].isdecimal():  # BSD: the name comes first in the body
        length = int(field[3:])
        return body[:length].rstrip(b"\0").decode("utf-8", "replace"), body[length:]
    if field[:1] == "/" and field[1:].isdecimal():  # GNU: an offset into a table of names
        start = int(field[1:])
        end = long_names.find(b"\n", start, start + 1024)
        return long_names[start : end if end >= 0 else start + 1024].decode("utf-8", "replace"), body
    return field, body
