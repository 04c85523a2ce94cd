/* Capacity over time: how much a link could have carried by now, and when it will have carried so much. The same as capacity.py. */
#pragma once

#include <stdint.h>

typedef __int128 work_t; /* a trace of hours at Gbit/s does not fit 64 bits */

enum { MTU_BYTES = 1500, OPPORTUNITY_BYTES = 1500 };
static const int64_t SECOND_NS = 1000000000;

/* A segment of the repeated trace in absolute time, and the work done before it. */
struct cursor {
    int64_t index, lap_ns, begin_ns, end_ns, rate;
    work_t work, end_work;
};

/* Cumulative capacity since the start in units of 1 / per_byte bytes. Successive calls of a function never go back in time. */
struct capacity {
    const int64_t *times_ns; /* edges of the rates; without rates, opportunities to deliver OPPORTUNITY_BYTES */
    const int64_t *rates; /* 1e-3 bit/s */
    int64_t points, base_ns, duration_ns, per_byte;
    work_t lap_work;
    work_t before; /* opportunities up to the start */
    struct cursor at, when;
};

/* A trace that repeats, `offset_ns` into it at `start_ns`. It keeps the pointers. */
void capacity_start(struct capacity *capacity, const int64_t *times_ns, int64_t points, const int64_t *rates, int64_t start_ns,
                    int64_t offset_ns);

/* Work that could have been done by `now_ns`. */
work_t capacity_at(struct capacity *capacity, int64_t now_ns);

/* The first nanosecond by which `work` (> 0) can be done. */
int64_t capacity_when(struct capacity *capacity, work_t work);

/* How often the trace has begun anew by `now_ns`. */
int64_t capacity_wraps(const struct capacity *capacity, int64_t now_ns);

/* Units of work in a byte: of 1e-3 bit/s for a nanosecond; without rates, bytes. */
int64_t work_per_byte(const int64_t *rates);

/* Work of one lap. */
work_t capacity_of_lap(const int64_t *times_ns, int64_t points, const int64_t *rates);

/* work / per_byte, rounded once, as Python divides. */
double capacity_bytes(const struct capacity *capacity, work_t work);

/* How many of the ascending `times_ns` are at or before `now_ns`. */
int64_t count_until(const int64_t *times_ns, int64_t count, int64_t now_ns);
