#include "capacity.h"

#include <math.h>
#include <stddef.h>

int64_t count_until(const int64_t *times_ns, int64_t count, int64_t now_ns) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (times_ns[middle] <= now_ns)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

int64_t work_per_byte(const int64_t *rates) {
    return rates ? 8 * 1000 * SECOND_NS : 1;
}

work_t capacity_of_lap(const int64_t *times_ns, int64_t points, const int64_t *rates) {
    if (!rates)
        return (work_t)points * OPPORTUNITY_BYTES;
    work_t work = 0;
    for (int64_t i = 0; i < points - 1; i++)
        work += (work_t)rates[i] * (times_ns[i + 1] - times_ns[i]);
    return work;
}

/* Piecewise-constant rates, served byte by byte */

static void enter(const struct capacity *capacity, struct cursor *cursor, int64_t begin_ns) {
    cursor->begin_ns = begin_ns;
    cursor->end_ns = cursor->lap_ns + capacity->times_ns[cursor->index + 1];
    cursor->rate = capacity->rates[cursor->index];
    cursor->end_work = cursor->work + (work_t)cursor->rate * (cursor->end_ns - begin_ns);
}

static void step(const struct capacity *capacity, struct cursor *cursor) {
    if (++cursor->index == capacity->points - 1) {
        cursor->index = 0;
        cursor->lap_ns = cursor->end_ns;
    }
    cursor->work = cursor->end_work;
    enter(capacity, cursor, cursor->end_ns);
}

/* The curve repeats itself one lap later and one lap's work higher: a long way is a leap and some steps. */
static void leap(const struct capacity *capacity, struct cursor *cursor, int64_t laps) {
    int64_t ns = laps * capacity->duration_ns;
    work_t work = laps * capacity->lap_work;
    cursor->lap_ns += ns;
    cursor->begin_ns += ns;
    cursor->end_ns += ns;
    cursor->work += work;
    cursor->end_work += work;
}

static work_t rates_at(struct capacity *capacity, int64_t now_ns) {
    struct cursor *cursor = &capacity->at;
    if (now_ns > cursor->end_ns)
        leap(capacity, cursor, (now_ns - cursor->end_ns) / capacity->duration_ns);
    while (now_ns > cursor->end_ns)
        step(capacity, cursor);
    return cursor->work + (work_t)cursor->rate * (now_ns - cursor->begin_ns);
}

static int64_t rates_when(struct capacity *capacity, work_t work) {
    struct cursor *cursor = &capacity->when;
    if (work > cursor->end_work)
        leap(capacity, cursor, (int64_t)((work - cursor->end_work - 1) / capacity->lap_work));
    while (work > cursor->end_work)
        step(capacity, cursor);
    return cursor->begin_ns + (int64_t)((work - cursor->work + cursor->rate - 1) / cursor->rate);
}

/* Mahimahi's packet-delivery opportunities: each serves 1500 bytes of what waited before it */

static work_t opportunities(const struct capacity *capacity, int64_t now_ns) {
    int64_t laps = (now_ns - capacity->base_ns) / capacity->duration_ns;
    int64_t within_ns = (now_ns - capacity->base_ns) % capacity->duration_ns;
    return (work_t)laps * capacity->points + count_until(capacity->times_ns, capacity->points, within_ns);
}

static int64_t opportunities_when(const struct capacity *capacity, work_t work) {
    work_t number = capacity->before + (work - 1) / OPPORTUNITY_BYTES;
    int64_t laps = (int64_t)(number / capacity->points), index = (int64_t)(number % capacity->points);
    return capacity->base_ns + laps * capacity->duration_ns + capacity->times_ns[index];
}

/* Either */

void capacity_start(struct capacity *capacity, const int64_t *times_ns, int64_t points, const int64_t *rates, int64_t start_ns,
                    int64_t offset_ns) {
    int64_t duration_ns = times_ns[points - 1], within_ns = offset_ns % duration_ns;
    *capacity = (struct capacity){.times_ns = times_ns, .rates = rates, .points = points, .base_ns = start_ns - within_ns};
    capacity->duration_ns = duration_ns;
    capacity->lap_work = capacity_of_lap(times_ns, points, rates);
    capacity->per_byte = work_per_byte(rates);
    if (rates) {
        capacity->at.index = count_until(times_ns, points, within_ns) - 1;
        capacity->at.lap_ns = capacity->base_ns;
        enter(capacity, &capacity->at, start_ns);
        capacity->when = capacity->at;
    } else {
        capacity->before = opportunities(capacity, start_ns);
    }
}

work_t capacity_at(struct capacity *capacity, int64_t now_ns) {
    if (capacity->rates)
        return rates_at(capacity, now_ns);
    return (opportunities(capacity, now_ns) - capacity->before) * OPPORTUNITY_BYTES;
}

int64_t capacity_when(struct capacity *capacity, work_t work) {
    return capacity->rates ? rates_when(capacity, work) : opportunities_when(capacity, work);
}

int64_t capacity_wraps(const struct capacity *capacity, int64_t now_ns) {
    return now_ns > capacity->base_ns ? (now_ns - capacity->base_ns) / capacity->duration_ns : 0;
}

double capacity_bytes(const struct capacity *capacity, work_t work) {
    int64_t whole = (int64_t)(work / capacity->per_byte), rest = (int64_t)(work % capacity->per_byte);
    if (whole == 0)
        return (double)rest / (double)capacity->per_byte;
    /* 63 bits of the quotient, the last of which stands for all that follow: enough to round to 53 only once */
    int bits = __builtin_clzll((unsigned long long)whole) - 1;
    work_t fraction = (work_t)rest << bits;
    int64_t sticky = fraction % capacity->per_byte != 0;
    int64_t quotient = (whole << bits) | (int64_t)(fraction / capacity->per_byte) | sticky;
    return ldexp((double)quotient, -bits);
}
