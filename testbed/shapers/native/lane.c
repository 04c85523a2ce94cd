#include "lane.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "fault.h"
#include "kernelcalls.h"

static const int64_t IDLE_RATE = 100000000000; /* 100 Mbit/s in 1e-3 bit/s: towards the client, when no trace was ever loaded */
static const int64_t MAX_NUMBERS = 1 << 26;
static const char START[] = "start";
enum { MAX_STARTS = 32 };

/* Attach */

static bool is_text(const char *bytes, size_t size) {
    return bytes[0] && memchr(bytes, '\0', size);
}

static bool check(const struct attach *request) {
    if (request->delay_ns < 0 || request->delay_ns > MAX_DELAY_NS)
        return fail("a delay of %" PRId64 " ns, wanted 0 to %" PRId64, request->delay_ns, MAX_DELAY_NS);
    if (request->queue_bytes <= 0 || request->queue_packets < 0)
        return fail("a queue of %" PRId64 " bytes and %" PRId64 " packets", request->queue_bytes, request->queue_packets);
    if (request->codel_target_ns < 0 || request->codel_interval_ns < 0 || request->codel_interval_ns > MAX_INTERVAL_NS)
        return fail("CoDel with %" PRId64 " and %" PRId64 " ns", request->codel_target_ns, request->codel_interval_ns);
    if (request->offload > 1)
        return fail("offload is %" PRIu32 ", wanted 0 or 1", request->offload);
    if (!is_text(request->server_interface, NAME_BYTES) || !is_text(request->client_interface, NAME_BYTES))
        return fail("the interfaces have no names");
    return is_text(request->start_path, PATH_BYTES) || fail("the start socket has no path");
}

static int open_starts(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, path, strnlen(path, sizeof address.sun_path - 1));
    int starts = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (starts >= 0 && bind(starts, (struct sockaddr *)&address, sizeof address) == 0 && chmod(address.sun_path, 0666) == 0)
        return starts;
    fail_errno("make socket %s", address.sun_path);
    if (starts >= 0)
        close(starts);
    return -1;
}

static void open_half(struct half *half, const struct attach *request, int source, int sink, int64_t rest_rate) {
    half->source = source;
    half->sink = sink;
    half->offload = request->offload;
    half->bottleneck.delay_ns = request->delay_ns;
    half->bottleneck.queue_limit_bytes = request->queue_bytes;
    half->bottleneck.queue_limit_packets = request->queue_packets;
    half->bottleneck.codel.target_ns = request->codel_target_ns;
    half->bottleneck.codel.interval_ns = request->codel_interval_ns;
    half_open(half, clock_now_ns(), rest_rate);
}

static struct lane *new_lane(const struct attach *request, int server, int client, int starts) {
    struct lane *lane = calloc(1, sizeof *lane);
    if (!lane) {
        fail("no memory for a lane");
        return NULL;
    }
    lane->number = request->header.lane;
    lane->starts = starts;
    lane->started_ns = -1;
    open_half(&lane->down, request, server, client, IDLE_RATE);
    open_half(&lane->up, request, client, server, 0);
    return lane;
}

struct lane *lane_attach(const struct attach *request) {
    if (!check(request))
        return NULL;
    int server = open_tap(request->server_pid, request->server_interface, request->offload);
    int client = server < 0 ? -1 : open_tap(request->client_pid, request->client_interface, request->offload);
    int starts = client < 0 ? -1 : open_starts(request->start_path);
    struct lane *lane = starts < 0 ? NULL : new_lane(request, server, client, starts);
    const int opened[] = {server, client, starts};
    for (int i = 0; !lane && i < 3; i++)
        if (opened[i] >= 0)
            close(opened[i]);
    return lane;
}

/* Load */

/* A copy of the descriptor's numbers: a file that somebody shortens can't harm it. NULL: see `fault`. */
static int64_t *read_numbers(int descriptor, int64_t *count) {
    struct stat file;
    if (fstat(descriptor, &file) < 0 || !S_ISREG(file.st_mode)) {
        fail("a trace that is no file");
        return NULL;
    }
    size_t size = (size_t)file.st_size;
    *count = file.st_size / 8;
    int64_t *numbers = *count <= MAX_NUMBERS ? malloc(size + 8) : NULL; /* never 0 bytes */
    if (!numbers || pread(descriptor, numbers, size, 0) != (ssize_t)size) {
        fail("a trace of %" PRId64 " numbers can't be read", *count);
        free(numbers);
        return NULL;
    }
    return numbers;
}

static bool read_courses(const struct load *request, struct numbers numbers, struct course *down, struct course *up) {
    return course_read(down, &request->down, request->offset_ns, &numbers) &&
           course_read(up, &request->up, request->offset_ns, &numbers) &&
           (numbers.left == 0 || fail("%" PRId64 " numbers more than both directions have", numbers.left));
}

bool lane_load(struct lane *lane, const struct load *request, int descriptor) {
    int64_t count = 0, *numbers = read_numbers(descriptor, &count);
    if (!numbers)
        return false;
    struct course down, up;
    if (!read_courses(request, (struct numbers){.next = numbers, .left = count}, &down, &up)) {
        free(numbers);
        return false;
    }
    int64_t now_ns = clock_now_ns();
    half_load(&lane->down, now_ns, &down);
    half_load(&lane->up, now_ns, &up);
    free(lane->numbers); /* which nothing points to any more */
    lane->numbers = numbers;
    lane->armed = true;
    lane->started_ns = -1;
    lane->stalls = (struct stalls){0};
    return true;
}

/* Start */

void lane_start(struct lane *lane) {
    char datagram[sizeof START];
    for (int i = 0; i < MAX_STARTS; i++) {
        ssize_t length = recv(lane->starts, datagram, sizeof datagram, 0);
        if (length < 0)
            return;
        if (!lane->armed || length != sizeof START - 1 || memcmp(datagram, START, sizeof START - 1) != 0)
            continue;
        lane->armed = false;
        lane->started_ns = clock_now_ns();
        half_start(&lane->down, lane->started_ns);
        half_start(&lane->up, lane->started_ns);
    }
}

void lane_stalled(struct lane *lane, int64_t late_ns) {
    if (lane->started_ns >= 0)
        stalls_add(&lane->stalls, late_ns);
}

/* Stop */

static bool write_all(int descriptor, const void *data, size_t size) {
    for (const char *next = data; size > 0;) {
        ssize_t written = write(descriptor, next, size);
        if (written <= 0)
            return fail_errno("the result can't be written");
        next += written;
        size -= (size_t)written;
    }
    return true;
}

static bool write_windows(int descriptor, const struct windows *windows) {
    for (int64_t i = 0; i < windows->count; i += BLOCK_WINDOWS) {
        int64_t count = windows->count - i < BLOCK_WINDOWS ? windows->count - i : BLOCK_WINDOWS;
        if (!write_all(descriptor, windows->blocks[i / BLOCK_WINDOWS], (size_t)count * sizeof(struct window)))
            return false;
    }
    return true;
}

static bool write_tally(int descriptor, const struct tally *tally) {
    return write_all(descriptor, &tally->counters, sizeof tally->counters) &&
           write_all(descriptor, tally->lateness.fine, sizeof tally->lateness.fine) &&
           write_all(descriptor, tally->lateness.coarse, sizeof tally->lateness.coarse) && write_windows(descriptor, &tally->windows);
}

bool lane_stop(struct lane *lane, int descriptor) {
    struct stat file;
    if (fstat(descriptor, &file) < 0 || !S_ISREG(file.st_mode))
        return fail("the result is to go into what is no file");
    static struct tally down, up;
    int64_t now_ns = clock_now_ns();
    const struct result result = {lane->started_ns, now_ns, lane->stalls.total_ns, lane->stalls.max_ns};
    half_stop(&lane->down, now_ns, &down);
    half_stop(&lane->up, now_ns, &up);
    lane->armed = false;
    lane->started_ns = -1;
    bool written =
        write_all(descriptor, &result, sizeof result) && write_tally(descriptor, &down) && write_tally(descriptor, &up);
    windows_free(&down.windows);
    windows_free(&up.windows);
    return written;
}
