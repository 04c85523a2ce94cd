/* The relay: one real-time process that carries the packets of all lanes. `relay PARENT_PID FD`, as relay.py; or one of its other programs.

   Each lane has two TAP devices, one the server's interface, one the client's. The relay reads frames from one, asks the bottleneck model
   when they leave, and writes them to the other at that time. `FD` is a SOCK_SEQPACKET socket to the testbed (messages.h); when the testbed
   closes it, the relay ends. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "awake.h"
#include "fault.h"
#include "kernelcalls.h"
#include "lane.h"
#include "model.h"

enum {
    PRIORITY = 50,
    MAX_LANES = 512,
    MAX_EVENTS = 64,
    MAX_DESCRIPTORS = 8, /* that may come with a request; one is wanted */
    KEPT_BYTES = 16 << 20,
};
static const int64_t BEAT_NS = SECOND_NS / 100; /* while a trace runs the relay looks around at least this often, so that a stall shows */
static const int64_t TICK_NS = SECOND_NS; /* idle links close their windows at least this often, so that no packet has to wait for it */

/* A wake-up for each packet would pre-empt the sender of a flood at each packet, which brings both to a crawl. Above PACE packets in
   PACE_NS the relay therefore sleeps by the timer alone and finds what came meanwhile: for NAP_NS at least, so that what is due soon after each
   other goes together, and that late; for MAX_NAP_NS at most, as long as a packet may lie unseen. */
enum { PACE = 10 };
static const int64_t PACE_NS = SECOND_NS / 1000, NAP_NS = SECOND_NS / 20000, MAX_NAP_NS = SECOND_NS / 10000;

struct relay {
    int control, epoll;
    bool running;
    struct lane *lanes[MAX_LANES];
    uint32_t lane_count;
    struct {
        int64_t since_ns, packets;
        bool high, drained; /* nothing was left unread */
    } pace;
};

/* What an epoll event is about: the control socket, or one of a lane's three descriptors. */
enum { DOWN, UP, STARTS, CONTROL };

static uint64_t event_key(uint32_t lane, uint32_t what) {
    return (uint64_t)lane << 2 | what;
}

static bool watch(struct relay *relay, int descriptor, uint64_t key) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = key};
    return epoll_ctl(relay->epoll, EPOLL_CTL_ADD, descriptor, &event) == 0 || fail_errno("epoll");
}

/* Packets */

/* Hand over what is due on any lane; returns when something is due next. */
static int64_t deliver(struct relay *relay, int64_t now_ns) {
    int64_t next_ns = INT64_MAX;
    for (uint32_t i = 0; i < 2 * relay->lane_count; i++) {
        struct half *half = i % 2 ? &relay->lanes[i / 2]->up : &relay->lanes[i / 2]->down;
        if (bottleneck_due_ns(&half->bottleneck) <= now_ns)
            half_deliver(half, now_ns);
        int64_t due_ns = bottleneck_due_ns(&half->bottleneck);
        if (due_ns < next_ns)
            next_ns = due_ns;
    }
    return next_ns;
}

static void tick(struct relay *relay, int64_t now_ns) {
    for (uint32_t i = 0; i < relay->lane_count; i++) {
        half_advance(&relay->lanes[i]->down, now_ns);
        half_advance(&relay->lanes[i]->up, now_ns);
    }
}

static void receive(struct relay *relay, struct half *half, uint32_t events) {
    int count = half_receive(half);
    bool gone = count < 0 || (count == 0 && events & (EPOLLERR | EPOLLHUP));
    if (gone)
        epoll_ctl(relay->epoll, EPOLL_CTL_DEL, half->source, NULL); /* its host is dead: it would be ready for ever */
    relay->pace.packets += count > 0 ? count : 0;
    relay->pace.drained &= count < BATCH;
}

/* Requests */

static struct lane *find_lane(const struct relay *relay, uint32_t number) {
    for (uint32_t i = 0; i < relay->lane_count; i++)
        if (relay->lanes[i]->number == number)
            return relay->lanes[i];
    fail("there is no lane %u", number);
    return NULL;
}

static bool attach(struct relay *relay, const struct attach *request) {
    if (find_lane(relay, request->header.lane))
        return fail("lane %u is attached already", request->header.lane);
    if (relay->lane_count == MAX_LANES)
        return fail("there are %d lanes, and no room for more", MAX_LANES);
    struct lane *lane = lane_attach(request);
    if (!lane)
        return false;
    uint32_t i = relay->lane_count++;
    relay->lanes[i] = lane;
    return watch(relay, lane->down.source, event_key(i, DOWN)) && watch(relay, lane->up.source, event_key(i, UP)) &&
           watch(relay, lane->starts, event_key(i, STARTS));
}

static bool has_size(size_t size, size_t wanted) {
    return size == wanted || fail("a request of %zu bytes, wanted %zu", size, wanted);
}

static bool obey(struct relay *relay, const void *request, size_t size, int descriptor) {
    const struct header *header = request;
    struct lane *lane;
    if (size < sizeof *header)
        return has_size(size, sizeof *header);
    switch (header->kind) {
    case ATTACH:
        return has_size(size, sizeof(struct attach)) && attach(relay, request);
    case LOAD:
        return has_size(size, sizeof(struct load)) && (lane = find_lane(relay, header->lane)) && lane_load(lane, request, descriptor);
    case STOP:
        return has_size(size, sizeof(struct stop)) && (lane = find_lane(relay, header->lane)) && lane_stop(lane, descriptor);
    default:
        return fail("unknown request %u", header->kind);
    }
}

static void answer(const struct relay *relay, enum answer_kind kind, const char *text) {
    struct answer answer = {.kind = kind};
    size_t length = strnlen(text, sizeof answer.text);
    memcpy(answer.text, text, length);
    send(relay->control, &answer, offsetof(struct answer, text) + length, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Into `descriptors`, filled up with -1. */
static void take_descriptors(struct msghdr *message, int descriptors[MAX_DESCRIPTORS]) {
    memset(descriptors, -1, MAX_DESCRIPTORS * sizeof *descriptors);
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part))
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS)
            memcpy(descriptors, CMSG_DATA(part), part->cmsg_len - CMSG_LEN(0));
}

/* One request of the testbed; the end when it closed the socket. */
static void serve(struct relay *relay) {
    static _Alignas(8) char request[MAX_MESSAGE_BYTES];
    _Alignas(struct cmsghdr) char rights[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
    struct iovec part = {.iov_base = request, .iov_len = sizeof request};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = rights, .msg_controllen = sizeof rights};
    ssize_t size = recvmsg(relay->control, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0) {
        relay->running = false;
        return;
    }
    int descriptors[MAX_DESCRIPTORS];
    take_descriptors(&message, descriptors);
    if (obey(relay, request, (size_t)size, descriptors[0]))
        answer(relay, DONE, "");
    else
        answer(relay, FAILED, fault);
    for (int i = 0; i < MAX_DESCRIPTORS; i++)
        if (descriptors[i] >= 0)
            close(descriptors[i]);
}

/* The loop */

static void handle(struct relay *relay, const struct epoll_event *event) {
    struct lane *lane = relay->lanes[event->data.u64 >> 2];
    switch (event->data.u64 & 3) {
    case DOWN:
        receive(relay, &lane->down, event->events);
        break;
    case UP:
        receive(relay, &lane->up, event->events);
        break;
    case STARTS:
        lane_start(lane);
        break;
    case CONTROL:
        serve(relay);
        break;
    }
}

/* Whether packets come so fast that the relay had better sleep between them. */
static bool pace_is_high(struct relay *relay, int64_t now_ns) {
    int64_t passed_ns = now_ns - relay->pace.since_ns;
    if (passed_ns >= PACE_NS) {
        relay->pace.high = relay->pace.packets * PACE_NS > PACE * passed_ns;
        relay->pace.packets = 0;
        relay->pace.since_ns = now_ns;
    }
    return relay->pace.high && relay->pace.drained;
}

static struct timespec from_ns(int64_t ns) {
    return (struct timespec){.tv_sec = ns / SECOND_NS, .tv_nsec = ns % SECOND_NS};
}

static void nap(int64_t wanted_ns) {
    int64_t length_ns = wanted_ns < NAP_NS ? NAP_NS : wanted_ns < MAX_NAP_NS ? wanted_ns : MAX_NAP_NS;
    struct timespec length = from_ns(length_ns);
    nanosleep(&length, NULL);
}

/* Wait for events, `timeout_ns` at most: epoll_wait alone counts in ms. */
static int wait_for_events(struct relay *relay, struct epoll_event *events, int64_t timeout_ns) {
    struct timespec timeout = from_ns(timeout_ns);
    struct pollfd polled = {.fd = relay->epoll, .events = POLLIN};
    if (ppoll(&polled, 1, &timeout, NULL) == 0)
        return 0;
    return epoll_wait(relay->epoll, events, MAX_EVENTS, 0);
}

/* Wait until something comes, or `wake_ns`; take what came. */
static void wait_and_handle(struct relay *relay, int64_t wake_ns) {
    struct epoll_event events[MAX_EVENTS];
    int64_t now_ns = clock_now_ns(), timeout_ns = wake_ns > now_ns ? wake_ns - now_ns : 0;
    if (pace_is_high(relay, now_ns)) {
        nap(timeout_ns);
        timeout_ns = 0;
    }
    int count = wait_for_events(relay, events, timeout_ns);
    if (count < 0 && errno != EINTR) {
        perror("relay: epoll");
        exit(1); /* a real-time process must not try that again and again */
    }
    relay->pace.drained = true;
    for (int i = 0; i < count; i++) {
        handle(relay, &events[i]);
        deliver(relay, clock_now_ns());
    }
}

static int64_t earlier(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* Note by how much a turn began late; returns when the next has to begin at the latest. */
static int64_t beat(struct relay *relay, int64_t late_ns, int64_t now_ns) {
    int64_t next_ns = now_ns + TICK_NS;
    for (uint32_t i = 0; i < relay->lane_count; i++) {
        lane_stalled(relay->lanes[i], late_ns);
        if (relay->lanes[i]->started_ns >= 0)
            next_ns = now_ns + BEAT_NS;
    }
    return next_ns;
}

static void run(struct relay *relay) {
    int64_t tick_ns = clock_now_ns(), wake_ns = tick_ns;
    while (relay->running) {
        int64_t now_ns = clock_now_ns(), beat_ns = beat(relay, now_ns - wake_ns, now_ns);
        if (now_ns >= tick_ns) {
            tick(relay, now_ns);
            tick_ns = now_ns + TICK_NS;
        }
        wake_ns = earlier(earlier(deliver(relay, now_ns), tick_ns), beat_ns);
        wait_and_handle(relay, wake_ns);
    }
}

static int relay_main(int parent_pid, int control) {
    static struct relay relay;
    static char problems[MAX_MESSAGE_BYTES];
    die_with_parent(parent_pid);
    keep_memory(KEPT_BYTES);
    become_realtime(PRIORITY, problems, sizeof problems);
    relay.control = control;
    relay.running = true;
    relay.epoll = epoll_create1(EPOLL_CLOEXEC);
    if (relay.epoll < 0 || !watch(&relay, control, event_key(0, CONTROL))) {
        perror("relay: epoll");
        return 1;
    }
    answer(&relay, READY, problems);
    run(&relay);
    return 0;
}

static bool read_argument(const char *text, int *number) {
    char rest;
    return sscanf(text, "%d%c", number, &rest) == 1;
}

int main(int count, char **arguments) {
    int parent_pid, control;
    if (count == 2 && strcmp(arguments[1], "--model") == 0)
        return model_main();
    if (count == 2 && strcmp(arguments[1], "--awake") == 0)
        return awake_main();
    if (count == 3 && read_argument(arguments[1], &parent_pid) && read_argument(arguments[2], &control))
        return relay_main(parent_pid, control);
    fprintf(stderr, "usage: relay PARENT_PID FD | relay --model | relay --awake\n");
    return 2;
}
