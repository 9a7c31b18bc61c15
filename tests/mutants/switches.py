"""A copy of the tree that holds every mutant of some files at once, each behind a switch.

cargo-mutants says what to change: file, place, replacement. A build for each would take days, so each change is written
beside what it replaces, `if crate::mutant::on(N) { changed } else { as it was }`, and one build serves all: a process
with `MUTANT=N` in its environment is mutant N. With `MUTANT_REACHED=FILE` it tells which switches it came to.

What changes no types can be switched; the compiler refuses the rest, most of it because it would refuse the mutant too.
"""

import dataclasses
import pathlib
import re

import tree_sitter
import tree_sitter_rust

PARSER = tree_sitter.Parser(tree_sitter.Language(tree_sitter_rust.language()))

# What is put somewhere, where it is not `if on(N) { … }`.
GUARD, VALUE, ALL, NONE = "a guard", "nothing", "what is emptied", "how it is emptied"

MODULE = """//! Which mutant this process is.
#![allow(missing_docs)]
use std::{env, fs, io::Write as _, sync::{OnceLock, atomic::{AtomicBool, Ordering}}};

static CHOSEN: OnceLock<usize> = OnceLock::new();
static REACHED: OnceLock<Option<std::ffi::OsString>> = OnceLock::new();
static SEEN: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];

pub fn on(number: usize) -> bool {
    let chosen = *CHOSEN.get_or_init(|| env::var("MUTANT").ok().and_then(|it| it.parse().ok()).unwrap_or(usize::MAX));
    if let Some(file) = REACHED.get_or_init(|| env::var_os("MUTANT_REACHED")) {
        if !SEEN[number].swap(true, Ordering::Relaxed) {
            let told = fs::OpenOptions::new().create(true).append(true).open(file);
            let _ = told.and_then(|mut file| file.write_all(format!("{number}\\n").as_bytes()));
        }
    }
    chosen == number
}
"""


@dataclasses.dataclass
class Mutant:
    """One change, as cargo-mutants lists it."""

    file: str
    line: int
    column: int
    start: int  # bytes
    end: int
    text: str  # "replace == with != in agree"
    source: str  # the line it is in
    genre: str
    replacement: str
    returns: str
    name: str = ""  # unique, and without line numbers, so that it survives changes elsewhere
    which: int = 1  # of those that are called the same in one line
    number: int = -1

    def __str__(self):
        return f"{self.file}:{self.line}:{self.column}: {self.text}"


def mutants(root, listed):
    """What `cargo mutants --list --json` says, with places in bytes."""
    found, texts, seen = [], {}, {}
    for it in listed:
        file = it["file"]
        if file not in texts:
            source = (pathlib.Path(root) / file).read_text()
            texts[file] = source.split("\n"), Offsets(source)
        lines, offsets = texts[file]
        start, end = it["span"]["start"], it["span"]["end"]
        text = re.sub(r"^[^ ]*: ", "", it["name"], count=1)
        mutant = Mutant(
            file, start["line"], start["column"], offsets.at(**start), offsets.at(**end), text,
            lines[start["line"] - 1].strip(), it["genre"], it["replacement"], (it.get("function") or {}).get("return_type") or "")
        same = (file, text, mutant.source)
        seen[same] = seen.get(same, 0) + 1
        mutant.which = seen[same]
        mutant.name = " | ".join(same) + (f" | {seen[same]}" if seen[same] > 1 else "")
        found.append(mutant)
    return found


class Offsets:
    """Lines and columns (of characters, from 1) as bytes."""

    def __init__(self, text):
        self.lines, self.starts = text.split("\n"), [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line.encode()) + 1)

    def at(self, line, column):
        return self.starts[line - 1] + len(self.lines[line - 1][: column - 1].encode())


class Unswitchable(Exception):
    """No expression is found around what is to change."""


def up_to(node, kinds):
    while node is not None and node.type not in kinds:
        node = node.parent
    return node


class File:
    """A source file with its switches."""

    def __init__(self, text, mutants):
        self.bytes = text.encode()
        self.tree = PARSER.parse(self.bytes)
        self.wraps = {}  # (start, end) of an expression -> [(mutant, changed text)]
        self.before = {}  # place -> [(mutant, text put there)]
        self.cut = {}  # (start, end) -> what is there instead
        self.refused = []
        for mutant in mutants:
            try:
                self.switch(mutant)
            except Unswitchable as why:
                self.refused.append((mutant, str(why) or "no switch"))

    def text(self, start, end):
        return self.bytes[start:end].decode()

    def at(self, mutant):
        return self.tree.root_node.descendant_for_byte_range(mutant.start, max(mutant.start, mutant.end - 1) + 1)

    def changed(self, node, mutant):
        """The text of a node, with the change in it."""
        return self.text(node.start_byte, mutant.start) + mutant.replacement + self.text(mutant.end, node.end_byte)

    def wrap(self, node, mutant, changed):
        self.wraps.setdefault((node.start_byte, node.end_byte), []).append((mutant, changed))

    def function(self, node):
        """Switches are run, so what holds them cannot be run by the compiler."""
        function = up_to(node, {"function_item"})
        for child in function.children if function else ():
            if child.type == "function_modifiers" and b"const" in child.text:
                word = next(it for it in child.children if it.type == "const")
                self.cut[(word.start_byte, word.end_byte)] = ""

    def switch(self, mutant):
        node = self.at(mutant)
        self.function(node)
        match mutant.genre:
            case "FnValue":
                body = up_to(node, {"block"})
                function = up_to(node, {"function_item"})
                body = function.child_by_field_name("body") if function else body
                if mutant.replacement == "::std::iter::empty()":
                    # of another type than what it replaces, so that one is emptied
                    self.before.setdefault(body.start_byte + 1, []).append((mutant, ALL))
                    self.before.setdefault(body.end_byte - 1, []).append((mutant, NONE))
                    return
                if mutant.replacement.startswith("::std::iter::once("):
                    # nor would it compile alone where references are due
                    raise Unswitchable("another type behind impl Iterator")
                value = "" if mutant.replacement == "()" else f" {mutant.replacement}"
                self.before.setdefault(body.start_byte + 1, []).append((mutant, f"return{value};"))
            case "BinaryOperator":
                whole = up_to(node, {"binary_expression", "compound_assignment_expr", "let_chain"})
                if whole is not None and whole.type == "let_chain":
                    raise Unswitchable("a chain of lets has no ||")
                if whole is None or whole.child_by_field_name("operator").start_byte != mutant.start:
                    raise Unswitchable
                self.wrap(whole, mutant, self.changed(whole, mutant))
            case "UnaryOperator":
                whole = up_to(node, {"unary_expression"})
                if whole is None:
                    raise Unswitchable
                self.wrap(whole, mutant, self.changed(whole, mutant))
            case "MatchArm":
                arm = up_to(node, {"match_arm"})
                if arm is None or arm.start_byte != mutant.start:
                    raise Unswitchable
                pattern = arm.child_by_field_name("pattern")
                guard = pattern.child_by_field_name("condition")
                if guard is not None:
                    self.wrap(guard, mutant, "false")
                else:
                    self.before.setdefault(pattern.end_byte, []).append((mutant, GUARD))
                    # where the compiler says that not all cases are there any more
                    value = up_to(arm, {"match_expression"}).child_by_field_name("value")
                    self.before.setdefault(value.start_byte, []).append((mutant, VALUE))
            case "MatchArmGuard":
                pattern = up_to(node, {"match_pattern"})
                guard = pattern and pattern.child_by_field_name("condition")
                if guard is None:
                    raise Unswitchable
                self.wrap(guard, mutant, mutant.replacement)
            case "StructField":
                whole = up_to(node, {"struct_expression"})
                end = mutant.end
                while self.bytes[end:end + 1] in (b",", b" ", b"\n"):
                    end += 1
                changed = self.text(whole.start_byte, mutant.start) + self.text(end, whole.end_byte)
                self.wrap(whole, mutant, changed)
            case other:
                raise SystemExit(f"cargo-mutants has a kind of mutants that is not known here: {other}: {mutant}")

    def written(self, left_out, made=None):
        """The text with its switches, and where in it which mutant stands: (start, end, mutant) in bytes.

        What cannot be switched, a constant, may be made.
        """
        out, places, at = [], [], 0
        cut = self.cut | ({(made.start, made.end): made.replacement} if made else {})

        def put(text):
            nonlocal at
            out.append(text)
            at += len(text.encode())

        events = sorted(self.wraps, key=lambda it: (it[0], -it[1]))

        def plain(start, end):
            points = sorted(
                [(place, place, "before") for place in self.before if start <= place < end]
                + [(a, b, "cut") for a, b in cut if start <= a and b <= end])
            here = start
            for a, b, kind in points:
                put(self.text(here, a))
                here = b
                if kind == "cut":
                    put(cut[(a, b)])
                    continue
                for mutant, text in self.before[a]:
                    if mutant.number in left_out:
                        continue
                    begun = at
                    on = f"crate::mutant::on({mutant.number})"
                    if text is VALUE:
                        places.append((at, at + 400, mutant))
                        continue
                    put({GUARD: f" if !{on}", ALL: " let all = {", NONE: f"}}; all.filter(|_| !{on}) "}.get(text)
                        or f" if {on} {{ {text} }}")
                    places.append((begun, at, mutant))
            put(self.text(here, end))

        def render(start, end, wraps):
            here = start
            i = 0
            while i < len(wraps):
                a, b = wraps[i]
                j = i + 1
                while j < len(wraps) and wraps[j][1] <= b:
                    j += 1
                plain(here, a)
                inner, choices = wraps[i + 1:j], self.wraps[(a, b)]
                choices = [(mutant, text) for mutant, text in choices if mutant.number not in left_out]
                begun = at
                if choices:
                    put("(")
                for mutant, text in choices:
                    branch = at
                    put(f"if crate::mutant::on({mutant.number}) {{ {text} }} else ")
                    places.append((branch, at, mutant))
                if choices:
                    put("{ ")
                render(a, b, inner)
                if choices:
                    put(" })")
                    places.extend((begun, at, mutant) for mutant, _ in choices)
                here = b
                i = j
            plain(here, end)

        render(0, len(self.bytes), events)
        return "".join(out), places


class Places:
    """Which mutants the compiler's complaints are about."""

    def __init__(self):
        self.of = {}

    def set(self, file, places):
        self.of[file] = places

    def around(self, file, start, end):
        """The mutants of the narrowest switch around these bytes."""
        holding = [(b - a, mutant) for a, b, mutant in self.of.get(file, ()) if a <= start and end <= b]
        if not holding:
            return []
        narrowest = min(width for width, _ in holding)
        return [mutant for width, mutant in holding if width == narrowest]
