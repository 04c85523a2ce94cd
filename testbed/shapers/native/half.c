#include "half.h"

#include <errno.h>
#include <linux/virtio_net.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernelcalls.h"

enum {
    ETHERNET_BYTES = 14,
    MAX_FRAME_BYTES = ETHERNET_BYTES + MTU_BYTES,
    MAX_OFFLOADED_BYTES = ETHERNET_BYTES + 65535,
    OFFLOAD_BYTES = sizeof(struct virtio_net_hdr),
};

/* Trials */

static void rest(struct half *half, int64_t now_ns) {
    struct capacity resting;
    if (half->rest_rate)
        capacity_start(&resting, half->rest_edges_ns, 2, &half->rest_rate, now_ns, 0);
    bottleneck_restart(&half->bottleneck, now_ns, half->rest_rate ? &resting : NULL);
}

void half_open(struct half *half, int64_t now_ns, int64_t rest_rate) {
    half->rest_edges_ns[1] = SECOND_NS;
    half->rest_rate = rest_rate;
    rest(half, now_ns);
}

void half_load(struct half *half, int64_t now_ns, const struct course *course) {
    half->course = *course;
    half->rest_rate = course->points && course->mean_rate ? course->mean_rate : 0;
    if (half->rest_rate && half->rest_rate < 1000)
        half->rest_rate = 1000;
    half->armed = true;
    half->traced = false;
    bottleneck_clear(&half->bottleneck);
    rest(half, now_ns);
    windows_free(&half->tally.windows);
    memset(&half->tally, 0, sizeof half->tally);
    bottleneck_zero(&half->bottleneck);
}

void half_start(struct half *half, int64_t now_ns) {
    const struct course *course = &half->course;
    if (!half->armed || !course->points)
        return;
    struct capacity capacity;
    struct conditions conditions = course->conditions;
    capacity_start(&capacity, course->times_ns, course->points, course->rates, now_ns, course->offset_ns);
    if (conditions.segments)
        conditions_start(&conditions, now_ns, course->offset_ns);
    bottleneck_switch(&half->bottleneck, now_ns, &capacity, conditions);
    windows_start(&half->tally.windows, &half->bottleneck, now_ns);
    half->armed = false;
    half->traced = true;
}

void half_stop(struct half *half, int64_t now_ns, struct tally *result) {
    half_advance(half, now_ns);
    *result = half->tally;
    struct counters *counters = &result->counters;
    counters->inside = bottleneck_packets(&half->bottleneck);
    counters->queue = half->bottleneck.queue_drops;
    counters->codel = half->bottleneck.codel_drops;
    counters->loss = half->bottleneck.losses;
    counters->max_late_ns = result->lateness.max_ns;
    if (half->traced) {
        counters->wraps = capacity_wraps(&half->bottleneck.capacity, now_ns);
        counters->windows = result->windows.count;
        counters->windows_lost = windows_lost(&result->windows, now_ns);
    }
    memset(&half->tally.windows, 0, sizeof half->tally.windows);
    half->armed = half->traced = false;
    rest(half, now_ns);
}

void half_advance(struct half *half, int64_t now_ns) {
    if (half->traced)
        windows_advance(&half->tally.windows, &half->bottleneck, now_ns);
}

/* Frames */

static bool transmit(const struct half *half, const unsigned char *frame, size_t length) {
    return write(half->sink, frame, length) == (ssize_t)length;
}

/* IP bytes on the wire. A frame that the kernel left unsegmented counts as its segments, each with IP and TCP headers of its own. */
static int64_t wire_bytes(const struct virtio_net_hdr *offload, const unsigned char *ethernet, int64_t length) {
    int64_t bytes = length - ETHERNET_BYTES, tcp = offload->csum_start;
    bool segmented = offload->gso_type != VIRTIO_NET_HDR_GSO_NONE && offload->gso_size > 0;
    if (!segmented || !(offload->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) || tcp + 12 >= length)
        return bytes;
    int64_t headers = tcp + 4 * (ethernet[tcp + 12] >> 4) - ETHERNET_BYTES, payload = bytes - headers;
    if (headers <= 0 || payload <= 0)
        return bytes;
    return payload + headers * ((payload + offload->gso_size - 1) / offload->gso_size);
}

static struct packet *new_packet(const unsigned char *frame, size_t length, int64_t size_bytes) {
    struct packet *packet = malloc(sizeof *packet + length);
    if (packet) {
        packet->size_bytes = size_bytes;
        packet->frame_bytes = (uint32_t)length;
        memcpy(packet->frame, frame, length);
    }
    return packet;
}

static void queue(struct half *half, int64_t now_ns, const unsigned char *frame, size_t length, int64_t size_bytes) {
    struct packet *packet = new_packet(frame, length, size_bytes);
    half_advance(half, now_ns);
    if (packet)
        bottleneck_offer(&half->bottleneck, now_ns, packet);
    else
        bottleneck_refuse(&half->bottleneck, size_bytes);
}

static bool is_arp(const unsigned char *ethernet, size_t length) {
    return length >= ETHERNET_BYTES && ethernet[12] == 0x08 && ethernet[13] == 0x06;
}

static void accept_frame(struct half *half, int64_t now_ns, const unsigned char *frame, size_t length) {
    struct virtio_net_hdr offload = {0};
    size_t before = half->offload ? OFFLOAD_BYTES : 0, most = half->offload ? MAX_OFFLOADED_BYTES : MAX_FRAME_BYTES;
    if (length > before)
        memcpy(&offload, frame, before);
    const unsigned char *ethernet = frame + before;
    size_t ethernet_bytes = length > before ? length - before : 0;
    if (is_arp(ethernet, ethernet_bytes)) {
        transmit(half, frame, length); /* not shaped, not counted; static neighbours make it rare */
        return;
    }
    half->tally.counters.packets_in++;
    if (ethernet_bytes <= ETHERNET_BYTES || ethernet_bytes > most)
        half->tally.counters.malformed++;
    else
        queue(half, now_ns, frame, length, wire_bytes(&offload, ethernet, (int64_t)ethernet_bytes));
}

int half_receive(struct half *half) {
    static unsigned char frame[OFFLOAD_BYTES + MAX_OFFLOADED_BYTES + 1];
    for (int count = 0; count < BATCH; count++) {
        ssize_t length = read(half->source, frame, sizeof frame);
        if (length < 0)
            return errno == EAGAIN || errno == EINTR ? count : -1;
        accept_frame(half, clock_now_ns(), frame, (size_t)length);
    }
    return BATCH;
}

void half_deliver(struct half *half, int64_t now_ns) {
    half_advance(half, now_ns);
    for (struct packet *packet; (packet = bottleneck_take(&half->bottleneck, now_ns)); free(packet)) {
        int64_t late_ns = clock_now_ns() - packet->due_ns;
        if (!transmit(half, packet->frame, packet->frame_bytes)) {
            half->tally.counters.transmit++;
            continue;
        }
        half->tally.counters.packets_out++;
        lateness_add(&half->tally.lateness, late_ns);
        if (half->traced)
            windows_served(&half->tally.windows, packet, late_ns);
    }
}
