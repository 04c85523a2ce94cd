"""The specification: its TOML form, and one sentence for each mistake."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import UserError
from testbed.spec import NOT_FOR_CJS, OF_ONE_TASK, Experiment, from_toml


@given(
    st.builds(
        Experiment,
        trace=st.lists(st.text("abc/_:. \"'\\", min_size=1), max_size=3).map(tuple),
        policies=st.sampled_from(["bba", "bba,bola", "fixed+level=3,~/mine.py"]),
        trials=st.one_of(st.integers(1, 100), st.just("all")),
        seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True).map(tuple),
        parallel=st.one_of(st.none(), st.integers(1, 32)),
        chunks=st.integers(2, 48),
        rtt_ms=st.floats(0, 1000),
        uplink=st.one_of(st.none(), st.sampled_from(["lte/up", "~/mine dir/x.up", "lte:A.up"])),
        queue_packets=st.one_of(st.none(), st.integers(2, 100_000)),
        aqm=st.sampled_from(["droptail", "codel"]),
        link=st.sampled_from(["userspace", "python", "kernel"]),
        repeats=st.integers(0, 9),
        simulate=st.booleans(),
    )
)
def test_toml_gives_the_same_experiment_back(tmp_path_factory: pytest.TempPathFactory, experiment: Experiment) -> None:
    path = tmp_path_factory.mktemp("spec") / "experiment.toml"
    path.write_text(experiment.to_toml())
    assert from_toml(path) == experiment


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("chunkz = 3", "unknown key 'chunkz', did you mean chunks"),
        ("chunks = 'many'", "chunks"),
        ("chunks = 1", "--chunks is 1, wanted 2 to 48"),
        ("seeds = [1, 1]", "--seeds"),
        ("player = 'vlc'", "player"),
        ("rtt_ms = nan", "--rtt-ms is nan"),
        ("= 3", "wanted TOML"),
        ("repeats = 10", "--repeats is 10, wanted 0 to 9"),
        ("queue_packets = 1", "--queue-packets is 1, wanted 2 to 100000"),
        ("aqm = 'red'", "aqm"),
        ("link = 'mahimahi'", "link"),
        ("uplink = ' '", "--uplink is ' ', wanted a set, a folder or a file"),
        ("uplink = ['lte/up']", "uplink"),
        ("policies = ' , '", "at least one policy"),
        ("policies = 'bba,bba'", "each policy once"),
    ],
)
def test_a_bad_spec_is_one_sentence(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        from_toml(path)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_spec_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.toml: No such file"):
        from_toml(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("task", "given", "said"),
    [
        ("cjs", {"aqm": "codel"}, "--aqm is codel, wanted nothing: it is for --task abr and vp"),
        ("cjs", {"trials": 7}, "--trials is 7, wanted nothing: it is for --task abr and vp"),
        (
            "cjs",
            {"cluster": "tcp://host:8786", "cc": "bbr"},
            "--cc is bbr, wanted nothing: it is for emulated executors, not those of --cluster",
        ),
        ("cjs", {"link": "kernel"}, "--link is kernel, wanted nothing: it is for --task abr and vp"),
        ("cjs", {"uplink": "lte"}, "--uplink is lte, wanted nothing"),
        ("vp", {"executors": 5}, "--executors is 5, wanted nothing: it is for --task cjs"),
        ("vp", {"show": True}, "--show is True, wanted nothing: it is for --task abr"),
        ("abr", {"cluster": "tcp://a:1"}, "--cluster is tcp://a:1, wanted nothing: it is for --task cjs"),
        ("abr", {"horizon": 5.0}, "--horizon is 5.0, wanted nothing: it is for --task vp"),
    ],
)
def test_what_a_task_has_no_use_for_is_refused(task, given, said):
    """A run must not seem to have been made with it."""
    with pytest.raises(UserError, match=said):
        Experiment(task=task, **given)


def test_every_option_is_of_one_task_or_of_all():
    fields = {field.name for field in dataclasses.fields(Experiment)}
    named = [*NOT_FOR_CJS, *(name for names in OF_ONE_TASK.values() for name in names)]
    assert set(named) <= fields and len(named) == len(set(named))
