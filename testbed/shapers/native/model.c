#include "model.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "half.h"

static bool read_number(int64_t *number) {
    return scanf("%" SCNd64, number) == 1;
}

static bool read_path(struct bottleneck *bottleneck) {
    return read_number(&bottleneck->delay_ns) && read_number(&bottleneck->queue_limit_bytes) &&
           read_number(&bottleneck->queue_limit_packets) && read_number(&bottleneck->codel.target_ns) &&
           read_number(&bottleneck->codel.interval_ns);
}

static bool read_course(struct course *course) {
    enum { MAX_NUMBERS = 1 << 16 };
    static int64_t numbers[MAX_NUMBERS];
    struct direction head;
    int64_t offset_ns, count = 0;
    if (!read_number(&head.points) || !read_number(&head.rates) || !read_number(&head.mean_rate) || !read_number(&head.segments) ||
        scanf("%" SCNu64, &head.seed) != 1 || !read_number(&offset_ns))
        return fail("no course");
    while (count < MAX_NUMBERS && read_number(&numbers[count]))
        count++; /* up to the first letter */
    return course_read(course, &head, offset_ns, &(struct numbers){.next = numbers, .left = count});
}

static void arrive(struct half *half, int64_t now_ns, int64_t size_bytes) {
    static int64_t number;
    struct packet *packet = malloc(sizeof *packet + sizeof number);
    if (!packet)
        abort();
    packet->size_bytes = size_bytes;
    memcpy(packet->frame, &number, sizeof number);
    number++;
    half_advance(half, now_ns);
    bottleneck_offer(&half->bottleneck, now_ns, packet);
}

static void deliver(struct half *half, int64_t now_ns) {
    half_advance(half, now_ns);
    for (struct packet *packet; (packet = bottleneck_take(&half->bottleneck, now_ns)); free(packet)) {
        int64_t number, late_ns = now_ns - packet->due_ns;
        memcpy(&number, packet->frame, sizeof number);
        printf("packet %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", number, packet->begin_ns, packet->departure_ns, packet->due_ns);
        half->tally.counters.packets_out++;
        lateness_add(&half->tally.lateness, late_ns);
        if (half->traced)
            windows_served(&half->tally.windows, packet, late_ns);
    }
}

static void tell_state(const struct bottleneck *b) {
    int64_t due_ns = bottleneck_due_ns(b);
    printf("state %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", b->queue_drops,
           b->codel_drops, b->losses, b->dropped_bytes, b->lost_bytes, bottleneck_queue_bytes(b), b->inside_bytes,
           due_ns == INT64_MAX ? -1 : due_ns);
}

static void stop(struct half *half, int64_t now_ns) {
    static struct tally tally;
    half_stop(half, now_ns, &tally);
    for (int64_t i = 0; i < tally.windows.count; i++) {
        const struct window *w = &tally.windows.blocks[i / BLOCK_WINDOWS][i % BLOCK_WINDOWS];
        printf("window %a %a %a %a %a %a\n", w->allowed, w->wasted, w->dropped, w->lost, w->queued, w->behind);
    }
    const struct counters *c = &tally.counters;
    printf("counters %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 "\n", c->inside, c->wraps, c->windows, c->windows_lost,
           c->max_late_ns);
    windows_free(&tally.windows);
}

static bool obey(struct half *half, const struct course *course, char event, int64_t now_ns) {
    int64_t size_bytes;
    switch (event) {
    case 'l':
        half_load(half, now_ns, course);
        return true;
    case 's':
        half_start(half, now_ns);
        return true;
    case 'a':
        if (!read_number(&size_bytes))
            return fail("an arrival without a size");
        arrive(half, now_ns, size_bytes);
        return true;
    case 't':
        deliver(half, now_ns);
        return true;
    case 'e':
        stop(half, now_ns);
        return true;
    default:
        return fail("an event %c", event);
    }
}

/* So that the sanitiser finds no leak. */
static void forget(struct half *half) {
    const int64_t end_ns = INT64_MAX / 2;
    bottleneck_restart(&half->bottleneck, end_ns, NULL);
    for (struct packet *packet; (packet = bottleneck_take(&half->bottleneck, end_ns));)
        free(packet);
    windows_free(&half->tally.windows);
}

int model_main(void) {
    static struct half half = {.source = -1, .sink = -1};
    struct course course;
    bool good = read_path(&half.bottleneck) && read_course(&course);
    half_open(&half, 0, 0);
    char event;
    for (int64_t now_ns; good && scanf(" %c %" SCNd64, &event, &now_ns) == 2;) {
        good = obey(&half, &course, event, now_ns);
        tell_state(&half.bottleneck);
    }
    if (!good)
        fprintf(stderr, "relay --model: %s\n", fault);
    forget(&half);
    return good ? 0 : 2;
}
