/* CoDel, RFC 8289: drops at the head of a queue whose packets have waited too long for too long. The same as codel.py. */
#pragma once

#include "packet.h"

struct codel {
    int64_t target_ns; /* 0: no CoDel */
    int64_t interval_ns; /* at most MAX_INTERVAL_NS, whose square fits 64 bits */
    int64_t first_above_ns, drop_next_ns, count, last_count;
    bool dropping;
};

static const int64_t MAX_INTERVAL_NS = 3000000000;

/* Forget all that was: no packet waits. */
void codel_reset(struct codel *codel);

/* The next packet of `queue` to serve; those before it that must go are moved to `dropped`. */
struct packet *codel_dequeue(struct codel *codel, int64_t now_ns, struct fifo *queue, struct fifo *dropped);
