#include "ledger.h"

#include <stdlib.h>
#include <string.h>

void lateness_add(struct lateness *lateness, int64_t late_ns) {
    uint64_t late_us = late_ns > 0 ? (uint64_t)late_ns / 1000 : 0;
    if (late_us < FINE_US) {
        lateness->fine[late_us]++;
    } else {
        int bits = 64 - __builtin_clzll(late_us);
        lateness->coarse[bits < COARSE ? bits : COARSE - 1]++;
    }
    if (late_ns > lateness->max_ns)
        lateness->max_ns = late_ns;
}

void stalls_add(struct stalls *stalls, int64_t late_ns) {
    if (late_ns <= STALL_NS)
        return;
    stalls->total_ns += late_ns;
    if (late_ns > stalls->max_ns)
        stalls->max_ns = late_ns;
}

void windows_start(struct windows *windows, const struct bottleneck *bottleneck, int64_t start_ns) {
    memset(windows, 0, sizeof *windows);
    windows->start_ns = start_ns;
    windows->next_ns = start_ns + WINDOW_NS;
    windows->dropped = bottleneck->dropped_bytes;
    windows->lost = bottleneck->lost_bytes;
}

/* The window's place, or NULL beyond the last that is recorded, or when there is no memory. */
static struct window *place(struct windows *windows, int64_t number) {
    if (number >= MAX_WINDOWS)
        return NULL;
    struct window **block = &windows->blocks[number / BLOCK_WINDOWS];
    if (!*block)
        *block = calloc(BLOCK_WINDOWS, sizeof **block);
    return *block ? *block + number % BLOCK_WINDOWS : NULL;
}

static void close_window(struct windows *windows, struct bottleneck *bottleneck) {
    struct window *window = place(windows, windows->count);
    if (!window)
        return;
    double allowed, wasted;
    bottleneck_spent(bottleneck, windows->next_ns, &allowed, &wasted);
    window->allowed = allowed - windows->allowed;
    window->wasted = wasted - windows->wasted;
    window->dropped = (double)(bottleneck->dropped_bytes - windows->dropped);
    window->lost = (double)(bottleneck->lost_bytes - windows->lost);
    window->queued = (double)bottleneck_queue_bytes(bottleneck);
    windows->allowed = allowed;
    windows->wasted = wasted;
    windows->dropped = bottleneck->dropped_bytes;
    windows->lost = bottleneck->lost_bytes;
    windows->count++;
}

void windows_advance(struct windows *windows, struct bottleneck *bottleneck, int64_t now_ns) {
    for (; now_ns >= windows->next_ns; windows->next_ns += WINDOW_NS)
        close_window(windows, bottleneck);
}

/* Share of a packet's service that is over at `now_ns`. */
static double share(const struct packet *packet, int64_t now_ns) {
    if (now_ns >= packet->departure_ns)
        return 1.0;
    if (now_ns <= packet->begin_ns)
        return 0.0;
    return (double)(now_ns - packet->begin_ns) / (double)(packet->departure_ns - packet->begin_ns);
}

void windows_served(struct windows *windows, const struct packet *packet, int64_t late_ns) {
    int64_t since_ns = packet->begin_ns - windows->start_ns;
    int64_t number = since_ns > 0 ? since_ns / WINDOW_NS : 0;
    int64_t end_ns = windows->start_ns + (number + 1) * WINDOW_NS;
    for (; end_ns < packet->departure_ns + late_ns; end_ns += WINDOW_NS, number++) {
        struct window *window = place(windows, number);
        if (!window)
            return;
        window->behind += (share(packet, end_ns) - share(packet, end_ns - late_ns)) * (double)packet->size_bytes;
    }
}

int64_t windows_lost(const struct windows *windows, int64_t now_ns) {
    return (now_ns - windows->start_ns) / WINDOW_NS - windows->count;
}

void windows_free(struct windows *windows) {
    for (int i = 0; i < MAX_WINDOWS / BLOCK_WINDOWS; i++)
        free(windows->blocks[i]);
    memset(windows->blocks, 0, sizeof windows->blocks);
}
