/* One direction of a lane: frames that come from `source` go through the bottleneck to `sink`. The same as `Half` of lane.py. */
#pragma once

#include "course.h"
#include "ledger.h"

/* What it counted since it was loaded. */
struct tally {
    struct counters counters;
    struct lateness lateness;
    struct windows windows;
};

struct half {
    int source, sink; /* TAP devices */
    bool offload; /* frames come and go with a virtio_net_hdr before them */
    struct bottleneck bottleneck;
    struct course course;
    bool armed; /* loaded, not yet started */
    bool traced; /* started, and it has a trace */
    struct tally tally;
    int64_t rest_edges_ns[2], rest_rate; /* outside a trial; a rate of 0: as fast as can be */
};

/* Begin with an empty queue at `rest_rate`. */
void half_open(struct half *half, int64_t now_ns, int64_t rest_rate);

/* Arm the direction: an empty queue, counters at 0, the trace's mean rate until `half_start`. */
void half_load(struct half *half, int64_t now_ns, const struct course *course);

/* The trace begins. */
void half_start(struct half *half, int64_t now_ns);

/* End the trial; `*result` is what it counted, and its windows are the caller's to free. */
void half_stop(struct half *half, int64_t now_ns, struct tally *result);

/* Close the windows that are over. */
void half_advance(struct half *half, int64_t now_ns);

/* Read frames and queue them, BATCH at most, so that the timers are looked at again. Returns how many; -1: the device is gone. */
enum { BATCH = 32 };
int half_receive(struct half *half);

/* Hand over what is due. */
void half_deliver(struct half *half, int64_t now_ns);
