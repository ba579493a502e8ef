"""Duplicates: functions' signatures in, one cluster or one reason to drop each function out.

Rules, in the order train, valid, test, then key; a key met twice is the function that came first:
  exact  equal source tokens: the first function stays, the others go;
  body   in valid and test: any variant's body equals one of a function kept in an earlier split;
  near   in valid and test: near duplicate of a function kept in an earlier split.
Near duplicates inside one split stay, joined by their cluster. Invariant: what stays in two splits shares
neither source, nor body, nor near-duplicate source. Near means an estimated Jaccard similarity of token
shingles (MinHash, Broder 1997) at or above the threshold, for candidates from locality-sensitive hashing.

The work is done by DuckDB in a file, within a limit on memory; signatures lie in a file beside it and are
compared by numpy, a batch of candidates at a time. Only distinct sources are compared. Where more than
`_CROWD` of them share a band, which takes generated code by the thousand, all pairs would be too many: each
is compared with the first `_NEIGHBOURS` and with as many that share another band with it or come close. Only
a pair missed so in every band that it shares is not found.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from corpus_builder.config import SPLITS
from corpus_builder.database import Database, opened

Reason = Literal["exact", "body", "near"]
Signature = NDArray[np.uint32]

_SCHEME = "affine32"
# A missed near duplicate is a leak, a false candidate only costs one comparison.
_RECALL = 0.99
_CROWD = 1000
_NEIGHBOURS = 50
_INSERT_ROWS = 4096
_FETCH_PAIRS = 65536
_COMPARE_PAIRS = 1024


@dataclass(frozen=True)
class Functions:
    """What duplicates are found by, of one unit's functions."""

    keys: Sequence[str]
    sources: Sequence[str]
    """`source_sha256` of each; equal sources have equal signatures."""
    signatures: Signature
    """(N, num_perm), from `signatures`."""
    bodies: NDArray[np.uint64]
    """(M,) the first 64 bits of `body_sha256`, of every variant of every function."""
    body_owners: NDArray[np.uint32]
    """(M,) which of the functions each body is of."""

    def __len__(self) -> int:
        return len(self.keys)


Batch = tuple[int, str, Functions]
"""Where the functions' unit stands in the corpus to be written, their split, the functions."""


def signatures(token_lists: Sequence[Sequence[str]], *, num_perm: int, shingle: int) -> list[Signature]:
    """MinHash signatures, one (num_perm,) row for each function's source tokens."""
    from datasketch import MinHash

    sets = [_shingles(tokens, shingle) for tokens in token_lists]
    hashes = MinHash.bulk(sets, num_perm=num_perm, scheme=_SCHEME)
    return [minhash.hashvalues.astype(np.uint32) for minhash in hashes]


def _shingles(tokens: Sequence[str], length: int) -> list[bytes]:
    """Every run of `length` tokens; a shorter function is one shingle."""
    last = max(1, len(tokens) - length + 1)
    runs = {" ".join(tokens[start : start + length]) for start in range(last)}
    return [run.encode("utf-8", "backslashreplace") for run in sorted(runs)]


class Duplicates:
    """The fate of every function, in a database that is gone when `find_duplicates` ends."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.num_kept = database.size("kept")

    def kept(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Unit after unit by place: the kept functions' keys, sorted, each with its cluster.

        A cluster is the smallest key among a function's near duplicates, often its own.
        """
        rows = self._database.rows(
            "select place, key, cluster from fates where reason is null order by place, key"
        )
        for place, group in groupby(rows, key=itemgetter(0)):
            yield place, {key: cluster for _, key, cluster in group}

    def dropped(self) -> Iterator[tuple[str, Reason]]:
        """The other functions' keys, sorted, each with the first rule that it met."""
        yield from self._database.rows("select key, reason from fates where reason is not null order by key")

    def num_dropped(self) -> dict[str, int]:
        """Reason to number of functions."""
        return dict(
            self._database.rows("select reason, count(*) from dropped group by reason order by reason")
        )


@contextmanager
def find_duplicates(
    batches: Iterable[Batch], *, folder: Path, threshold: float, num_perm: int
) -> Iterator[Duplicates]:
    """Apply the rules above; the order of `batches` decides only whose a key is that stands in two of them.

    `folder` must be empty, and is the caller's to delete.

    Raises:
        OutputError: the disk is full, or the folder cannot be written.
    """
    number, length = _bands(threshold, num_perm)
    signature_file = folder / "signatures"
    with opened(folder) as database:
        with open(signature_file, "wb") as stream:
            _insert(database, batches, stream, number=number, length=length)
        _order(database, number)
        for band in range(number):
            _pair(database, band, number)
        _compare(database, signature_file, threshold=threshold, num_perm=num_perm)
        for split in range(len(SPLITS)):
            _judge(database, split)
        _cluster(database)
        database.run(_FATES)
        yield Duplicates(database)


def _bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Number and length of bands: the longest ones that still find a pair at the threshold.

    A pair of similarity s is a candidate with probability 1 - (1 - s^length)^number (Leskovec, Rajaraman and
    Ullman, Mining of Massive Datasets, 3.4). datasketch's own choice finds 81 % of the pairs at 0.9.
    """
    for length in range(num_perm // 2, 1, -1):
        number = num_perm // length
        if 1 - (1 - threshold**length) ** number >= _RECALL:
            return number, length
    return num_perm, 1


def _insert(
    database: Database, batches: Iterable[Batch], stream: IO[bytes], *, number: int, length: int
) -> None:
    """Put the functions into tables and their signatures, in the same order, into a file."""
    bands = "".join(f", band{band} ubigint" for band in range(number))
    database.run(f"create table items ({_ITEM}{bands}); create table bodies (row uinteger, body ubigint)")
    num_rows = 0
    for group in _groups(batches):
        rows = np.concatenate([functions.signatures for _, _, functions in group if len(functions)])
        rows.astype("<u4", copy=False).tofile(stream)
        columns = _item_columns(group, num_rows)
        columns.update(_band_hashes(rows, number=number, length=length))
        database.append("items", columns)
        database.append("bodies", _body_columns(group, num_rows))
        num_rows += len(rows)


_ITEM = "row uinteger, place uinteger, split utinyint, key varchar, text varchar"


def _groups(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Runs of batches that are worth an insertion."""
    group: list[Batch] = []
    size = 0
    for batch in batches:
        group.append(batch)
        size += len(batch[2])
        if size >= _INSERT_ROWS:
            yield group
            group, size = [], 0
    if size:
        yield group


def _item_columns(group: Sequence[Batch], first_row: int) -> dict[str, NDArray[Any]]:
    sizes = [len(functions) for _, _, functions in group]
    return {
        "row": np.arange(first_row, first_row + sum(sizes), dtype=np.uint32),
        "place": np.repeat(np.array([place for place, _, _ in group], np.uint32), sizes),
        "split": np.repeat(np.array([SPLITS.index(split) for _, split, _ in group], np.uint8), sizes),
        "key": np.array([key for _, _, functions in group for key in functions.keys], object),
        "text": np.array([source for _, _, functions in group for source in functions.sources], object),
    }


def _body_columns(group: Sequence[Batch], first_row: int) -> dict[str, NDArray[Any]]:
    starts = np.cumsum([first_row, *(len(functions) for _, _, functions in group)])
    rows = [functions.body_owners + start for (_, _, functions), start in zip(group, starts, strict=False)]
    bodies = [functions.bodies for _, _, functions in group]
    return {"row": np.concatenate(rows).astype(np.uint32), "body": np.concatenate(bodies)}


def _band_hashes(rows: Signature, *, number: int, length: int) -> dict[str, NDArray[Any]]:
    """64 bits for each band of each signature; mixed so that no two bands met in practice share them."""
    hashes = {}
    for band in range(number):
        mixed = np.zeros(len(rows), np.uint64)
        for column in rows[:, band * length : (band + 1) * length].T:
            mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
        hashes[f"band{band}"] = mixed
    return hashes


def _order(database: Database, number: int) -> None:
    """Number the functions in the order of the rules, and their sources by the first that has each."""
    bands = ", ".join(f"band{band}" for band in range(number))
    database.run(f"""
        create table numbered as
            select row_number() over () - 1 as id, * from (
                select row, place, split, key, text
                from items semi join (select min(row) as row from items group by key) using (row)
                order by split, key);
        create table functions as
            select numbered.* exclude (text), source
            from numbered join (select text, min(id) as source from numbered group by text) using (text);
        drop table numbered;
        create table signatures as
            select source, row, {bands} from functions join items using (row) where id = source;
        drop table items;
        create table pairs (a uinteger, b uinteger);""")


def _pair(database: Database, band: int, number: int) -> None:
    """Add the pairs of sources that share this band, and none of the earlier ones."""
    this = f"band{band}"
    earlier = " or ".join(f"first.band{other} = second.band{other}" for other in range(band)) or "false"
    database.run(f"""
        create or replace temp table crowds as
            select {this} as hash from signatures group by all having count(*) > {_CROWD};
        insert into pairs
            select first.source, second.source
            from (from signatures anti join crowds on hash = {this}) first
            join signatures second on first.{this} = second.{this} and first.source < second.source
            where not coalesce({earlier}, false)""")
    if database.size("crowds"):
        _pair_crowds(database, this, f"band{(band + 1) % number}")
        # As not all its pairs were added, a crowd counts as no band to those that come after.
        database.run(f"update signatures set {this} = null where {this} in (from crowds)")


def _pair_crowds(database: Database, band: str, next_band: str) -> None:
    """Every member of a crowd beside its first ones, and beside those next to it by another band."""
    database.run(f"""
        create or replace temp table members as
            select source, {band} as hash,
                row_number() over (partition by {band} order by source) as place,
                row_number() over (partition by {band} order by {next_band}, source) as other_place
            from signatures semi join crowds on hash = {band};
        insert into pairs
            select first.source, second.source
            from members first join members second using (hash)
            where first.place <= {_NEIGHBOURS} and first.source < second.source;
        insert into pairs
            select least(first.source, second.source), greatest(first.source, second.source)
            from (select *, unnest(range(1, {_NEIGHBOURS} + 1)) as step from members) first
            join members second
                on first.hash = second.hash and second.other_place = first.other_place + first.step""")


def _compare(database: Database, signature_file: Path, *, threshold: float, num_perm: int) -> None:
    """Keep the pairs whose signatures agree in enough places."""
    database.run("""
        create table different as select distinct a, b from pairs;
        drop table pairs;
        create table candidates as
            select a, b, first.row as row_a, second.row as row_b
            from different
            join signatures first on first.source = a join signatures second on second.source = b;
        drop table different;
        drop table signatures;
        create table alike (a uinteger, b uinteger)""")
    for start in range(0, database.size("candidates"), _FETCH_PAIRS):
        pairs = database.arrays(
            "select * from candidates where rowid >= ? and rowid < ?", start, start + _FETCH_PAIRS
        )
        near = _similarity(signature_file, pairs["row_a"], pairs["row_b"], num_perm=num_perm) >= threshold
        database.append("alike", {"a": pairs["a"][near], "b": pairs["b"][near]})
    database.run("""
        drop table candidates;
        create table kept (id uinteger, split utinyint, source uinteger);
        create table dropped (id uinteger, reason varchar)""")


def _similarity(path: Path, a: NDArray[Any], b: NDArray[Any], *, num_perm: int) -> NDArray[np.float64]:
    """(P,) the share of equal places in the signatures of rows `a` and `b`, (P,) each."""
    equal = []
    for start in range(0, len(a), _COMPARE_PAIRS):
        # Mapped anew each time, so that pages of earlier pairs do not stay with this process.
        rows = np.memmap(path, "<u4", "r").reshape(-1, num_perm)
        batch = slice(start, start + _COMPARE_PAIRS)
        equal.append(np.count_nonzero(rows[a[batch]] == rows[b[batch]], axis=1))
    return np.concatenate(equal) / num_perm


def _judge(database: Database, split: int) -> None:
    """Decide on one split's functions; `kept` holds those of the earlier ones.

    Only functions that neither body nor near drops compete for their source: an earlier one that is dropped
    leaves it to a later one.
    """
    database.run(f"""
        create or replace temp table known_bodies as
            select distinct own.id
            from (select id, body from bodies join functions using (row) where split = {split}) own
            join (select body from bodies join functions using (row) semi join kept using (id)) using (body);
        create or replace temp table judged as
            select id, source,
                id in (from known_bodies) as body,
                source in (
                    select b from alike join kept on source = a
                    union all select a from alike join kept on source = b) as near
            from functions where split = {split};
        insert into kept
            select min(id), {split}, source
            from judged anti join kept using (source) where not body and not near group by source;
        insert into dropped
            select judged.id, case when kept.id < judged.id then 'exact' when body then 'body' else 'near' end
            from judged left join kept using (source) where kept.id is distinct from judged.id""")


def _cluster(database: Database) -> None:
    """Find the smallest id that each kept function is joined to by near duplicates of its split.

    Every function moves under the smallest one beside it; the functions so reached take the edges over, until
    none is left. Each round leaves fewer functions with edges, most rounds half of them at most.
    """
    database.run("""
        create temp table edges as
            select least(x.id, y.id) as a, greatest(x.id, y.id) as b
            from alike join kept x on x.source = a join kept y on y.source = b where x.split = y.split;
        create table roots as select distinct id, id as root from (select unnest([a, b]) as id from edges)""")
    while database.size("edges"):
        database.run(
            "create or replace temp table moves as select b as id, min(a) as root from edges group by b"
        )
        _shorten_moves(database)
        database.run("""
            create or replace table roots as
                select roots.id, coalesce(moves.root, roots.root) as root
                from roots left join moves on moves.id = roots.root;
            create or replace temp table edges as
                select distinct least(a, b) as a, greatest(a, b) as b from (
                    select coalesce(x.root, a) as a, coalesce(y.root, b) as b
                    from edges left join moves x on x.id = a left join moves y on y.id = b)
                where a <> b""")


def _shorten_moves(database: Database) -> None:
    """Until no function moves under one that moves itself; the way halves each time."""
    while database.size("moves x join moves y on y.id = x.root"):
        database.run("""
            create or replace temp table moves as
                select x.id, coalesce(y.root, x.root) as root
                from moves x left join moves y on y.id = x.root""")


_FATES = """
    create table fates as
        select functions.place, functions.key, first.key as cluster, null::varchar as reason
        from kept join functions using (id) left join roots using (id)
        join functions first on first.id = coalesce(root, kept.id)
        union all
        select place, key, null, reason from dropped join functions using (id)"""
