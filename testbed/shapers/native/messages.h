/* The datagrams between the testbed and the relay, as messages.py lays them out: little-endian, without gaps. */
#pragma once

#include <assert.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the relay's messages are little-endian"
#endif

enum request_kind { ATTACH = 1, LOAD, STOP };
enum answer_kind { READY = 1, DONE, FAILED };
enum { MAX_MESSAGE_BYTES = 4096, NAME_BYTES = 16, PATH_BYTES = 108 };

struct header {
    uint32_t kind, lane;
};

struct attach {
    struct header header;
    int32_t server_pid, client_pid;
    int64_t delay_ns, queue_bytes, queue_packets, codel_target_ns, codel_interval_ns;
    uint32_t offload, unused;
    char server_interface[NAME_BYTES], client_interface[NAME_BYTES], start_path[PATH_BYTES];
} __attribute__((packed));

/* What of a direction's numbers the descriptor holds: times[points], rates[rates] and, if segments > 0, edges[segments + 1],
   delays[segments], enter[segments], stay[segments]. */
struct direction {
    int64_t points, rates, mean_rate, segments;
    uint64_t seed;
};

struct load {
    struct header header;
    int64_t offset_ns;
    struct direction down, up;
};

struct stop {
    struct header header;
};

struct counters {
    int64_t packets_in, packets_out, inside;
    int64_t queue, codel, loss, malformed, transmit; /* drops by cause */
    int64_t wraps, windows, windows_lost, max_late_ns;
};

struct result {
    int64_t started_ns; /* -1: not started */
    int64_t stopped_ns, stalled_ns, max_stall_ns;
};

struct answer {
    uint32_t kind;
    char text[MAX_MESSAGE_BYTES - 4];
};

static_assert(sizeof(struct attach) == 204 && sizeof(struct load) == 96 && sizeof(struct counters) == 96, "as in messages.py");
