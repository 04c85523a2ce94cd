/* Delay and loss of one direction as they change over time. The same as conditions.py. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

static const int64_t CERTAIN = INT64_C(1) << 53; /* probabilities are whole multiples of 2^-53 */
static const int64_t PATHS_DELAY = -1;

/* Segment i holds on (edges_ns[i], edges_ns[i + 1]] and wraps. Losses are a chain of two states (Gilbert 1960): a packet is lost with
   probability stay[i] if its predecessor was, else enter[i]; where both are 0 the chain begins anew. */
struct conditions {
    const int64_t *edges_ns, *delays_ns, *enter, *stay;
    int64_t segments; /* 0: no conditions */
    int64_t index, lap_ns;
    uint64_t random;
    bool lost;
};

struct fate {
    int64_t delay_ns; /* PATHS_DELAY: as long as the path's own */
    bool lost;
};

/* From `start_ns` on, `offset_ns` into the conditions at that time. Pointers, segments and seed (`random`) are set already. */
void conditions_start(struct conditions *conditions, int64_t start_ns, int64_t offset_ns);

/* Of the packet that leaves the bottleneck at `departure_ns`, which never goes back and is later than the start. */
struct fate conditions_fate(struct conditions *conditions, int64_t departure_ns);
