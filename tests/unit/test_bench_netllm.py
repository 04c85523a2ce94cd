"""The cost comparison with NetLLM's code: its arithmetic, its plan, its page, its workers on a tiny model, and a smoke run."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from controllers.api import AbrObservation, AbrSession, Chunk
from netllm.bench import published as theirs
from netllm.bench.ours import Ours
from netllm.bench.worker import Used, answer, measured, peak_rss_bytes, recorded
from testbed.bench import command, costs, netllm, published
from testbed.bench.netllm import Contender, NetllmSettings
from testbed.errors import TestbedError, UserError
from tests.unit.tiny_models import ROPE, a_session, save_tiny

CHECKOUT = Path(__file__).parents[2]
NETLLM = Path(os.environ.get("NETLLM_CHECKOUT") or CHECKOUT.parent / "NetLLM")
"""Where a checkout of NetLLM's code is looked for."""


def settings(**more) -> NetllmSettings:
    return NetllmSettings(netllm=NETLLM, **more)


def test_late_decisions_stand_for_the_steady_state():
    cpu_s = [0.1 * i for i in range(20)] + [5.0] * 7 + [9.0]
    found = netllm.decided(cpu_s, [2 * value for value in cpu_s])
    assert (found["late_cpu_s"], found["late_wall_s"]) == (5.0, 10.0)
    assert found["session_cpu_s"] == pytest.approx((19.0 + 35.0 + 9.0) / 28)


def test_an_optimiser_step_is_shared_by_32_windows():
    """4 windows of 1 s each and one optimiser step of 0.32 s: a window bears 0.01 s of it, a decision a 20th of 1.01 s."""
    found = theirs.shared(Used(4.32, 8.64), 0.32, 4)
    assert found["cpu_s"] == pytest.approx(1.01 / 20)
    assert found["wall_s"] == pytest.approx(2.02 / 20)


def test_work_is_measured_in_cpu_time_and_wall_time():
    used = measured(lambda: sum(range(300_000)))
    assert 0 < used.cpu_s < used.wall_s + 0.1
    assert Used(2.0, 4.0).over(4) == {"cpu_s": 0.5, "wall_s": 1.0}
    assert peak_rss_bytes() > 1e7


def test_the_states_are_netllms():
    """By hand from its `evaluate.py`: 2 MB in 4 s of a third level, then of the second."""
    video = a_session(4).video
    session = AbrSession("x", video, 4)
    chunks = (Chunk(0, 2, 2_000_000, 4.0, 4.0, 4.0), Chunk(1, 1, 500_000, 0.5, 0.0, 7.5), Chunk(2, 0, 1, 0.1, 0.0, 64.0, 4.5))
    first, second = theirs.states(session, chunks)
    share = [bitrate / video.bitrates_bps[-1] for bitrate in video.bitrates_bps]
    assert first[:, -1] == pytest.approx([share[2], 0.4, 0.5, 0.4, video.sizes_bytes[1][-1] / 1e6, 3 / 4])
    assert second[2, -2:] == pytest.approx([0.5, 1.0]) and second[3, -2:] == pytest.approx([0.4, 0.05])
    assert second[4] == pytest.approx(np.array(video.sizes_bytes[2]) / 1e6)
    assert not first[:4, :-1].any()


def test_contenders_take_turns():
    contenders = netllm.contenders_of(["fused", "separate"])
    steps = list(netllm.plan(settings(repetitions=2), contenders))
    cases = [(rank, phase, threads) for rank, phase, threads, *_ in (step_key(step) for step in steps)]
    assert list(dict.fromkeys(cases)) == [
        (128, "decide", 1),
        (128, "decide", 2),
        (128, "train", 1),
        (128, "train", 2),
        (16, "decide", 1),
        (16, "train", 1),
    ]
    for case in set(cases):
        here = [step for step in steps if step_key(step)[:3] == case]
        for _, turn in itertools.groupby(here, key=lambda step: step["repetition"]):
            wanted = contenders if case[0] == 128 and case[2] == 1 else contenders[: netllm.MAIN]
            assert [step["contender"] for step in turn] == [each.key for each in wanted]


def step_key(step) -> tuple:
    return step["rank"], step["phase"], step["threads"], step["repetition"]


def test_each_way_of_making_tokens_is_measured():
    found = netllm.contenders_of(["fused", "separate"])
    assert [(each.published, each.dtype, each.tokens) for each in found] == [
        (True, "float32", ""),
        (True, "bfloat16", ""),
        (False, "bfloat16", "fused"),
        (False, "bfloat16", "separate"),
        (False, "float32", "fused"),
    ]
    assert len({each.key for each in found}) == len({each.label for each in found}) == 5
    assert Contender("ours", "x", "float32").published is False


def test_different_backbones_are_not_compared():
    good = [1.0, 2.0, 3.0]
    netllm.agree({"a": ("float32", good), "b": ("float32", [1.0, 2.0, 3.0005]), "c": ("bfloat16", [1.01, 2.0, 3.05])})
    with pytest.raises(TestbedError, match=r"b and a have different backbones: outputs are 0.1\d apart, wanted at most 0.001"):
        netllm.agree({"a": ("float32", good), "b": ("float32", [1.5, 2.0, 3.0])})


def document(ours_ms: float = 20.0) -> dict:
    """Two repetitions, between which the host became twice as fast."""
    rows = []
    for key, cost_ms in ((costs.PUBLISHED[0], 200.0), (costs.PUBLISHED[1], 80.0), ("ours_fused_bfloat16", ours_ms)):
        where = {"contender": key, "rank": 128}
        rows.append({"phase": "load", **where, "repetition": 0, "tokens": 8, "trained": 1_500_000})
        for repetition in (0, 1):
            seconds = cost_ms / 1e3 / (repetition + 1)
            names = [f"{what}_{time}_s" for what in ("late", "session", "train") for time in ("cpu", "wall")]
            memory = {"deciding_bytes": 2**30, "training_bytes": 2**31, "decisions": 20, "at_once": 20}
            rows.append({"phase": "decide", **where, "threads": 1, "repetition": repetition, **dict.fromkeys(names, seconds), **memory})
    host = {"os": "an OS", "kernel": "6", "cores": 2, "cpu_model": "a CPU", "load_1min": 0.5}
    return {
        "command": "scripts/bench netllm --netllm ../NetLLM",
        "utc": "2026-01-02T03:04:05+00:00",
        "took_s": 61.0,
        "commit": "abc",
        "host": host,
        "load_after": 1.5,
        "settings": {"chunks": 48, "quick": False, "llm": "tiny", "trace": "mine", "repetitions": 2},
        "published": {"commit": "def", "changed": False},
        "rows": rows,
        "contenders": {costs.PUBLISHED[0]: "theirs", costs.PUBLISHED[1]: "theirs, bf16", "ours_fused_bfloat16": "ours"},
        "versions": {costs.PUBLISHED[0]: {"torch": "2"}, costs.PUBLISHED[1]: {"torch": "2"}, "ours_fused_bfloat16": {"torch": "3"}},
    }


def test_the_page_shows_ratios_within_repetitions_and_says_what_is_missed():
    text = costs.markdown(document())
    assert "| theirs | 150.0 (100.0 to 200.0) |" in text
    assert "| ours | 10.00 (10.00 to 10.00) | 4.00 (4.00 to 4.00) |" in text
    assert "as published (float32) | at least 6 | 10.00 (10.00 to 10.00) | met, 10, too |" in text
    assert "in bfloat16 | at least 6 | 4.00 (4.00 to 4.00) | **missed** |" in text
    assert "| ours | 8 (8 to 8)" not in text and "| ours | 8 | 1.50 | 1,024 (1,024 to 1,024) | 2,048 (2,048 to 2,048) |" in text
    assert "NetLLM: torch 2; this testbed: torch 3" in text and "def, unchanged" in text
    assert "| met |" in costs.markdown(document(ours_ms=30.0))


@pytest.mark.parametrize("wrong", [{"repetitions": 0}, {"ranks": ()}, {"threads": (0,)}, {"chunks": 5}, {"chunks": 100}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError):
        settings(**wrong)


def test_a_checkout_that_is_not_netllms_is_refused(tmp_path, capsys):
    assert command.command(["netllm", "--netllm", str(tmp_path)]) == 2
    assert "wanted a checkout of NetLLM" in capsys.readouterr().err


def test_an_environment_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: slow\nERROR: no route to host\nhint: none")
    monkeypatch.setattr(published.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(TestbedError, match=r"NetLLM's environment can't be made \(ERROR: no route to host\), wanted a virtual environment"):
        published.environment(tmp_path)


@pytest.fixture
def sessions(tmp_path):
    path = tmp_path / "traces"
    path.mkdir()
    (path / "a.txt").write_text("".join(f"{t} {0.8 + t % 3:.3f}\n" for t in range(60)))
    return netllm._record(settings(trace=str(path), sessions=3, chunks=12), tmp_path / "sessions.json")


def test_sessions_are_recorded_for_both(sessions):
    session, played = recorded(sessions)
    assert (session.chunks, len(played), [chunk.index for chunk in played[0]]) == (12, 3, list(range(12)))
    assert isinstance(AbrObservation(session, played[0][:3], 4.0).next_sizes_bytes, tuple)


def test_our_worker_decides_every_chunk_and_learns_from_whole_sessions(sessions, tmp_path):
    torch.set_num_threads(1)
    llm = str(save_tiny(tmp_path / "llm"))
    ours = Ours()
    for tokens in ours.variants()["tokens"]:
        loaded = ours.load(llm=llm, dtype="float32", rank=4, sessions=str(sessions), tokens=tokens)
        assert len(loaded["probe"]) == ROPE["hidden_size"]
        decided = answer(ours, {"do": "decide", "session": 4, "threads": 1})
        assert len(decided["cpu_s"]) == len(decided["wall_s"]) == 11 and decided["peak_rss_bytes"] > 0
        trained = ours.train(first=2, threads=1)
        assert trained["decisions"] % 11 == 0 and trained["cpu_s"] > 0
        ours._training.switch.remove()
    with pytest.raises(TestbedError, match="asked to 'fly'"):
        answer(ours, {"do": "fly"})


def test_a_worker_that_fails_says_why(tmp_path):
    fails = pytest.raises(TestbedError, match=r"this testbed could not load: .*worker_that_is_not")
    with netllm._worker("this testbed", sys.executable, "worker_that_is_not", tmp_path) as worker, fails:
        worker.ask("load")


@pytest.mark.timeout(900)
def test_a_smoke_run_beside_netllms_code(tmp_path, monkeypatch):
    """Everything of the command, on a small random backbone."""
    try:
        published.checkout(NETLLM)
    except UserError as error:
        pytest.skip(f"no NetLLM code here (NETLLM_CHECKOUT names its folder): {error}")
    torch.manual_seed(3)
    llm = tmp_path / "llm"
    LlamaForCausalLM(LlamaConfig(**ROPE | {"hidden_size": 192}, max_position_embeddings=512)).save_pretrained(llm)
    traces = tmp_path / "traces"
    traces.mkdir()
    (traces / "a.txt").write_text("".join(f"{t} {0.8 + t % 3:.3f}\n" for t in range(60)))
    try:
        text = netllm.netllm(settings(quick=True, llm=str(llm), trace=str(traces), write=tmp_path / "page.md"))
    except TestbedError as error:
        if "environment can't be made" in str(error):
            pytest.skip(str(error))
        raise
    assert "NetLLM's code, bfloat16" in text and "this testbed, fused tokens, bfloat16" in text and "smoke run" in text
    assert (tmp_path / "page.md").read_text() == text
