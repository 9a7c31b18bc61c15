"""Lines that were run, by room of src/, against floors. Code of tests in src/ does not count.

A floor is some two points below what was measured when it was set: it is there to notice a room that lost its tests.
None is set yet: it takes a machine that is not shared.
"""

import json
import pathlib
import sys

FLOORS = {}
ROOT = pathlib.Path(__file__).resolve().parents[2]


def tests_from(file):
    """The line at which the tests of a file begin."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.strip() == "#[cfg(test)]":
            return number
    return sys.maxsize


def lines_of(file):
    """Line -> whether it was run, as llvm-cov counts: by the regions that begin in it or reach into it."""
    segments, lines, end = file["segments"], {}, 0
    by_line = {}
    for line, column, count, has_count, entry, gap in segments:
        by_line.setdefault(line, []).append((count, has_count, entry, gap))
        end = max(end, line)
    reaching = None
    for line in range(1, end + 1):
        here = by_line.get(line, [])
        starts = [it for it in here if it[1] and it[2] and not it[3]]
        wrapped = reaching is not None and reaching[1]
        begins_skipped = bool(here) and not here[0][1] and here[0][2]
        if not begins_skipped and (starts or (wrapped and len(starts) == 0)):
            counts = [it[0] for it in starts] + ([reaching[0]] if wrapped else [])
            lines[line] = max(counts) > 0
        if here:
            reaching = here[-1]
    return lines


def main():
    report, *rest = sys.argv[1:]
    wanted = rest[1] if rest[:1] == ["--lines"] else None
    rooms, missed = {}, []
    for file in json.loads(pathlib.Path(report).read_text())["data"][0]["files"]:
        path = pathlib.Path(file["filename"])
        if not path.is_relative_to(ROOT / "src") or path.name == "tests.rs":
            continue
        inside = path.relative_to(ROOT / "src")
        room = inside.parts[0].removesuffix(".rs")
        first_of_tests = tests_from(path)
        for line, run in lines_of(file).items():
            if line < first_of_tests:
                for name in (room, "total"):
                    all_, good = rooms.get(name, (0, 0))
                    rooms[name] = all_ + 1, good + run
                if not run and room == wanted:
                    missed.append(f"src/{inside}:{line}: {path.read_text().splitlines()[line - 1].strip()}")
    status = 0
    print(f"{'room':12} {'lines':>7} {'run':>7} {'%':>6} {'floor':>6}")
    for name, (all_, good) in sorted(rooms.items(), key=lambda it: (it[0] == "total", it[0])):
        share, floor = 100 * good / all_, FLOORS.get(name, 0)
        print(f"{name:12} {all_:7} {good:7} {share:6.1f} {floor:6.1f}{'  BELOW ITS FLOOR' if share < floor else ''}")
        status |= share < floor
    print(*missed, sep="\n")
    raise SystemExit(int(status))


main()
