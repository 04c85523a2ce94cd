/* A lane: two TAP devices, a bottleneck in each direction, the start socket. The same as `RelayLane` of lane.py. */
#pragma once

#include "half.h"

struct lane {
    uint32_t number;
    struct half down, up;
    int starts; /* a socket; its first `start` datagram starts the traces */
    bool armed;
    int64_t started_ns; /* -1: not started */
    struct stalls stalls;
    int64_t *numbers; /* of the courses */
};

/* NULL: see `fault`. */
struct lane *lane_attach(const struct attach *request);

/* False when it can't be done, see `fault`; then the lane is as it was. */
bool lane_load(struct lane *lane, const struct load *request, int descriptor);

/* False when the result can't be written, see `fault`; then the lane is stopped and its counts are gone. Where the descriptor is no file, it
 * is as it was. */
bool lane_stop(struct lane *lane, int descriptor);

/* The relay's turn began `late_ns` later than wanted. */
void lane_stalled(struct lane *lane, int64_t late_ns);

/* Datagrams came. */
void lane_start(struct lane *lane);
