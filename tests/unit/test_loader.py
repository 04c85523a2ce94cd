"""References to policies: what they name, and one clear sentence for each way to get one wrong."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, Optional

import msgspec
import pytest

from controllers.abr.fixed import Fixed
from controllers.abr.robust_mpc import RobustMPC
from controllers.api import AbrObservation, AbrPolicy
from controllers.describe import Question
from controllers.loader import ABR_FOLDER, PolicyReference, discover, load, load_all, parse_reference, raised
from controllers.options import typed_options
from testbed.errors import UserError
from testbed.sim.abr import run_session
from tests.abr_cases import session, varied

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

MINE = '''
from controllers.api import AbrObservation, AbrPolicy


class Mine(AbrPolicy):
    """Half way up."""

    colour = "#123456"

    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def decide(self, observation: AbrObservation) -> int:
        return observation.video.level_at_fraction(self.share)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_discovery_reads_the_folder(tmp_path: Path) -> None:
    (tmp_path / "zeta.py").touch()
    (tmp_path / "alpha.py").touch()
    (tmp_path / "__init__.py").touch()
    (tmp_path / "notes.txt").touch()
    assert list(discover(tmp_path)) == ["alpha", "zeta"]
    assert {"fixed", "rate", "bba", "bola", "panda", "robust_mpc"} <= set(discover())
    assert discover()["bba"] == ABR_FOLDER / "bba.py"


@pytest.mark.parametrize(
    ("text", "target", "options"),
    [
        ("bba", "bba", ()),
        (" robust_mpc+jumps=adjacent+chunk_index=late ", "robust_mpc", (("jumps", "adjacent"), ("chunk_index", "late"))),
        ("~/a+b/mine.py+x=1", "~/a+b/mine.py", (("x", "1"),)),
        ("mine.py:Second+x=a=b", "mine.py:Second", (("x", "a=b"),)),
        ("pack.age:Class", "pack.age:Class", ()),
    ],
)
def test_references_are_split(text: str, target: str, options: tuple[tuple[str, str], ...]) -> None:
    reference = parse_reference(text)
    assert (reference.target, reference.options) == (target, options)
    assert parse_reference(reference.canonical) == PolicyReference(text.strip(), target, options)


def test_a_named_policy() -> None:
    factory = load("robust_mpc+jumps=adjacent+robust=false")
    assert (factory.name, factory.label) == ("robust_mpc+jumps=adjacent+robust=false",) * 2
    assert (factory.colour, factory.citation) == (RobustMPC.colour, RobustMPC.citation)
    policy = factory()
    assert isinstance(policy, RobustMPC)
    assert (policy.jumps, policy.late, policy.robust) == ("adjacent", 0, False)
    assert factory() is not policy
    assert (load("bba").name, load("bba").label) == ("bba", "BBA")


def test_a_users_file_runs_and_can_be_found_from_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = load("mine.py+share=1")
    assert (factory.name, factory.label, factory.colour) == ("mine+share=1", "mine+share=1", "#123456")
    assert load("./mine.py").label == "mine"
    assert run_session(varied(), session(3), factory(), 1)[-1].level == 5
    monkeypatch.chdir("/")
    assert load(factory.reference.canonical)().share == 1.0  # type: ignore[attr-defined]
    monkeypatch.setenv("HOME", str(folder))
    assert load("~/mine.py").name == "mine"


def test_two_files_of_one_name_do_not_meet(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "mine.py").write_text(MINE.replace("0.5", "1.0"))
    assert (load("mine.py")().share, load("other/mine.py")().share) == (0.5, 1.0)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"policy 'mine' is the name of both .*/mine.py and .*/other/mine.py, wanted each name once"):
        load_all(["mine.py", "other/mine.py"])


def test_a_policy_file_may_import_its_neighbours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (folder / "apart").mkdir()
    (folder / "apart" / "a_neighbour.py").write_text("SHARE = 0.25\n")
    (folder / "apart" / "mine.py").write_text("from a_neighbour import SHARE\n" + MINE.replace("0.5", "SHARE"))
    assert load("apart/mine.py")().share == 0.25  # type: ignore[attr-defined]


def test_a_class_is_named_when_there_are_several(folder: Path) -> None:
    (folder / "two.py").write_text(MINE + MINE.replace("class Mine", "class Second").replace("#123456", "#654321"))
    with pytest.raises(UserError, match=r"two\.py: holds 2 policies \(Mine, Second\), wanted one, or one named: two\.py:Mine"):
        load("two.py")
    assert load("two.py:Second").colour == "#654321"
    assert load("two.py:Second").name == "two:Second", "beside two.py:First"
    with pytest.raises(UserError, match=r"two\.py: has no AbrPolicy 'Thrid', wanted one of Mine, Second"):
        load("two.py:Thrid")


def test_an_importable_class() -> None:
    assert load("controllers.abr.fixed:Fixed+level=2")().level == 2  # type: ignore[attr-defined]
    assert load("controllers.abr.fixed:Fixed").name == "Fixed"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("robst_mpc", "policy 'robst_mpc' is unknown, did you mean robust_mpc?"),
        ("zzz", "policy 'zzz' is unknown, wanted one of bba"),
        ("", "policy '' is empty, wanted a name"),
        ("+level=1", "policy '+level=1' is empty"),
        ("fixed+level", "policy 'fixed+level': option 'level' is incomplete, wanted name=value"),
        ("fixed+level=", "option 'level=' is incomplete"),
        ("fixed+level=1+level=2", "option 'level' comes twice"),
        ("fixed+levl=1", "option 'levl' is unknown, did you mean level?"),
        ("fixed+zzz=1", "option 'zzz' is unknown, wanted one of level"),
        ("fixed+level=x", "policy 'fixed+level=x': option 'level' is 'x', wanted a whole number"),
        ("bba+cushion_s=wide", "option 'cushion_s' is 'wide', wanted a finite number"),
        ("bba+cushion_s=nan", "option 'cushion_s' is 'nan', wanted a finite number"),
        ("robust_mpc+robust=maybe", "option 'robust' is 'maybe', wanted true or false"),
        ("robust_mpc+jumps=some", "option 'jumps' is 'some', wanted one of all, adjacent"),
        ("none.py", "none.py does not exist, wanted a Python file with an AbrPolicy"),
        ("./folder/none", "none does not exist"),
        (f"{'x' * 300}.py", "xxx can't be read (File name too long), wanted a Python file with an AbrPolicy"),
        ("/.py", "policy file /.py does not exist"),
        ("/proc/self/fd/", "policy file /proc/self/fd is no file"),
        ("json:", "policy 'json:' names no class of a module, wanted package.module:Class"),
        (":Class", "policy ':Class' names no class of a module"),
        ("..sibling:Class", "policy '..sibling:Class' names no class of a module"),
        ("no.such.module:Class", "policy module 'no.such.module' can't be imported"),
        ("json:Decoder", "json: has no AbrPolicy 'Decoder', wanted a class that extends controllers.api.AbrPolicy"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(reference: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load(reference)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x = 1\ndef broken(:\n", "broken.py:2: syntax error (invalid syntax)"),
        ("import math\n\nmath.nope()\n", "broken.py:3: importing it raised AttributeError: module 'math' has no attribute 'nope'"),
        ("x = 1\n", "broken.py: holds no policy, wanted a class that extends controllers.api.AbrPolicy and defines decide"),
        ("from controllers.abr.bba import BBA\n", "broken.py: holds no policy"),
        ("from controllers.api import AbrPolicy\nclass Lazy(AbrPolicy):\n    pass\n", "broken.py: holds no policy"),
        ("import sys\nsys.exit(3)\n", "broken.py:2: importing it raised SystemExit: 3"),
        ("raise ValueError('a\\nb')\n", "broken.py:1: importing it raised ValueError: a b"),
        (MINE + "    citation = None\n", "policy 'broken': citation is None, wanted a text"),
        (MINE + "    colour = 'rgb(1, 2, 3)'\n", "policy 'broken': colour is 'rgb(1, 2, 3)', wanted #rrggbb"),
    ],
)
def test_a_users_file_that_cannot_be_used(folder: Path, content: str, sentence: str) -> None:
    (folder / "broken.py").write_text(content)
    with pytest.raises(UserError) as caught:
        load("broken.py")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


class _Typed(AbrPolicy):
    def __init__(self, needed: int, maybe: float | None = None, mode: Literal[1, 2] = 1, text: str = "", *, flag: bool = False) -> None:
        pass

    def decide(self, observation: AbrObservation) -> int:
        return 0


class _OrNone(AbrPolicy):
    def __init__(
        self,
        mode: Literal["a", "b"] | None = None,
        first: None | Literal[1, 2] = None,  # noqa: RUF036 (either order)
        flag: bool | None = None,
        text: Optional[str] = None,  # noqa: UP045 (the older way to write it)
    ) -> None:
        pass

    def decide(self, observation: AbrObservation) -> int:
        return 0


def test_types_that_only_a_checker_can_read_hinder_nobody_who_gives_no_option(folder: Path) -> None:
    (folder / "checked.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\nfrom controllers.api import AbrPolicy\nif TYPE_CHECKING:\n"
        "    import numpy as np\nclass Checked(AbrPolicy):\n    def __init__(self, gains: np.ndarray | None = None):\n"
        "        pass\n    def decide(self, observation):\n        return 0\n"
    )
    assert load("checked.py")().decide(None) == 0
    with pytest.raises(UserError, match=r"types of its options can't be read \(NameError: name 'np' is not defined\)"):
        load("checked.py+gains=3")


def test_an_option_that_no_text_can_give_is_refused() -> None:
    class Listed(_Typed):
        def __init__(self, some: list[int]) -> None:
            pass

    with pytest.raises(UserError, match=r"option 'some' is of type list\[int\], which no text can give"):
        typed_options(Listed, (("some", "1"),), "here")


def test_options_take_the_annotated_types() -> None:
    given = (("needed", "3"), ("maybe", "0.5"), ("mode", "2"), ("text", "a b"), ("flag", "Yes"))
    assert typed_options(_Typed, given, "here") == (("needed", 3), ("maybe", 0.5), ("mode", 2), ("text", "a b"), ("flag", True))
    assert typed_options(Fixed, (), "here") == ()
    with pytest.raises(UserError, match=r"here: option 'needed' has no default, wanted \+needed=value"):
        typed_options(_Typed, (), "here")

    given = (("mode", "b"), ("first", "2"), ("flag", "no"), ("text", "a b"))
    assert typed_options(_OrNone, given, "here") == (("mode", "b"), ("first", 2), ("flag", False), ("text", "a b"))
    for name, wanted in (("mode", "one of a, b"), ("first", "one of 1, 2"), ("flag", "true or false")):
        with pytest.raises(UserError, match=f"here: option '{name}' is 'zzz', wanted {wanted}"):
            typed_options(_OrNone, ((name, "zzz"),), "here")

    class Either(AbrPolicy):
        def __init__(self, level: int | str = 1, share: Literal["auto"] | float = "auto", nothing: None = None) -> None:
            pass

        def decide(self, observation: AbrObservation) -> int:
            return 0

    for text, level in (("3", 3), ("low", "low")):
        assert typed_options(Either, (("level", text),), "here") == (("level", level),)
    assert typed_options(Either, (("share", "auto"), ("nothing", "x")), "here") == (("share", "auto"), ("nothing", "x"))
    assert typed_options(Either, (("share", "0.5"),), "here") == (("share", 0.5),)
    with pytest.raises(UserError, match="here: option 'share' is 'wide', wanted one of auto or a finite number"):
        typed_options(Either, (("share", "wide"),), "here")

    class Untold(AbrPolicy):
        def __init__(self, share=20.0, count=3, flag=True, mode="a", maybe=None, some=(1, 2)) -> None:  # type: ignore[no-untyped-def]
            pass

        def decide(self, observation: AbrObservation) -> int:
            return 0

    given = (("share", "1"), ("count", "4"), ("flag", "no"), ("mode", "3"), ("maybe", "3"), ("some", "3"))
    expected = (("share", 1.0), ("count", 4), ("flag", False), ("mode", "3"), ("maybe", "3"), ("some", "3"))
    assert repr(typed_options(Untold, given, "here")) == repr(expected)
    with pytest.raises(UserError, match="here: option 'share' is 'wide', wanted a finite number"):
        typed_options(Untold, (("share", "wide"),), "here")

    class Bare(AbrPolicy):
        def decide(self, observation: AbrObservation) -> int:
            return 0

    with pytest.raises(UserError, match="option 'x' is unknown, wanted none: this policy takes no option"):
        typed_options(Bare, (("x", "1"),), "here")


def asked(*references: str, start: bool = True) -> tuple[int, Any, str]:
    """Exit code, answer and standard error of the process that describes policies."""
    question = Question(references=references, session=session(3) if start else None, seed=1)
    command = [sys.executable, "-m", "controllers.describe"]
    done = subprocess.run(command, input=msgspec.json.encode(question), capture_output=True, env=ENVIRONMENT, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr.decode()


def test_the_command_describes_or_refuses() -> None:
    code, rows, errors = asked("bba", "fixed+level=2")
    assert (code, errors) == (0, "")
    assert [row["name"] for row in rows] == ["bba", "fixed+level=2"]
    assert rows[0].keys() == {"name", "label", "colour", "citation", "reference", "source_sha256", "options_sha256", "options"}
    assert rows[0]["options"] == ["reservoir_s=5.0", "cushion_s=10.0"]
    sentence = f"policy 'bbba' is unknown, did you mean bba? (known: {', '.join(discover())}), or a file (mine.py), or package.module:Class"
    assert asked("bba", "bbba") == (2, {"event": "fault", "sentence": sentence}, "")


def test_what_a_policy_prints_is_no_message(folder: Path) -> None:
    loud = "import os, sys\nprint('hello')\nos.write(1, b'again')\nsys.stderr.write('and again')\nassert sys.stdin.read() == ''\n"
    (folder / "loud.py").write_text(loud + MINE.replace("self.share = share", "self.share = share; print('x' * 200_000)"))
    code, rows, errors = asked("loud.py")
    assert (code, [row["name"] for row in rows]) == (0, ["loud"])
    assert "hello" in errors
    (folder / "loud.py").write_text(loud + "raise ValueError('a\\nb')\n")
    code, fault, _ = asked("loud.py")
    assert code == 2
    assert fault["sentence"] == f"{folder}/loud.py:6: importing it raised ValueError: a b, wanted a Python file with an AbrPolicy"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("self.share = share", "raise OSError('no\\nfile')"), "it raised OSError: no file (mine.py:11)"),
        (("self.share = share", "raise SystemExit(0)"), "it raised SystemExit: 0 (mine.py:11)"),
        (
            ("def decide", "def reset(self, session, seed):\n        session.video.sizes_bytes[99]\n\n    def decide"),
            "it raised IndexError: tuple index out of range (mine.py:14)",
        ),
    ],
)
def test_a_policy_that_cannot_start_the_session_is_told_before_anything_runs(folder: Path, change: tuple[str, str], sentence: str) -> None:
    (folder / "mine.py").write_text(MINE.replace(*change))
    code, fault, _ = asked("bba", "mine.py")
    assert (code, fault["sentence"]) == (2, f"policy 'mine': starting a session with it failed, {sentence}")
    assert asked("bba", "mine.py", start=False)[0] == 0


def test_a_thread_that_a_policy_starts_does_not_hold_the_answer(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE.replace("self.share = share", "threading.Thread(target=threading.Event().wait).start()"))
    (folder / "mine.py").write_text("import threading\n" + (folder / "mine.py").read_text())
    assert asked("mine.py")[0] == 0


def test_starting_every_policy_imports_no_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("raise RuntimeError('torch was imported')")
    code, rows, errors = asked(*discover())
    assert (code, errors) == (0, "")
    assert len(rows) == len(discover())


def test_describing_every_policy_imports_neither_torch_nor_mininet() -> None:
    code = "import sys; from controllers.loader import *; load_all(list(discover())); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "transformers", "mininet"}


def test_a_module_of_the_working_directory_is_found_and_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine.py").write_text("from controllers.abr.bba import BBA\n\n\nclass Mine(BBA):\n    pass\n")
    (tmp_path / "controllers.py").write_text("raise SystemExit('a file of the user hides ours')")
    code = "from controllers.loader import load; print(load('lab.mine:Mine').name)"
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Mine\n"), done.stderr


WEIGHED = """
from controllers.api import AbrObservation, AbrPolicy


class Weighed(AbrPolicy):
    def __init__(self, weights: str = "", llm: str = "") -> None:
        self.weights = weights

    def decide(self, observation: AbrObservation) -> int:
        return 0
"""


def test_files_that_options_name_are_found_from_anywhere_and_told_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "w.py").write_text(WEIGHED)
    (folder / "a.npz").write_bytes(b"first")
    (folder / "backbone").mkdir()
    (folder / "backbone" / "config.json").write_text("{}")
    (folder / "median").touch()
    found = load("w.py+weights=a.npz+llm=./backbone:random")
    assert found.name == "w+weights=a.npz+llm=./backbone:random"
    assert found.reference.canonical == f"{folder}/w.py+weights={folder}/a.npz+llm={folder}/backbone:random"
    assert dict(found.arguments)["weights"] == f"{folder}/a.npz"
    assert load("w.py+weights=median").reference.options == (("weights", "median"),), "a name, though a file is called like it"
    for nothing in ("", "+weights=missing.npz", "+weights=/missing/a.npz", "+weights=" + 300 * "a" + ".npz"):
        assert load(f"w.py{nothing}").options_sha256 == ""

    before = found.options_sha256
    assert before.startswith(f"weights {hashlib.sha256(b'first').hexdigest()}, llm ")
    monkeypatch.chdir("/")
    assert load(found.reference.canonical).options_sha256 == before
    (folder / "backbone" / "config.json").write_text("{ }")
    assert load(found.reference.canonical).options_sha256 not in (before, "")


@pytest.mark.parametrize(
    ("decide", "told"),
    [
        ("raise ValueError('a \\udce9 b')", "raised ValueError: a \\udce9 b (odd.py:"),
        ("raise Mute()", "raised Mute: a message that raised ZeroDivisionError (odd.py:"),
    ],
)
def test_whatever_a_policy_raises_can_be_told(folder: Path, decide: str, told: str) -> None:
    """A file name that is no UTF-8 stands in a message like that."""
    mute = "class Mute(Exception):\n    def __str__(self): return 1 / 0\n"
    body = f"class Odd(AbrPolicy):\n    def decide(self, observation): {decide}\n"
    (folder / "odd.py").write_text(f"from controllers.api import AbrPolicy\n{mute}{body}")
    with pytest.raises(Exception) as caught:
        load("odd.py")().decide(None)
    said = raised(caught.value)
    assert said.startswith(told) and said.encode()
