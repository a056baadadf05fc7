"""The slice of WordNet, and the retrieval tasks that are made of it."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlws.data.beir import read_beir, write_beir
from vlws.data.wordnet import build, intents
from vlws.data.wordnet.intents import INTENTS, Intent, category, intent_of, make, text
from vlws.data.wordnet.synsets import SLICE, meanings, synsets, words
from vlws.data.wordnet.wordings import WORDINGS, wordings
from vlws.errors import InputError

DATA = """  1 This software and database is being provided to you, the LICENSEE
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which exists; "an entity lives"; "it is one"
00001930 03 n 02 physical_entity 0 cup(p) 0 002 @ 00001740 n 0000 ! 00000007 s 0101 | an entity (such as "a cup") here
"""
ADJ = '00000007 00 s 01 cup-like(a) 0 001 & 00001930 n 0000 02 + 01 00 | like a cup; "cup-like; round"\n'


@pytest.fixture
def source(tmp_path) -> Path:
    for part, content in (("noun", DATA), ("adj", ADJ), ("verb", ""), ("adv", "")):
        (tmp_path / f"data.{part}").write_text(content, encoding="latin-1")
    (tmp_path / "cntlist.rev").write_text("cup%1:03:00:: 1 3\n")
    return tmp_path


# --- the slice --------------------------------------------------------------------------------------------------------


def test_the_slice_is_small_and_whole():
    assert SLICE.stat().st_size < 3_000_000
    assert all(0 <= k < len(synsets()) for one in synsets() for _, k in one.relations)
    assert all(one.gloss and one.lemmas and one.part in "nvar" for one in synsets())
    assert all(meanings()[word] for word in words())


def test_known_words_mean_what_they_mean():
    dancer = [synsets()[k] for k in meanings()["dancer"]]
    assert "a performer who dances professionally" in [one.gloss for one in dancer]
    assert {one.concrete for one in dancer} == {True}
    assert any(one.concrete is False for one in synsets())
    assert all(one.concrete is None for one in synsets() if one.part != "n")


def test_a_line_is_read_as_the_manual_says(source):
    found = dict(build.read(source))
    entity, cup, like = found["n", 1740], found["n", 1930], found["a", 7]
    assert (entity.lexicographer, entity.gloss, entity.examples) == (
        "noun.Tops",
        "that which exists",
        ("an entity lives", "it is one"),
    )
    assert cup.lemmas == ("physical entity", "cup")  # underscores are spaces; the marker of position is dropped
    assert cup.relations == (("@", ("n", 1740)), ("!", ("a", 7)))  # satellites are adjectives
    assert like.lemmas == ("cup-like",)
    assert like.examples == ("cup-like; round",)


def test_what_is_physical_lies_below_the_root(source):
    assert build.below(("n", 1740), dict(build.read(source))) == {("n", 1740), ("n", 1930)}


def test_the_builder_names_the_package_that_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"data\.noun is missing: install the Debian package wordnet-base"):
        build.build(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_builder_makes_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "MIN_RELATIONS", 1)
    one, other = (build.build(tmp_path / name, source) / "wordnet.json.gz" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    made = json.loads(gzip.decompress(one.read_bytes()))
    assert made["queries"] == ["cup"]
    assert [row[6] for row in made["synsets"]] == [-1, 0, 1]  # an adjective, an entity, a physical entity


@pytest.mark.skipif(not (build.SOURCE / "data.noun").is_file(), reason="wordnet-base is not installed")
def test_the_shipped_slice_is_what_the_builder_makes(tmp_path):
    assert (build.build(tmp_path) / "wordnet.json.gz").read_bytes() == SLICE.read_bytes()


# --- intents and instructions -----------------------------------------------------------------------------------------


def test_splits_share_no_phrase():
    seen: dict[str, set[str]] = {}
    for slots in WORDINGS.values():
        for by_split in slots.values():
            for split, phrases in by_split.items():
                for phrase in phrases:
                    seen.setdefault(phrase, set()).add(split)
    assert [phrase for phrase, splits in seen.items() if len(splits) > 1] == []


@pytest.mark.parametrize("intent", INTENTS, ids="-".join)
def test_no_instruction_serves_two_intents(intent):
    for split in ("train", "dev", "test"):
        own = set(wordings(*intent, split))
        assert len(own) == len(wordings(*intent, split))
        assert not any(own & set(wordings(*other, split)) for other in INTENTS if other != intent)


def test_what_is_held_out_is_met_in_parts():
    seen = [intent for intent in INTENTS if intent.kind == "seen"]
    for held in (intent for intent in INTENTS if intent.kind == "held out"):
        assert sum(intent.category == held.category for intent in seen) >= 2
        assert any(intent.form == held.form for intent in seen)
    assert not any(intent.category == intents.UNSEEN for intent in seen)


# --- tasks ------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_judgements_follow_from_wordnet(seed):
    task = make(train=12, dev=4, test=6, seed=seed)
    assert {split: len(some) for split, some in task.queries.items()} == {"train": 12, "dev": 4, "test": 6}
    for split, some in task.queries.items():
        for word in some:
            own = meanings()[word]
            near = {*own, *(k for one in own for _, k in synsets()[one].relations)}
            for intent, found in task.relevant[word].items():
                assert 1 <= len(found) <= (1 if split == "train" else intents.MAX_RELEVANT)
                for document in found:
                    k, form = document.split("-")
                    assert (category(synsets()[int(k)]), form) == intent
                    assert int(k) in near
                    assert task.documents[document] == text(synsets()[int(k)], form) != ""
    names = {f"{k}-names" for some in task.queries.values() for word in some for k in meanings()[word]}
    assert not names & task.documents.keys()  # the query's own names would be found by spelling


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000))
def test_no_meaning_is_asked_in_two_splits(seed):
    task = make(train=200, dev=50, test=50, seed=seed)
    of: dict[int, set[str]] = {}
    for split, some in task.queries.items():
        for word in some:
            for k in meanings()[word]:
                of.setdefault(k, set()).add(split)
    assert all(len(splits) == 1 for splits in of.values())


def test_a_collection_speaks_in_its_own_split():
    task = make(train=5, dev=3, test=3)
    for split in ("dev", "test"):
        made = task.collection(split, seed=1)
        assert all(made.instructions[row] in wordings(*intent_of(row), split) for row in made.queries)
        again = task.collection(split, seed=1, wording="train")
        assert all(again.instructions[row] in wordings(*intent_of(row), "train") for row in again.queries)
    assert task.collection("dev", 1) == task.collection("dev", 1)
    assert task.collection("dev", 1).instructions != task.collection("dev", 2).instructions


def test_a_task_is_a_folder_that_the_users_reader_reads(tmp_path):
    made = make(train=5, dev=3, test=3).collection("test")
    write_beir(tmp_path / "wordnet", made, "test")
    assert read_beir(tmp_path / "wordnet", "test") == made


def test_an_intent_is_read_from_the_name_of_its_row():
    assert intent_of("fish and chips|living-gloss") == Intent("living", "gloss")
