"""Validation: what is asked of a definition, and that no definition can do more than be refused."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waiting import wait_until

from avapd.control import package
from avapd.control.catalog import Definition
from avapd.control.validator import CHECKER, CODE, INTERFACE, Fault, Validator
from avapd.control.validator.child import code_fault, interface_fault

MINOR = sys.version_info.minor


def definition(code: str | bytes = "x = 1", interface: str = "[]") -> Definition:
    return Definition("a", "function", interface, code.encode() if isinstance(code, str) else code, "")


@pytest.fixture(scope="module")
def strict() -> Iterator[Validator]:
    with contextlib.closing(Validator(grammar=MINOR, interfaces=True)) as made:
        yield made


def fault(validator: Validator, *definitions: Definition) -> Fault | None:
    """The last verdict."""
    return validator.faults(definitions)[-1]


SOUND_CODE = [
    "", "x = 1", "def run(task, context):\n    return 1\n", "ñandú = '日本語'", "'\\N{SNOWMAN}'", "'\\d'", "9**9**9",
    "# -*- coding: latin-1 -*-\nx = 'ñ'", "import os; os.abort()", "x = 1\r\ny = 2\r\n",
    "async def f():\n    await g()",
]  # fmt: skip
FAULTY_CODE = {
    "x =": "line 1: invalid syntax",
    "x = 1\n\tdef": "line 2: unexpected indent",
    "return 1": "line 1: 'return' outside function",
    "def f():\n    nonlocal q": "line 2: no binding for nonlocal 'q' found",
    "x\0": "source code string cannot contain null bytes",
    "(" * 5000: "line 1: too many nested parentheses",
    "-" * 200_000 + "1": "too large or too deeply nested to be compiled",
    "x = 1" + " + 1" * 100_000: "nested too deeply",
    "x = 1\n" * 2_000_000: "too large or too deeply nested to be compiled",
}
SOUND_INTERFACES = ["[]", "[{}]", ' [ {"item": "ñ", "n": 1e999} ]\n', '[{"a": [[[]]]}, {}]']
FAULTY_INTERFACES = {
    "": "not JSON: Expecting value, line 1 column 1",
    "{}": "a JSON object, not an array of objects",
    "null": "a JSON null, not an array of objects",
    '"[]"': "a JSON string, not an array of objects",
    "[1]": "element 1 of the array is a JSON number, not an object",
    "[{}, []]": "element 2 of the array is a JSON array, not an object",
    "[{}": "not JSON: Expecting ',' delimiter, line 1 column 4",
    "[{'a': 1}]": "not JSON: Expecting property name enclosed in double quotes, line 1 column 3",
    '[{"a": NaN}]': "not JSON: NaN is no value",
    "[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("code", SOUND_CODE)
def test_code_that_compiles_is_sound(strict: Validator, code: str) -> None:
    """Whatever it would do: nothing is run."""
    assert fault(strict, definition(code)) is None


@pytest.mark.parametrize("code", FAULTY_CODE, ids=lambda code: repr(code[:20]))
def test_code_that_does_not_compile_is_told_with_its_line(strict: Validator, code: str) -> None:
    """And what would exhaust the compiler is refused like anything else."""
    found = fault(strict, definition(code))
    assert found is not None
    assert found.reason == CODE
    assert FAULTY_CODE[code] in found.error


@pytest.mark.parametrize("interface", SOUND_INTERFACES)
def test_an_interface_is_an_array_of_objects(strict: Validator, interface: str) -> None:
    """Blanks and order are nobody's business."""
    assert fault(strict, definition(interface=interface)) is None


@pytest.mark.parametrize("interface", FAULTY_INTERFACES, ids=lambda text: repr(text[:20]))
def test_any_other_interface_is_told(strict: Validator, interface: str) -> None:
    """With the place where it ceases to be one."""
    assert fault(strict, definition(interface=interface)) == Fault(INTERFACE, FAULTY_INTERFACES[interface])


INTERFACES = st.sampled_from(["[]", "[1]", "{"]) | st.text(max_size=10)


@given(st.lists(st.tuples(st.text(max_size=20), INTERFACES), max_size=80))
@settings(max_examples=50, deadline=None)
def test_a_batch_is_answered_one_by_one_in_its_order(strict: Validator, pairs: list[tuple[str, str]]) -> None:
    """Against the same questions asked without a process, for any text."""
    found = strict.faults([definition(code, interface) for code, interface in pairs])
    for (code, interface), one in zip(pairs, found, strict=True):
        plain = interface_fault(interface) or code_fault(code, MINOR)
        assert (one.error if one else "") == plain.encode("utf-8", "backslashreplace")[:290].decode()


def test_the_grammar_may_be_that_of_an_older_python() -> None:
    """For interpreters that are not as new as ours."""
    with contextlib.closing(Validator(grammar=8, interfaces=True)) as older:
        found = fault(older, definition("match x:\n    case 1: pass"))
        assert found is not None
        assert "3.10" in found.error
        assert fault(older, definition("if (x := 1): pass")) is None


def test_each_check_can_be_switched_off() -> None:
    """With both off there is no process at all."""
    with contextlib.closing(Validator(grammar=0, interfaces=True)) as made:
        assert made.faults([definition("x ="), definition(interface="{}")])[0] is None
        assert fault(made, definition("x =", "{}")) is not None
    with contextlib.closing(Validator(grammar=MINOR, interfaces=False)) as made:
        assert fault(made, definition("x = 1", "{}")) is None
        assert fault(made, definition("x =", "{}")) is not None
    with contextlib.closing(Validator(grammar=0, interfaces=False)) as made:
        before = children()
        assert fault(made, definition("x =", "{}")) is None
        assert children() == before


def test_in_a_package_the_source_is_looked_at(strict: Validator) -> None:
    """Signed or not, what is compiled is what an interpreter would run."""
    assert fault(strict, definition(package.sign(b"x = 1", b"key"))) is None
    assert fault(strict, definition(package.sign(b"x =", b"key"))) is not None


# --- what a definition can do to us --------------------------------------------------------------------------------


def children() -> set[int]:
    """The processes of validators that run."""
    found = set()
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("validator" in word for word in process.cmdline()):
                found.add(process.pid)
    return found


def only_child(before: set[int]) -> int:
    (pid,) = wait_until(lambda: children() - before)
    return pid


def test_only_the_definition_that_ends_the_process_is_refused() -> None:
    """The others of its batch are judged as they are, before and after it."""
    slow = definition("x = [" + "[]," * 1_000_000 + "]")
    batch = [definition(), definition("x ="), slow, definition("z = 1"), definition("x =")]
    with contextlib.closing(Validator(grammar=MINOR, interfaces=True, cpu_seconds=0.1)) as made:
        found = made.faults(batch)
    assert [one.reason if one else None for one in found] == [None, CODE, CHECKER, None, CODE]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_somebody_kills_condemns_nothing(number: signal.Signals) -> None:
    """What it was asked about is asked again, alone, of another one."""
    before = children()
    with contextlib.closing(Validator(grammar=MINOR, interfaces=True)) as made:
        made.faults([definition()])
        os.kill(only_child(before), number)
        assert made.faults([definition(), definition("x ="), definition()])[0::2] == [None, None]


def test_the_process_has_nothing_of_ours() -> None:
    """No environment, no descriptor but the one it is asked through, limits on all it could take, first to go."""
    before = children()
    with contextlib.closing(Validator(grammar=MINOR, interfaces=True)) as made:
        made.faults([definition()])
        pid = only_child(before)
        folder = Path(f"/proc/{pid}")
        assert (folder / "environ").read_bytes() == b""
        assert sorted(path.name for path in (folder / "fd").iterdir()) == ["0", "1", "2"]
        assert (folder / "oom_score_adj").read_text(encoding="ascii").strip() == "1000"
        limits = (folder / "limits").read_text(encoding="ascii")
        for name, most in (("open files", 3), ("file size", 0), ("processes", 0), ("core file size", 0)):
            assert f"Max {name}".ljust(26) + str(most) in limits
        assert psutil.Process(pid).nice() >= 10
    assert wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_who_waits_when_it_is_closed_gets_an_error() -> None:
    """A stop does not wait for a long check."""
    made = Validator(grammar=MINOR, interfaces=True)
    failed: list[OSError] = []

    def ask() -> None:
        try:
            while True:
                made.faults([definition("x = 1\n" * 1000)] * 64)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    before = children()
    thread.start()
    only_child(before)
    made.close()
    thread.join(10)
    assert failed


def test_a_host_without_processes_is_an_error_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """No definition is blamed for it."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with contextlib.closing(Validator(grammar=MINOR, interfaces=True)) as made, pytest.raises(FileNotFoundError):
        made.faults([definition()])


def test_many_are_shared_out() -> None:
    """Every child is asked, and the answers keep their order."""
    before = children()
    with contextlib.closing(Validator(grammar=MINOR, interfaces=True, children=3)) as made:
        found = made.faults([definition(f"x{number} =" if number % 7 == 0 else "x = 1") for number in range(1000)])
        assert [number for number, one in enumerate(found) if one] == list(range(0, 1000, 7))
        assert len(children() - before) == 3
