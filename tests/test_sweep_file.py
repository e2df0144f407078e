"""The file of a sweep: nothing that was finished is lost, and what was changed is refused."""

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minibn import sweep, sweep_file

RECORD = b'{"configuration": {"x": 1}, "result": 1, "seconds": 0}'  # of an earlier version: no checksum
OTHER = b'{"configuration": {"x": 2}, "result": 4, "seconds": 0}'
CUT = b'{"configuration": {"x": 2}, "res'


def square(configuration):
    return configuration["x"] ** 2


def results(path, xs=(1, 2)):
    """(results of a sweep that squares, for which of the `xs` it ran)."""
    calls = []

    def counted(configuration):
        calls.append(configuration["x"])
        return square(configuration)

    with ThreadPoolExecutor(1) as executor:
        records = sweep.run(counted, sweep.grid(x=xs), path, executor, progress=False)
    assert [r["result"] for r in sweep.read(path)] == [r["result"] for r in records]
    return [r["result"] for r in records], calls


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r", b"\n\n", b""], ids=["unix", "windows", "mac", "empty lines", "none"])
@pytest.mark.parametrize("last", [True, False])
def test_records_count_whatever_the_line_ends(tmp_path, end, last):
    (tmp_path / "s").write_bytes(RECORD + end + OTHER + (end if last else b""))
    assert results(tmp_path / "s", (1, 2, 3)) == ([1, 4, 9], [3])
    assert len((tmp_path / "s").read_bytes().splitlines()[-1]) < 120  # the new record has a line of its own


@pytest.mark.parametrize(("tail", "rest"), [
    (b"\n" + CUT, CUT), (b"\r" + CUT, CUT), (b"\n{", b"{"), (b"\n" + OTHER + b"  # checked", OTHER + b"  # checked"),
    (b"\n" + bytes(70), bytes(70)), (bytes(70), bytes(70)), (b"\n" + CUT + bytes(9), CUT + bytes(9)), (CUT, CUT)],
    ids=["cut", "cut, mac", "one letter", "a note", "power loss", "power loss in a line", "power loss in a record", "one line"])
def test_an_end_that_is_no_whole_record_is_kept_in_another_file_and_its_run_is_done_again(tmp_path, tail, rest):
    (tmp_path / "s").write_bytes(RECORD + tail)
    with pytest.warns(UserWarning, match="the end of .*s, b'.*'…, is no whole record and is left out") as warned:
        assert [r["result"] for r in sweep.read(tmp_path / "s")] == [1]
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match=r"the end of .*s is no whole record.* It is now in .*s\.cut, and the run") as warned:
        assert results(tmp_path / "s") == ([1, 4], [2])
    assert warned[0].filename == __file__
    assert (tmp_path / "s.cut").read_bytes() == rest + b"\n"
    with (tmp_path / "s").open("ab") as file:
        file.write(CUT)
    with pytest.warns(UserWarning, match="is no whole record"):
        assert results(tmp_path / "s") == ([1, 4], [])
    assert (tmp_path / "s.cut").read_bytes() == rest + b"\n" + CUT + b"\n"


def test_the_end_stays_in_the_file_if_it_cannot_be_kept_elsewhere(tmp_path):
    (tmp_path / "s").write_bytes(RECORD + b"\n" + CUT)
    (tmp_path / "s.cut").mkdir()
    with pytest.raises(IsADirectoryError, match=r"s\.cut"):
        results(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == RECORD + b"\n" + CUT


@pytest.mark.filterwarnings("error")
def test_a_link_is_followed_whether_its_file_is_there_or_not(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "s")
    assert results(tmp_path / "link") == ([1, 4], [1, 2])
    assert results(tmp_path / "link") == ([1, 4], [])
    assert len(sweep.read(tmp_path / "folder" / "s")) == 2
    (tmp_path / "nowhere").symlink_to(tmp_path / "no" / "s")
    with pytest.raises(FileNotFoundError, match="there is no folder .*no; make it first"):
        results(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="this link leads to itself"):
        results(tmp_path / "loop")


def flipped(content):
    for at in range(len(content)):
        for bit in range(8):
            yield at, content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1:]


@pytest.mark.filterwarnings("ignore:the end of")
def test_a_file_with_any_bit_flipped_is_refused_or_reads_the_same(tmp_path):
    path = tmp_path / "s"
    with ThreadPoolExecutor(1) as executor:
        written = sweep.run(lambda c: {"loss": 2.5e-7 * c["x"], "norm": np.inf}, sweep.grid(x=[1, 2], name=["ü"]), path, executor,
                            progress=False)
    assert sweep.read(path) == written
    content = path.read_bytes()
    allowed, refused = {0: written, len(content) - 1: written[:1]}, 0
    for at, changed in flipped(content):
        path.write_bytes(changed)
        try:
            found = [{name: record[name] for name in ("configuration", "result", "seconds")} for record in sweep.read(path)]
        except ValueError:
            refused += 1
        else:
            assert found == allowed.get(at, written)  # without its line end, the last line is no whole record
    assert refused > 0.9 * 8 * len(content)


def test_a_changed_digit_is_named_by_its_line_and_the_file_is_left_alone(tmp_path):
    assert results(tmp_path / "s") == ([1, 4], [1, 2])
    changed = (tmp_path / "s").read_bytes().replace(b'"result": 4', b'"result": 5')
    (tmp_path / "s").write_bytes(changed)
    message = r"line 2 of .*s was changed after it was written: its checksum differs; remove the line to run it again, or only"
    with pytest.raises(ValueError, match=message):
        sweep.read(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        results(tmp_path / "s", (1, 2, 3))
    assert (tmp_path / "s").read_bytes() == changed
    lines = changed.splitlines()
    (tmp_path / "s").write_bytes(lines[0] + b"\n" + lines[1][:lines[1].index(b', "checksum"')] + b"}\n")
    assert [r["result"] for r in sweep.read(tmp_path / "s")] == [1, 5]  # the change was meant
    (tmp_path / "s").write_bytes(lines[0] + b"\n")
    assert results(tmp_path / "s") == ([1, 4], [2])


def test_a_line_ends_with_its_checksum_and_the_records_have_none(tmp_path):
    with ThreadPoolExecutor(1) as executor:
        records = sweep.run(square, [{"x": 3}], tmp_path / "s", executor, progress=False)
    written = json.loads((tmp_path / "s").read_text())
    assert list(written) == ["configuration", "result", "seconds", "checksum"]
    assert sweep.read(tmp_path / "s") == records
    assert list(records[0]) == ["configuration", "result", "seconds"]
    checksum = zlib.crc32(b'{"configuration": {"a": null, "b": 762}, "result": 1.0}')  # which begins with 00
    assert sweep_file.line({"result": 1.0, "configuration": {"b": 762, "a": None}}) == (
        b'{"result": 1.0, "configuration": {"b": 762, "a": null}, "checksum": "%08x"}\n' % checksum)


def test_a_file_that_another_program_has_written_again_still_reads(tmp_path):
    """Other spaces, another order of the keys, letters in place of \\u…: the same values."""
    with ThreadPoolExecutor(1) as executor:
        records = sweep.run(lambda c: {"b": 1e-5, "a": 1.0}, [{"x": 3, "name": "ü"}], tmp_path / "s", executor, progress=False)
    value = json.loads((tmp_path / "s").read_text())
    for text in (json.dumps(value, separators=(",", ":")), json.dumps(value, sort_keys=True, ensure_ascii=False)):
        (tmp_path / "s").write_text(text + "\n", encoding="utf-8")
        assert sweep.read(tmp_path / "s") == records


@pytest.mark.filterwarnings("error")
def test_files_that_were_joined_read_as_one(tmp_path):
    for name, xs in {"a": (1, 2), "b": (3,)}.items():
        results(tmp_path / name, xs)
    a, b = ((tmp_path / name).read_bytes() for name in "ab")
    for joined in (RECORD + b"\n" + a + b, a.rstrip(b"\n") + b, b + a.replace(b"\n", b"\r\n")):
        (tmp_path / "all").write_bytes(joined)
        assert {r["configuration"]["x"]: r["result"] for r in sweep.read(tmp_path / "all")} == {1: 1, 2: 4, 3: 9}


@pytest.mark.filterwarnings("error")
def test_the_records_of_fashion_mnist_read():
    records = sweep.read(Path(__file__).parent.parent / "docs" / "fashion-mnist" / "data" / "runs.jsonl")
    assert all(0.9 < record["result"]["test_accuracy"] < 1 for record in records)
