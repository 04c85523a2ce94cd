#include "bottleneck.h"

#include <stdlib.h>

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* Serve a packet, `need_bytes` of which still have to leave. */
static void serve(struct bottleneck *bottleneck, int64_t begin_ns, int64_t need_bytes, struct packet *packet) {
    packet->begin_ns = packet->departure_ns = begin_ns;
    if (bottleneck->paced) {
        bottleneck->finish += (work_t)need_bytes * bottleneck->capacity.per_byte;
        packet->departure_ns = capacity_when(&bottleneck->capacity, bottleneck->finish);
    }
    struct fate fate = {.delay_ns = PATHS_DELAY, .lost = false};
    if (bottleneck->conditions.segments)
        fate = conditions_fate(&bottleneck->conditions, packet->departure_ns);
    packet->lost = fate.lost;
    packet->due_ns = packet->departure_ns;
    if (!fate.lost) {
        int64_t delay_ns = fate.delay_ns < 0 ? bottleneck->delay_ns : fate.delay_ns;
        bottleneck->last_due_ns = larger(bottleneck->last_due_ns, packet->departure_ns + delay_ns);
        packet->due_ns = bottleneck->last_due_ns;
    }
    bottleneck->serving = packet;
}

static void drop_by_codel(struct bottleneck *bottleneck, struct packet *packet) {
    bottleneck->inside_bytes -= packet->size_bytes;
    bottleneck->dropped_bytes += packet->size_bytes;
    bottleneck->codel_drops++;
    free(packet);
}

/* The bottleneck is free at `now_ns`: serve who comes next, if anybody. */
static void begin(struct bottleneck *bottleneck, int64_t now_ns) {
    struct packet *packet;
    if (bottleneck->codel.target_ns) {
        struct fifo dropped = {0};
        packet = codel_dequeue(&bottleneck->codel, now_ns, &bottleneck->waiting, &dropped);
        for (struct packet *gone; (gone = fifo_pop(&dropped));)
            drop_by_codel(bottleneck, gone);
    } else {
        packet = fifo_pop(&bottleneck->waiting);
    }
    if (packet)
        serve(bottleneck, now_ns, packet->size_bytes, packet);
}

static void leave(struct bottleneck *bottleneck) {
    struct packet *served = bottleneck->serving;
    bottleneck->serving = NULL;
    if (!served->lost) {
        fifo_push(&bottleneck->flying, served);
        return;
    }
    bottleneck->inside_bytes -= served->size_bytes;
    bottleneck->lost_bytes += served->size_bytes;
    bottleneck->losses++;
    free(served);
}

void bottleneck_advance(struct bottleneck *bottleneck, int64_t now_ns) {
    while (bottleneck->serving && bottleneck->serving->departure_ns <= now_ns) {
        int64_t free_ns = bottleneck->serving->departure_ns;
        leave(bottleneck);
        begin(bottleneck, free_ns);
    }
}

/* What could have been done while nothing waited is gone. */
static void waste(struct bottleneck *bottleneck, int64_t now_ns) {
    if (!bottleneck->paced)
        return;
    work_t idle = capacity_at(&bottleneck->capacity, now_ns) - bottleneck->finish;
    if (idle > 0) {
        bottleneck->wasted += idle;
        bottleneck->finish += idle;
    }
}

static bool has_room(const struct bottleneck *bottleneck, int64_t size_bytes) {
    int64_t queued = bottleneck->waiting.packets + (bottleneck->serving != NULL);
    return bottleneck_queue_bytes(bottleneck) + size_bytes <= bottleneck->queue_limit_bytes &&
           (!bottleneck->queue_limit_packets || queued < bottleneck->queue_limit_packets) &&
           bottleneck->inside_bytes + size_bytes <= MAX_INSIDE_BYTES;
}

void bottleneck_refuse(struct bottleneck *bottleneck, int64_t size_bytes) {
    bottleneck->queue_drops++;
    bottleneck->dropped_bytes += size_bytes;
}

void bottleneck_offer(struct bottleneck *bottleneck, int64_t now_ns, struct packet *packet) {
    bottleneck_advance(bottleneck, now_ns);
    if (!has_room(bottleneck, packet->size_bytes)) {
        bottleneck_refuse(bottleneck, packet->size_bytes);
        free(packet);
        return;
    }
    packet->arrival_ns = now_ns;
    bottleneck->inside_bytes += packet->size_bytes;
    fifo_push(&bottleneck->waiting, packet);
    if (!bottleneck->serving) {
        waste(bottleneck, now_ns);
        begin(bottleneck, now_ns);
    }
}

int64_t bottleneck_due_ns(const struct bottleneck *bottleneck) {
    if (bottleneck->flying.first)
        return bottleneck->flying.first->due_ns;
    return bottleneck->serving ? bottleneck->serving->due_ns : INT64_MAX;
}

struct packet *bottleneck_take(struct bottleneck *bottleneck, int64_t now_ns) {
    bottleneck_advance(bottleneck, now_ns);
    if (!bottleneck->flying.first || bottleneck->flying.first->due_ns > now_ns)
        return NULL;
    struct packet *packet = fifo_pop(&bottleneck->flying);
    bottleneck->inside_bytes -= packet->size_bytes;
    return packet;
}

int64_t bottleneck_packets(const struct bottleneck *bottleneck) {
    return bottleneck->waiting.packets + (bottleneck->serving != NULL) + bottleneck->flying.packets;
}

int64_t bottleneck_queue_bytes(const struct bottleneck *bottleneck) {
    return bottleneck->waiting.bytes + (bottleneck->serving ? bottleneck->serving->size_bytes : 0);
}

void bottleneck_spent(struct bottleneck *bottleneck, int64_t now_ns, double *allowed_bytes, double *wasted_bytes) {
    bottleneck_advance(bottleneck, now_ns);
    *allowed_bytes = *wasted_bytes = 0.0;
    if (!bottleneck->paced)
        return;
    work_t allowed = capacity_at(&bottleneck->capacity, now_ns);
    work_t idle = allowed > bottleneck->finish ? allowed - bottleneck->finish : 0;
    *allowed_bytes = capacity_bytes(&bottleneck->capacity, allowed);
    *wasted_bytes = capacity_bytes(&bottleneck->capacity, bottleneck->wasted + idle);
}

static int64_t last_due_flying_ns(const struct bottleneck *bottleneck) {
    return bottleneck->flying.first ? bottleneck->flying.last->due_ns : 0;
}

/* What of the packet in service has not left by `now_ns`, in whole bytes. */
static int64_t unserved_bytes(struct bottleneck *bottleneck, int64_t now_ns) {
    work_t left = bottleneck->finish - capacity_at(&bottleneck->capacity, now_ns);
    return (int64_t)((left + bottleneck->capacity.per_byte - 1) / bottleneck->capacity.per_byte);
}

void bottleneck_switch(struct bottleneck *bottleneck, int64_t now_ns, const struct capacity *capacity, struct conditions conditions) {
    bottleneck_advance(bottleneck, now_ns);
    struct packet *served = bottleneck->paced ? bottleneck->serving : NULL;
    int64_t need_bytes = served ? unserved_bytes(bottleneck, now_ns) : 0;
    bottleneck->paced = capacity != NULL;
    if (capacity)
        bottleneck->capacity = *capacity;
    bottleneck->conditions = conditions;
    bottleneck->finish = bottleneck->wasted = 0;
    if (served) {
        bottleneck->last_due_ns = last_due_flying_ns(bottleneck);
        serve(bottleneck, now_ns, need_bytes, served);
    }
}

static void forget(struct fifo *packets) {
    for (struct packet *forgotten; (forgotten = fifo_pop(packets));)
        free(forgotten);
}

void bottleneck_clear(struct bottleneck *bottleneck) {
    forget(&bottleneck->waiting);
    forget(&bottleneck->flying);
    free(bottleneck->serving);
    bottleneck->serving = NULL;
    bottleneck->inside_bytes = bottleneck->last_due_ns = 0;
}

void bottleneck_restart(struct bottleneck *bottleneck, int64_t now_ns, const struct capacity *capacity) {
    bottleneck_advance(bottleneck, now_ns);
    bottleneck->inside_bytes -= bottleneck_queue_bytes(bottleneck);
    forget(&bottleneck->waiting);
    free(bottleneck->serving);
    bottleneck->serving = NULL;
    codel_reset(&bottleneck->codel);
    bottleneck->last_due_ns = last_due_flying_ns(bottleneck);
    bottleneck_switch(bottleneck, now_ns, capacity, (struct conditions){0});
}

void bottleneck_zero(struct bottleneck *bottleneck) {
    bottleneck->queue_drops = bottleneck->codel_drops = bottleneck->losses = 0;
    bottleneck->dropped_bytes = bottleneck->lost_bytes = 0;
}
