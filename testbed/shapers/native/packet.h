/* A packet inside the emulated path, and lists of them: first in, first out. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct packet {
    struct packet *next;
    int64_t arrival_ns;
    int64_t begin_ns; /* its bytes leave the bottleneck evenly from here ... */
    int64_t departure_ns; /* ... to here */
    int64_t due_ns; /* then it is delivered */
    int64_t size_bytes; /* on the wire, without Ethernet's header */
    bool lost; /* it used the capacity, and ends at departure_ns */
    uint32_t frame_bytes;
    unsigned char frame[];
};

struct fifo {
    struct packet *first, *last;
    int64_t packets, bytes;
};

static inline void fifo_push(struct fifo *fifo, struct packet *packet) {
    packet->next = NULL;
    if (fifo->first)
        fifo->last->next = packet;
    else
        fifo->first = packet;
    fifo->last = packet;
    fifo->packets++;
    fifo->bytes += packet->size_bytes;
}

/* NULL when it's empty. */
static inline struct packet *fifo_pop(struct fifo *fifo) {
    struct packet *packet = fifo->first;
    if (packet) {
        fifo->first = packet->next;
        fifo->packets--;
        fifo->bytes -= packet->size_bytes;
    }
    return packet;
}
