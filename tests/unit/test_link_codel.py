"""CoDel against its promises, and against a literal transcription of its pseudo-code's state over made-up queues. No clock."""

from math import isqrt

from hypothesis import given
from hypothesis import strategies as st

from testbed.shapers.bottleneck import Bottleneck
from testbed.shapers.capacity import constant
from testbed.shapers.codel import INTERVAL_NS, TARGET_NS, CoDel
from testbed.units import ns_from_s

MS = ns_from_s(1e-3)


def overloaded(seconds, offered_per_s, codel=True, limit_packets=1000, rate_bps=12e6):
    """A link of 1000 packets a second that gets more; (sojourn of each packet in ns by departure, the model)."""
    model = Bottleneck(constant(rate_bps, 0), 0, 10**9, limit_packets, CoDel() if codel else None, max_inside_bytes=10**9)
    sojourns = []
    for i in range(int(seconds * offered_per_s)):
        now_ns = i * ns_from_s(1) // offered_per_s
        while entry := model.take(now_ns):
            sojourns.append((entry.departure_ns, entry.begin_ns - entry.payload))
        model.offer(now_ns, 1500, now_ns)
    return sojourns, model


def test_a_queue_that_never_stands_loses_nothing():
    """A burst of 100 packets each second is gone after 100 ms: good queue, in RFC 8289's words."""
    model = Bottleneck(constant(12e6, 0), 0, 10**9, 0, CoDel())
    out = 0
    for second in range(20):
        while model.take(second * ns_from_s(1)):
            out += 1
        for _ in range(100):
            model.offer(second * ns_from_s(1), 1500)
    assert model.drops["codel"] == 0 and out == 1900


def test_a_standing_queue_is_drained_to_the_target():
    """1.5 % too much: the first drop comes an interval after the queue passed the target, and in the end the delay is about the target."""
    sojourns, model = overloaded(60, 1015)
    late = [sojourn for at, sojourn in sojourns if at > ns_from_s(40)]
    assert model.drops["codel"] > 0 and model.drops["queue"] == 0
    assert sum(late) / len(late) < 3 * TARGET_NS
    unmanaged, _ = overloaded(60, 1015, codel=False)
    assert max(sojourn for _, sojourn in unmanaged) > 100 * TARGET_NS


def test_drops_come_faster_by_the_square_root():
    """Under an overload that never answers, drop k + 1 follows drop k by interval / sqrt(k)."""
    model = Bottleneck(constant(12e6, 0), 0, 10**9, 0, CoDel(), max_inside_bytes=10**9)
    for _ in range(5000):
        model.offer(0, 1500)
    times, before = [], 0
    for now_ns in range(0, 2000 * MS, MS):
        model.advance(now_ns)
        times += [now_ns] * (model.drops["codel"] - before)
        before = model.drops["codel"]
    assert times[0] == TARGET_NS + INTERVAL_NS
    due_ns = times[0]
    for k, at_ns in enumerate(times[1:20], start=1):
        due_ns += isqrt(INTERVAL_NS**2 // k)
        assert 0 <= at_ns - due_ns <= 2 * MS


def test_one_packet_that_waits_is_not_dropped():
    """At 100 kbit/s a packet alone takes 120 ms: what is less than a packet of queue is not to be drained."""
    model = Bottleneck(constant(100e3, 0), 0, 10**9, 0, CoDel())
    for i in range(50):
        model.offer(i * 125 * MS, 1500)
    assert model.drops["codel"] == 0


@given(st.lists(st.tuples(st.integers(0, 30 * MS), st.integers(40, 1500)), min_size=1, max_size=300), st.integers(MS // 10, 200 * MS))
def test_packets_are_served_in_order_or_dropped(gaps, look_ns):
    """However often one looks: the outcome is the same, and no packet is lost to the books."""

    def outcome(every_ns):
        model, out, now_ns = Bottleneck(constant(1e6, 0), 0, 10**9, 0, CoDel()), [], 0
        for i, (gap_ns, size_bytes) in enumerate(gaps):
            for at_ns in range(now_ns, now_ns + gap_ns, every_ns):
                while entry := model.take(at_ns):
                    out.append(entry)
            now_ns += gap_ns
            model.offer(now_ns, size_bytes, i)
        while (due_ns := model.due_ns) is not None:
            out += [entry] if (entry := model.take(due_ns)) else []
        return out, model

    out, model = outcome(look_ns)
    assert out == outcome(10**12)[0]
    assert [entry.payload for entry in out] == sorted(entry.payload for entry in out)
    assert len(out) + model.drops["codel"] == len(gaps) and len(model) == 0
    assert model.inside_bytes == model.queue_bytes == 0
