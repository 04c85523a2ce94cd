/* The bottleneck as a pure model: who leaves when, given a trace. Takes `now_ns`, reads no clock, moves no packet. bottleneck.py in C.

   A packet waits in the queue until its predecessor has left, or not at all when there is none. Then it is served: it leaves at the first
   nanosecond at which the capacity has risen by its size since the service began. With that its fate is settled: how long the path takes
   from there, and whether it loses the packet. First in, first out, in the queue as on the path. */
#pragma once

#include "capacity.h"
#include "codel.h"
#include "conditions.h"
#include "packet.h"

enum { MAX_INSIDE_BYTES = 1 << 24 }; /* queue and delay line together, so that a flood can't eat the memory */

struct bottleneck {
    /* Set once */
    int64_t delay_ns, queue_limit_bytes, queue_limit_packets; /* no limit of packets: 0 */
    struct codel codel;

    struct capacity capacity;
    bool paced; /* by the capacity; else packets leave as they come */
    struct conditions conditions;

    struct fifo waiting, flying;
    struct packet *serving;
    int64_t inside_bytes; /* of packets in queue, service and delay line */
    int64_t last_due_ns;
    work_t finish; /* work at which the last packet served leaves */
    work_t wasted; /* work that passed while nothing waited, up to the last arrival */

    /* Counted since bottleneck_zero */
    int64_t queue_drops, codel_drops, losses;
    int64_t dropped_bytes; /* by the queue's bounds and by CoDel */
    int64_t lost_bytes; /* on the path, after the bottleneck */
};

/* A packet arrives. When it is dropped, or lost later, it is freed. */
void bottleneck_offer(struct bottleneck *bottleneck, int64_t now_ns, struct packet *packet);

/* The same for a packet that there is no memory for. */
void bottleneck_refuse(struct bottleneck *bottleneck, int64_t size_bytes);

/* When something is to be done next; INT64_MAX: nothing is inside. */
int64_t bottleneck_due_ns(const struct bottleneck *bottleneck);

/* The next packet that is to be delivered by `now_ns`, or NULL. The caller frees it. */
struct packet *bottleneck_take(struct bottleneck *bottleneck, int64_t now_ns);

/* Let leave what leaves the bottleneck by `now_ns`, and serve what comes after it. */
void bottleneck_advance(struct bottleneck *bottleneck, int64_t now_ns);

int64_t bottleneck_packets(const struct bottleneck *bottleneck);
int64_t bottleneck_queue_bytes(const struct bottleneck *bottleneck); /* with the packet in service, whole */

/* Bytes allowed, and of these wasted because nothing waited, since the capacity was set. */
void bottleneck_spent(struct bottleneck *bottleneck, int64_t now_ns, double *allowed_bytes, double *wasted_bytes);

/* From `now_ns` on serve at the pace of `capacity` (NULL: at once), whose start is `now_ns`; a packet in service goes on where it is.
   Conditions without segments are none. */
void bottleneck_switch(struct bottleneck *bottleneck, int64_t now_ns, const struct capacity *capacity, struct conditions conditions);

/* Forget all packets inside. */
void bottleneck_clear(struct bottleneck *bottleneck);

/* The same without conditions, after forgetting what has not left the bottleneck. */
void bottleneck_restart(struct bottleneck *bottleneck, int64_t now_ns, const struct capacity *capacity);

/* Begin to count anew. */
void bottleneck_zero(struct bottleneck *bottleneck);
