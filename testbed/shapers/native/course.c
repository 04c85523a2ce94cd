#include "course.h"

#include <inttypes.h>

#include "fault.h"

static const int64_t MAX_NS = INT64_C(1) << 60; /* 36 years: sums of a few such times fit 64 bits */
static const int64_t MAX_RATE = INT64_C(1) << 51; /* 2 Tbit/s */

static bool read_column(const int64_t **column, int64_t count, struct numbers *numbers) {
    if (count < 0 || count > numbers->left)
        return fail("%" PRId64 " numbers are left of the trace, wanted %" PRId64, numbers->left, count);
    *column = count ? numbers->next : NULL;
    numbers->next += count;
    numbers->left -= count;
    return true;
}

static bool in_range(const char *what, const int64_t *values, int64_t count, int64_t least, int64_t most) {
    for (int64_t i = 0; i < count; i++)
        if (values[i] < least || values[i] > most)
            return fail("%s %" PRId64 " is %" PRId64 ", wanted %" PRId64 " to %" PRId64, what, i, values[i], least, most);
    return true;
}

static bool ascending(const char *what, const int64_t *times_ns, int64_t count) {
    if (!in_range(what, times_ns, count, 0, MAX_NS))
        return false;
    for (int64_t i = 1; i < count; i++)
        if (times_ns[i] < times_ns[i - 1])
            return fail("%s %" PRId64 " is %" PRId64 " ns after %" PRId64 " ns", what, i, times_ns[i], times_ns[i - 1]);
    return times_ns[count - 1] > 0 || fail("the last %s is 0 ns, wanted more", what);
}

/* Edges of segments: the first is 0. */
static bool edges(const char *what, const int64_t *edges_ns, int64_t count) {
    return ascending(what, edges_ns, count) && (edges_ns[0] == 0 || fail("the first %s is %" PRId64 " ns, wanted 0", what, edges_ns[0]));
}

/* A trace whose lap carries next to nothing: its end could be beyond what 64 bits tell in ns. */
static bool carries_enough(const struct course *course) {
    work_t lap_work = capacity_of_lap(course->times_ns, course->points, course->rates);
    if (lap_work == 0)
        return fail("the trace carries nothing");
    work_t most_work = (work_t)MAX_INSIDE_BYTES * work_per_byte(course->rates);
    work_t laps = most_work / lap_work + 2;
    return laps <= MAX_NS / course->times_ns[course->points - 1] || fail("the trace carries next to nothing in a lap");
}

static bool check_capacity(const struct course *course, const struct direction *head) {
    if (head->mean_rate < 0 || head->mean_rate > MAX_RATE)
        return fail("a mean rate of %" PRId64, head->mean_rate);
    if (!head->points)
        return !head->rates || fail("%" PRId64 " rates without times", head->rates);
    if (!head->rates)
        return ascending("opportunity", course->times_ns, course->points) && carries_enough(course);
    if (head->rates != head->points - 1)
        return fail("%" PRId64 " edges for %" PRId64 " rates, wanted one more", head->points, head->rates);
    return edges("edge", course->times_ns, course->points) && in_range("rate", course->rates, head->rates, 0, MAX_RATE) &&
           carries_enough(course);
}

static bool check_conditions(const struct conditions *conditions) {
    int64_t count = conditions->segments;
    return !count || (edges("edge of conditions", conditions->edges_ns, count + 1) &&
                      in_range("delay", conditions->delays_ns, count, PATHS_DELAY, MAX_DELAY_NS) &&
                      in_range("loss", conditions->enter, count, 0, CERTAIN) && in_range("loss", conditions->stay, count, 0, CERTAIN));
}

bool course_read(struct course *course, const struct direction *head, int64_t offset_ns, struct numbers *numbers) {
    struct conditions *conditions = &course->conditions;
    *course = (struct course){.points = head->points, .offset_ns = offset_ns, .mean_rate = head->mean_rate};
    conditions->segments = head->segments;
    conditions->random = head->seed;
    if (head->segments < 0 || head->segments == INT64_MAX)
        return fail("%" PRId64 " segments of conditions", head->segments);
    if (offset_ns < 0)
        return fail("an offset of %" PRId64 " ns", offset_ns);
    return read_column(&course->times_ns, head->points, numbers) && read_column(&course->rates, head->rates, numbers) &&
           read_column(&conditions->edges_ns, head->segments ? head->segments + 1 : 0, numbers) &&
           read_column(&conditions->delays_ns, head->segments, numbers) && read_column(&conditions->enter, head->segments, numbers) &&
           read_column(&conditions->stay, head->segments, numbers) && check_capacity(course, head) && check_conditions(conditions);
}
