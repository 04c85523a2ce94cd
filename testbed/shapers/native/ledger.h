/* What a link counts while it runs: lateness, and 100-ms windows of a trace-driven direction. The same as ledger.py. */
#pragma once

#include "bottleneck.h"

enum {
    FINE_US = 5000, /* lateness below this is counted in bins of 1 us, above it in powers of two */
    COARSE = 64,
    COLUMNS = 6,
    MAX_WINDOWS = 72000, /* two hours; later windows are not recorded */
    BLOCK_WINDOWS = 600, /* memory comes by the minute */
};
static const int64_t WINDOW_NS = SECOND_NS / 10;
static const int64_t STALL_NS = SECOND_NS / 1000; /* what is shorter is no stall: the lateness of packets tells of it */

/* Histogram of (actual - due). */
struct lateness {
    uint32_t fine[FINE_US]; /* late by i to i + 1 us */
    uint32_t coarse[COARSE]; /* by at least FINE_US, and by 2^(i-1) to 2^i us */
    int64_t max_ns;
};

void lateness_add(struct lateness *lateness, int64_t late_ns);

/* How long the relay stood still: what passed beyond the time that it wanted to sleep. */
struct stalls {
    int64_t total_ns, max_ns;
};

void stalls_add(struct stalls *stalls, int64_t late_ns);

/* Bytes allowed, wasted, dropped and lost in a window; bytes queued and bytes due but not served at its end. */
struct window {
    double allowed, wasted, dropped, lost, queued, behind;
};

struct windows {
    int64_t start_ns, next_ns, count;
    double allowed, wasted; /* by the end of the last one */
    int64_t dropped, lost;
    struct window *blocks[MAX_WINDOWS / BLOCK_WINDOWS];
};

void windows_start(struct windows *windows, const struct bottleneck *bottleneck, int64_t start_ns);

/* Close the windows that end by `now_ns`. To be called before anything happens at `now_ns`. */
void windows_advance(struct windows *windows, struct bottleneck *bottleneck, int64_t now_ns);

/* A packet was delivered `late_ns` after it was due: at each window's end in between, part of it was due but not served. */
void windows_served(struct windows *windows, const struct packet *packet, int64_t late_ns);

/* Windows that ended by `now_ns` and were not recorded. */
int64_t windows_lost(const struct windows *windows, int64_t now_ns);

void windows_free(struct windows *windows);
