/* How one direction goes in a trial: its capacity over time and its conditions, as a `Load` brings them. */
#pragma once

#include "bottleneck.h"
#include "messages.h"

static const int64_t MAX_DELAY_NS = 100 * SECOND_NS; /* one way: a packet that long on its way holds up all that follow */

struct course {
    const int64_t *times_ns, *rates; /* no times: no capacity, no conditions, only the path's delay */
    int64_t points, offset_ns;
    int64_t mean_rate; /* 1e-3 bit/s */
    struct conditions conditions;
};

/* The numbers that came along, as far as they were not read yet. */
struct numbers {
    const int64_t *next;
    int64_t left;
};

/* Take a direction's numbers; the course keeps pointers to them. False: they make no course, see `fault`. */
bool course_read(struct course *course, const struct direction *head, int64_t offset_ns, struct numbers *numbers);
