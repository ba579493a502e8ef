import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from corpus_builder.errors import ShardError
from corpus_builder.record import (
    FunctionMeta,
    FunctionRecord,
    Variant,
    function_key,
    record_from_members,
    record_members,
)
from samples import a_record


def test_a_record_survives_its_members() -> None:
    record = a_record(comment="Adds \N{GREEK SMALL LETTER ALPHA} to b.\n")
    members = record_members(record)
    assert list(members) == ["json", "c", "aarch64.gcc12.o2.s", "x86_64.gcc12.o2.s"]
    assert record_from_members(record.key, members) == record


def test_equal_records_have_equal_members_whatever_the_order_of_their_variants() -> None:
    record = a_record()
    reversed_texts = dict(reversed(record.assembly.items()))
    same = FunctionRecord(record.key, record.meta, record.source, reversed_texts)
    assert list(record_members(same).items()) == list(record_members(record).items())


@pytest.mark.parametrize("member", ["json", "c", "aarch64.gcc12.o2.s"])
def test_a_missing_member_is_named(member: str) -> None:
    record = a_record()
    members = record_members(record)
    del members[member]
    with pytest.raises(ShardError, match=f"lacks its member '{member}'"):
        record_from_members(record.key, members)


def test_damaged_or_foreign_metadata_is_refused() -> None:
    members = record_members(a_record())
    with pytest.raises(ShardError, match="damaged"):
        record_from_members("key", {**members, "json": members["json"][:-9]})
    meta = json.loads(members["json"])
    for changed in ({**meta, "surprise": 1}, {**meta, "lines": "one to four"}):
        with pytest.raises(ShardError, match="damaged"):
            record_from_members("key", {**members, "json": json.dumps(changed).encode()})
    with pytest.raises(ShardError, match="damaged"):
        record_from_members("key", {**members, "c": b"\xff"})


def test_metadata_is_frozen() -> None:
    meta: FunctionMeta = a_record().meta
    with pytest.raises(ValidationError):
        meta.name = "other"  # type: ignore[misc]


Identity = tuple[str, str, int, str]
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
identities = st.tuples(words, words, st.integers(1, 9999), words)


@given(identities, identities)
def test_keys_differ_when_identities_do(first: Identity, second: Identity) -> None:
    assert (function_key(*first) == function_key(*second)) == (first == second)


def test_a_key_fits_webdataset_and_never_changes() -> None:
    # A change of this value orphans every reference to a function in published corpora.
    assert function_key("lua", "src/ltable.c", 42, "luaH_get") == "b98af54340d74725e9c07524"


def test_variant_names_are_read_back() -> None:
    variant = Variant("aarch64", "gcc12", "o2")
    assert str(variant) == "aarch64.gcc12.o2"
    assert Variant.parse(str(variant)) == variant
    for wrong in ("aarch64.gcc12", "aarch64", "a.b.c.d", ""):
        with pytest.raises(ValueError, match="unpack"):
            Variant.parse(wrong)
