"""Whatever is in a file, it is read, or refused by a message that names it: no crash, no hang, no code that is run."""

import copy
import json
import os
import pickle
import resource
import struct
import sys
import time

import hypothesis
import pytest
from faults.formats import FORMATS
from hypothesis import given, settings
from hypothesis import strategies as st

# What would be done with a file that is run, not read.
_FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
_LONGEST = 20.0  # seconds of computing, of what takes milliseconds
_MOST = 2 * 2**30  # bytes, of files of kilobytes
_watching: list[str] = []


def _note(event, arguments):
    if _watching and (event in _FORBIDDEN or (event == "open" and _writes(arguments) and _elsewhere(arguments[0]))):
        _watching.append(f"{event}{arguments}")


def _writes(arguments):
    return isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)


def _elsewhere(path):
    return isinstance(path, str) and not path.startswith((_watching[0], "/dev/")) and "__pycache__" not in path


sys.addaudithook(_note)


def assert_read_or_refused(folder, load):
    """Returns whether it was refused."""
    _watching[:] = [str(folder)]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    told = None
    try:
        load()
    except (ValueError, OSError) as error:
        told = str(error)
    finally:
        done, _watching[:] = _watching[1:], []
    assert not done
    assert time.process_time() - began < _LONGEST
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < _MOST
    assert told is None or str(folder) in told
    return told is not None


@pytest.fixture(params=FORMATS)
def format_(request, tmp_path):
    """A folder, the file in it that is damaged, and what reads it."""
    make, name = FORMATS[request.param]
    load = make(tmp_path)
    file = sorted(tmp_path.glob(name))[0]
    return tmp_path, file, load


def test_what_is_whole_is_read_and_a_pickle_is_not(format_, tmp_path_factory):
    folder, file, load = format_
    assert not assert_read_or_refused(folder, load)
    ran = tmp_path_factory.mktemp("pickles") / "ran"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(ran),)

    file.write_bytes(pickle.dumps(Payload()))
    # Words may be any text, and a last line without its end is one that was being written.
    assert assert_read_or_refused(folder, load) or file.suffix == ".txt" or file.name == "metrics.jsonl"
    assert not ran.exists()


def hollow(whole):
    """A safetensors file without its numbers: every array is empty, and the first has 2^27 rows."""
    (length,) = struct.unpack_from("<Q", whole)
    header = json.loads(whole[8 : 8 + length])
    about = header.pop("__metadata__", {})
    arrays = {name: array | {"shape": [0], "data_offsets": [0, 0]} for name, array in header.items()}
    next(iter(arrays.values()))["shape"] = [2**27 + length, 0]  # another one for each: JAX remembers
    content = json.dumps({"__metadata__": about, **arrays}).encode()
    return struct.pack("<Q", len(content)) + content


SAFETENSORS = [name for name in FORMATS if name.endswith(".safetensors")]


@pytest.mark.parametrize("format_", SAFETENSORS, indirect=True)
def test_empty_arrays_of_huge_shapes_take_no_time(format_):
    folder, file, load = format_
    load()  # what is done once is done
    file.write_bytes(hollow(file.read_bytes()))
    began = time.process_time()
    assert assert_read_or_refused(folder, load)
    assert time.process_time() - began < 3


# Where: a share of the file, mostly of its beginning, where sizes and names are.
WHERE = st.floats(0, 1).map(lambda share: share**3)
BYTES = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [
        b"[",
        b"{",
        b"}",
        b'"',
        b"0",
        b"-",
        b"9" * 30,
        b"1e999",
        b"null",
        b"NaN",
        b"\n",
        b"\0" * 8,
        b"\xff" * 8,
        b"../../x",
    ]
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "drop", "cut", "twice"]), WHERE, BYTES), min_size=1, max_size=4
)
# What a value of JSON becomes; and which: a share of all of them.
VALUES = st.sampled_from(
    [None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), float("-inf"), "", "../../x", "\0", [], [[]], {}]
)
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), VALUES), min_size=1, max_size=3)


def edited(whole, edits):
    for how, where, content in edits:
        place = int(where * len(whole))
        if how == "cut":
            whole = whole[:place]
        elif how == "twice":
            whole = whole[:place] + whole[place : place + 64] + whole[place:]
        else:
            skipped = 0 if how == "insert" else len(content)
            whole = whole[:place] + (b"" if how == "drop" else content) + whole[place + skipped :]
    return whole


def places(content, path=()):
    """Of every value within JSON."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(content, changes):
    for share, value in changes:
        value = copy.deepcopy(value)
        found = list(places(content))
        *path, last = found[int(share * len(found))] or (None,)
        if last is None:
            return value
        inner = content
        for key in path:
            inner = inner[key]
        inner[last] = value
    return content


def is_json(content):
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


def fuzz(format_, count):
    folder, file, load = format_
    whole = file.read_bytes()
    refused = []

    def take(content):
        file.write_bytes(content)
        refused.append(assert_read_or_refused(folder, load))

    options = {"derandomize": True, "deadline": None, "database": None, "report_multiple_bugs": False}

    @settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck), **options)
    @given(EDITS)
    def of_bytes(edits):
        take(edited(whole, edits))

    @settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck), **options)
    @given(CHANGES)
    def of_json(changes):
        take(json.dumps(changed(json.loads(whole), changes)).encode())

    @settings(max_examples=count, suppress_health_check=list(hypothesis.HealthCheck), **options)
    @given(CHANGES)
    def of_lines(changes):
        lines = changed([json.loads(line) for line in whole.splitlines()], changes)
        lines = lines if isinstance(lines, list) else [lines]
        take("".join(f"{json.dumps(line)}\n" for line in lines).encode())

    of_bytes()
    if file.suffix == ".jsonl":
        of_lines()
    elif whole[:1] in (b"{", b"[") and is_json(whole):
        of_json()
    return refused


# Orbax leaves coroutines behind where reading fails.
forgotten = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@forgotten
def test_some_damage(format_):
    assert any(fuzz(format_, 8))


@forgotten
@pytest.mark.slow
def test_much_damage(format_):
    """Thousands of ways in all; fewer of large files."""
    count = 500 if format_[1].stat().st_size < 10**5 else 100
    assert sum(fuzz(format_, count)) > count / 10
