"""The model of a disk that loses its power, and the reader of traces, on what is written by hand."""

from pathlib import Path
from random import Random

import pytest
from power_disk import (
    ROOT,
    Disk,
    MakeDirectory,
    Rename,
    Resize,
    SyncBegins,
    SyncEnds,
    Write,
    everything,
    nothing,
    only,
    some,
)
from power_trace import Reader, Told

FILE, OTHER, INNER = 1, 2, 3


def after(*operations) -> Disk:
    disk = Disk()
    for operation in operations:
        disk.do(operation)
    return disk


def sync(node: int, *part: int) -> tuple[SyncBegins, SyncEnds]:
    return SyncBegins(7, node, *part), SyncEnds(7)


def any_of(disk: Disk, states: int = 200) -> list[dict]:
    chance = Random(5)  # noqa: S311 - a test's choices
    found: list[dict] = []
    for _ in range(states):
        tree = disk.after_power_loss(some(chance))
        if tree not in found:
            found.append(tree)
    return found


def test_a_file_is_lost_without_its_name_and_empty_without_its_content():
    disk = after(Rename(ROOT, {"a": FILE}), Write(FILE, 0, b"words"))
    assert disk.after_power_loss(nothing) == {}
    assert disk.after_power_loss(everything) == {"a": b"words"}
    assert sorted(any_of(disk), key=repr) == [{"a": b""}, {"a": b"words"}, {}]


def test_a_synced_file_needs_its_directory_synced_too():
    disk = after(Rename(ROOT, {"a": FILE}), Write(FILE, 0, b"words"), *sync(FILE))
    assert disk.after_power_loss(nothing) == {}
    assert after_also(disk, *sync(ROOT)).after_power_loss(nothing) == {"a": b"words"}


def after_also(disk: Disk, *operations) -> Disk:
    for operation in operations:
        disk.do(operation)
    return disk


def test_a_later_write_may_be_there_without_an_earlier_one():
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), Write(FILE, 0, b"one"), Write(FILE, 3, b"two"))
    assert {"a": b"\0\0\0two"} in any_of(disk)


def test_a_sync_covers_what_was_written_before_it_began_once_it_has_ended():
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), Write(FILE, 0, b"one"), SyncBegins(1, FILE))
    disk.do(Write(FILE, 3, b"two"))
    assert disk.after_power_loss(nothing) == {"a": b""}
    disk.do(SyncEnds(1))
    assert disk.after_power_loss(nothing) == {"a": b"one"}


def test_two_syncs_at_once_cover_a_write_once():
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), Resize(FILE, 2), SyncBegins(1, FILE), SyncBegins(2, FILE))
    after_also(disk, SyncEnds(1), Write(FILE, 0, b"long"), *sync(FILE), SyncEnds(2))
    assert disk.after_power_loss(nothing) == {"a": b"long"}


def test_a_part_of_a_map_is_synced_by_itself():
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), Resize(FILE, 8192))
    after_also(disk, Write(FILE, 8, b"x"), Write(FILE, 4096, b"y"), *sync(FILE, 4096, 8192))
    (content,) = disk.after_power_loss(nothing).values()
    assert (len(content), content[8], content[4096]) == (8192, 0, ord("y"))


def test_a_word_of_a_map_is_any_of_those_since_it_was_synced():
    words = [Write(FILE, 0, bytes([value])) for value in range(4)]
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), *words[:2], *sync(FILE), *words[2:])
    assert {tree["a"] for tree in any_of(disk)} == {b"\1", b"\2", b"\3"}


def test_a_rename_is_whole_but_may_be_missing():
    disk = after(Rename(ROOT, {"old": FILE, "new": OTHER}), Write(OTHER, 0, b"before"), *sync(OTHER), *sync(ROOT))
    after_also(disk, Write(FILE, 0, b"after"), *sync(FILE), Rename(ROOT, {"old": None, "new": FILE}))
    assert sorted(any_of(disk), key=len) == [{"new": b"after"}, {"new": b"before", "old": b"after"}]


def test_one_change_may_be_there_alone():
    newest = Rename(ROOT, {"b": OTHER})
    disk = after(Rename(ROOT, {"a": FILE}), Write(FILE, 0, b"x"), newest)
    assert disk.after_power_loss(only(newest)) == {"b": b""}


def test_a_removed_file_may_be_there_again():
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), Rename(ROOT, {"a": None}))
    assert sorted(any_of(disk), key=len) == [{}, {"a": b""}]


def test_a_directory_is_found_by_its_name_in_another():
    disk = after(MakeDirectory(INNER), Rename(ROOT, {"in": INNER}), Rename(INNER, {"a": FILE}), *sync(INNER))
    assert disk.after_power_loss(nothing) == {}
    assert disk.after_power_loss(everything) == {"in": None, "in/a": b""}


def test_a_long_write_is_torn_between_sectors():
    disk = after(Rename(ROOT, {"a": FILE}), *sync(ROOT), Resize(FILE, 1536), *sync(FILE))
    disk.do(Write(FILE, 256, b"x" * 1024))
    found = {tree["a"] for tree in any_of(disk)}
    assert len(found) == 2**3
    assert {content[256:512] for content in found} == {b"x" * 256, bytes(256)}


def hexed(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def read(*lines: str) -> list:
    return list(Reader(Path("/d"), Path("/told")).read("\n".join(lines)))


def opened(path: str, handle: int, flags: str = "O_RDWR|O_CREAT|O_CLOEXEC") -> str:
    return f"7 openat(AT_FDCWD, {hexed(path)}, {flags}, 0600) = {handle}"


def told(text: str) -> str:
    return f"7 write(3, {hexed(text)}, {len(text)}) = {len(text)}"


def test_a_trace_is_read():
    found = read(
        f"7 mkdir({hexed('/d/in')}, 0700) = 0",
        opened("/elsewhere", 3),
        f"7 write(3, {hexed('no')}, 2) = 2",
        opened("/d/in/a", 4),
        f"7 write(4, {hexed('on')}, 2) = 2",
        f"7 write(4, {hexed('es')}, 2)      = 2",
        f"7 pwrite64(4, {hexed('x')}, 1, 9) = 1",
        "7 ftruncate(4, 0) = 0",
        "7 fallocate(4, 0, 0, 4096) = 0",
        f"7 rename({hexed('/d/in/a')}, {hexed('/d/in/b')}) = 0",
        f"7 unlink({hexed('/d/in/c')}) = -1 ENOENT (No such file or directory)",
        f"7 link({hexed('/d/in/b')}, {hexed('/d/in/c')}) = 0",
        f"7 unlink({hexed('/d/in/b')}) = 0",
        "7 +++ exited with 0 +++",
    )
    made, a = 1, 2
    assert found == [
        MakeDirectory(made),
        Rename(ROOT, {"in": made}),
        Rename(made, {"a": a}),
        Write(a, 0, b"on"),
        Write(a, 2, b"es"),
        Write(a, 9, b"x"),
        Resize(a, 0),
        Resize(a, 4096),
        Rename(made, {"a": None, "b": a}),
        Rename(made, {"c": a}),
        Rename(made, {"b": None}),
    ]


def test_a_trace_of_a_system_that_has_only_the_newer_calls_is_read():
    found = read(
        f"7 mkdirat(AT_FDCWD, {hexed('/d/in')}, 0700) = 0",
        opened("/d/in/a", 4),
        f"7 renameat(AT_FDCWD, {hexed('/d/in/a')}, AT_FDCWD, {hexed('/d/in/b')}) = 0",
        f"7 linkat(AT_FDCWD, {hexed('/d/in/b')}, AT_FDCWD, {hexed('/d/in/c')}, 0) = 0",
        f"7 unlinkat(AT_FDCWD, {hexed('/d/in/b')}, 0) = 0",
    )
    changes = [{"in": 1}, {"a": 2}, {"a": None, "b": 2}, {"c": 2}, {"b": None}]
    assert [event.names for event in found if isinstance(event, Rename)] == changes


def test_a_sync_begins_before_it_ends_and_a_failed_one_never_does():
    found = read(
        opened("/d/a", 4),
        "7 fdatasync(4 <unfinished ...>",
        f"8 pwrite64(4, {hexed('x')}, 1, 0) = 1",
        "7 <... fdatasync resumed>) = 0",
        "7 fsync(4) = -1 EIO (Input/output error)",
    )
    made, *rest = found
    assert made == Rename(ROOT, {"a": 1})
    assert rest == [SyncBegins(1, 1), Write(1, 0, b"x"), SyncEnds(1), SyncBegins(2, 1)]


def test_a_descriptor_is_free_when_its_closing_begins():
    found = read(
        opened("/d/a", 4),
        "7 close(4 <unfinished ...>",
        opened("/d/b", 4).replace("7 ", "8 ", 1),
        "7 <... close resumed>) = 0",
        f"8 write(4, {hexed('x')}, 1) = 1",
    )
    assert found[-1] == Write(2, 0, b"x")


def test_what_is_told_of_a_map_is_stores_of_what_is_new_in_it():
    found = read(
        opened("/told", 3),
        opened("/d/a", 4),
        "7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED, 4, 0) = 0x7000",
        told('{"mapped": "/d/a", "words": [5, 0]}'),
        told('{"mapped": "/d/a", "words": [5, 6]}'),
        "7 msync(0x8000, 4096, MS_SYNC) = 0",
        told('{"done": 1}'),
    )
    assert found == [
        Rename(ROOT, {"a": 1}),
        Write(1, 0, (5).to_bytes(8, "little")),
        Write(1, 8, (6).to_bytes(8, "little")),
        SyncBegins(1, 1, 4096, 8192),
        SyncEnds(1),
        Told({"done": 1}),
    ]


def test_a_map_in_the_place_of_one_that_is_gone_is_another_file_s():
    found = read(
        opened("/d/a", 4),
        "7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED, 4, 0) = 0x7000",
        opened("/d/b", 5),
        "7 mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED, 5, 0) = 0x6000",
        "7 msync(0x7000, 4096, MS_SYNC) = 0",
    )
    assert found[-2:] == [SyncBegins(1, 2, 4096, 8192), SyncEnds(1)]


@pytest.mark.parametrize("line", ["7 sendfile(4, 9, NULL, 12) = 12", f"7 rmdir({hexed('/d/a')}) = 0"])
def test_a_call_that_the_reader_does_not_know_is_refused(line):
    with pytest.raises(AssertionError):
        read(opened("/d/a", 4), line)


def test_a_string_that_strace_cut_is_refused():
    with pytest.raises(AssertionError, match="cut"):
        read(opened("/d/a", 4), f"7 write(4, {hexed('x')}..., 9) = 9")
