"""An index in shards is made part by part, goes on after a kill, grows, and believes nothing that is not whole."""

import json
import re
import resource
import shutil

import numpy as np
import pytest
from processes import children, command, is_alive, until
from test_retrieve import checkpoint

from vlws.errors import InputError
from vlws.files import write_json
from vlws.lab.slots import over
from vlws.retrieve import index, retrieve
from vlws.shards import Index, writing

WORDS = ("owl", "car", "red", "night", "fast", "hunts", "at")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("backbone") / "tiny")


def texts(n, start=0):
    return [" ".join(WORDS[(k // 7**place) % 7] for place in range(5)) for k in range(start, start + n)]


def written(path, n, start=0):
    rows = [{"_id": f"d{k}", "text": text} for k, text in enumerate(texts(n, start), start)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def all_of(folder):
    """ids, texts and vectors of an index."""
    shards = list(Index(folder).shards())
    ids, begun = ([one for shard in shards for one in getattr(shard, name)] for name in ("ids", "texts"))
    return ids, begun, np.concatenate([shard.vectors for shard in shards])


def refused(*sentences):
    return pytest.raises(InputError, match=".*".join(map(re.escape, sentences)))


@pytest.mark.parametrize("jobs", [None, 2])
def test_shards_hold_what_one_holds(tmp_path, backbone, jobs):
    source = written(tmp_path / "a.jsonl", 23)
    index(source, backbone, tmp_path / "one", "cpu")
    done = index(source, backbone, tmp_path / "many", "cpu", shard_size=5, run=over(jobs))
    assert (done["shards"], done["count"], done["reused"]) == (5, 23, 0)
    ids, begun, vectors = all_of(tmp_path / "many")
    wanted = all_of(tmp_path / "one")
    assert (ids, begun) == wanted[:2] == ([f"d{k}" for k in range(23)], texts(23))
    np.testing.assert_allclose(vectors, wanted[2], rtol=1e-5, atol=1e-6)
    found, same = (
        retrieve(["red owl"], tmp_path / name, k=23, device="cpu", jobs=2)["results"] for name in ("one", "many")
    )
    assert [hit["id"] for hit in found[0]["hits"]] == [hit["id"] for hit in same[0]["hits"]]


def test_half_the_disk_costs_little(tmp_path, backbone):
    source = written(tmp_path / "a.jsonl", 9)
    for dtype in ("float16", "float32"):
        index(source, backbone, tmp_path / dtype, "cpu", dtype=dtype, shard_size=4)
    half, whole = (all_of(tmp_path / dtype)[2] for dtype in ("float16", "float32"))
    assert (half.dtype, whole.dtype) == (np.float16, np.float32)
    np.testing.assert_allclose(half, whole, rtol=2**-10, atol=1e-6)
    with refused("dtype='int8' was given; accepted are float16 and float32"):
        index(source, backbone, tmp_path / "int8", "cpu", dtype="int8")


def test_a_source_that_grew_is_encoded_from_its_last_shard_on(tmp_path, backbone):
    source = written(tmp_path / "a.jsonl", 12)
    index(source, backbone, tmp_path / "index", "cpu", shard_size=5)
    written(source, 14)
    done = index(source, backbone, tmp_path / "index", "cpu", shard_size=5)
    assert (done["count"], done["shards"], done["reused"]) == (14, 3, 2)
    assert all_of(tmp_path / "index")[0] == [f"d{k}" for k in range(14)]
    assert len(list((tmp_path / "index" / "shards").iterdir())) == 3  # the shard that was last is gone


def test_an_index_grows(tmp_path, backbone):
    index(written(tmp_path / "a.jsonl", 7), backbone, tmp_path / "index", "cpu", shard_size=5)
    more = written(tmp_path / "b.jsonl", 6, start=7)
    done = index(more, backbone, tmp_path / "index", "cpu", shard_size=5, append=True)
    assert (done["count"], done["shards"]) == (13, 4)
    assert all_of(tmp_path / "index")[:2] == ([f"d{k}" for k in range(13)], texts(13))
    with refused("b.jsonl, line 1, has the id 'd7', which the index has already"):
        index(more, backbone, tmp_path / "index", "cpu", append=True)
    other = checkpoint(tmp_path / "other", seed=1)
    with refused("index has weights_hash", "accepted is the same checkpoint and dtype, or a new folder"):
        index(written(tmp_path / "c.jsonl", 2, start=50), other, tmp_path / "index", "cpu", append=True)
    with refused("index has dtype float32, and what is to be added float16"):
        index(tmp_path / "c.jsonl", backbone, tmp_path / "index", "cpu", append=True, dtype="float16")
    with refused("nowhere is no index (manifest.json is missing)"):
        index(tmp_path / "c.jsonl", backbone, tmp_path / "nowhere", "cpu", append=True)
    assert len(Index(tmp_path / "index")) == 13


def half_made(tmp_path, backbone, after):
    """A run that ends after so many shards."""

    def run(function, jobs):
        for job in jobs[:after]:
            yield function(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index(tmp_path / "a.jsonl", backbone, tmp_path / "index", "cpu", shard_size=5, run=run)


def test_shards_that_are_not_whole_are_not_believed(tmp_path, backbone):
    source = written(tmp_path / "a.jsonl", 23)
    half_made(tmp_path, backbone, after=4)
    with refused("index is no index (it is not finished: the same `vlws index` goes on)"):
        retrieve(["owl"], tmp_path / "index")
    one, two, three, _ = sorted((tmp_path / "index" / "shards").iterdir())
    (one / "shard.json").unlink()
    vectors = bytearray((two / "vectors.npy").read_bytes())
    vectors[-1] ^= 1  # of the same size
    (two / "vectors.npy").write_bytes(vectors)
    (three / "ids.bin").write_bytes(b"d")
    half = tmp_path / "index" / "shards" / ".half.1-new.tmp"
    half.mkdir()
    assert index(source, backbone, tmp_path / "index", "cpu", shard_size=5)["reused"] == 1
    assert not half.exists()
    assert all_of(tmp_path / "index")[1] == texts(23)


def test_an_index_stays_until_the_next_is_whole(tmp_path, backbone):
    written(tmp_path / "a.jsonl", 12)
    index(tmp_path / "a.jsonl", backbone, tmp_path / "index", "cpu", shard_size=5)
    written(tmp_path / "a.jsonl", 12, start=100)
    half_made(tmp_path, backbone, after=2)
    assert all_of(tmp_path / "index")[1] == texts(12)
    assert index(tmp_path / "a.jsonl", backbone, tmp_path / "index", "cpu", shard_size=5)["reused"] == 2
    assert all_of(tmp_path / "index")[1] == texts(12, start=100)


def test_an_index_that_was_changed_is_refused(tmp_path, backbone):
    index(written(tmp_path / "a.jsonl", 7), backbone, tmp_path / "index", "cpu", shard_size=5)
    file = tmp_path / "index" / "manifest.json"
    manifest = json.loads(file.read_text())
    for changed, told in (
        (manifest | {"normalize": True}, "its manifest.json was changed after it was written"),
        (manifest | {"format": 9}, "its manifest.json is of something else"),
        ([], "its manifest.json is of something else"),
    ):
        write_json(file, changed)
        with refused("index is no index", told, "accepted is a folder that `vlws index` wrote"):
            Index(tmp_path / "index")
    write_json(file, manifest)
    shard = tmp_path / "index" / "shards" / manifest["shards"][1]["name"]
    (shard / "texts.bin").write_bytes(b"")
    with refused("index is damaged (", "texts.bin is missing or has another size); make it anew"):
        Index(tmp_path / "index")
    shutil.rmtree(shard)
    with refused("index is damaged ("):
        Index(tmp_path / "index")


def test_two_do_not_write_to_one_index(tmp_path, backbone):
    with writing(tmp_path / "index"), refused("is written to by another process; wait for it, or end it"):
        index(written(tmp_path / "a.jsonl", 3), backbone, tmp_path / "index", "cpu")


def test_a_disk_that_is_full_is_one_sentence(tmp_path, backbone):
    """No file may be larger than 4 kB: the system refuses to write, as a full disk does, and in a slot too."""
    source = written(tmp_path / "a.jsonl", 400)
    for jobs in ((), ("--jobs", 1)):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            process = command("index", source, "--out", tmp_path / "index", "--backbone", backbone, "--json", *jobs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        told, errors = process.communicate(timeout=300)
        assert (process.returncode, json.loads(told)["error"][:14]) == (1, "File too large"), errors
        assert not (tmp_path / "index" / "manifest.json").exists()
        assert list((tmp_path / "index" / "shards").iterdir()) == []


def test_a_command_that_is_killed_goes_on(tmp_path, backbone):
    """SIGKILL, half way, of the process that was started; of a slot: test_gram."""
    source, shards = written(tmp_path / "a.jsonl", 4000), tmp_path / "index" / "shards"
    given = (
        "index",
        source,
        "--out",
        tmp_path / "index",
        "--backbone",
        backbone,
        "--shard-size",
        50,
        "--jobs",
        2,
        "--json",
    )
    process = command(*given)
    until(lambda: len(list(shards.glob("*/shard.json"))) >= 5 or process.poll() is not None)
    running = children(process.pid)
    assert len(running) == 2
    process.kill()
    process.communicate(timeout=120)
    until(lambda: not any(map(is_alive, running)))  # nothing outlives its driver
    assert not (tmp_path / "index" / "manifest.json").exists()
    whole = len([path for path in shards.glob("*/shard.json") if not path.parent.name.startswith(".")])
    assert 5 <= whole < 80
    process = command(*given)
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(told)["reused"] == whole
    ids, begun, _ = all_of(tmp_path / "index")
    assert (ids, begun) == ([f"d{k}" for k in range(4000)], texts(4000))


CONFIG = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

provider = LocalProvider(init_blocks=1, max_blocks=1)
config = Config(
    executors=[HighThroughputExecutor(label="vlws", max_workers_per_node=2, provider=provider, address="127.0.0.1")],
    run_dir={run_dir!r},
)
"""


def test_slots_of_a_cluster_give_the_same(tmp_path, backbone):
    pytest.importorskip("parsl")
    source = written(tmp_path / "a.jsonl", 23)
    (tmp_path / "cluster.py").write_text(CONFIG.format(run_dir=str(tmp_path / "parsl")))
    given = ("--out", tmp_path / "index", "--backbone", backbone, "--shard-size", 5, "--json")
    process = command("index", source, *given, "--parsl", tmp_path / "cluster.py")
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert json.loads(told)["shards"] == 5
    assert all_of(tmp_path / "index")[1] == texts(23)


def test_what_is_appended_is_encoded_as_the_index_is(tmp_path, backbone):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"_id": name, "text": f"an {name}"}) + "\n")
    index(tmp_path / "a.jsonl", backbone, tmp_path / "index")
    done = index(tmp_path / "b.jsonl", None, tmp_path / "index", append=True)
    assert (done["count"], done["backbone"]) == (2, str(backbone))
