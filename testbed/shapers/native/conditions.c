#include "conditions.h"

#include "capacity.h"

/* SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). */
static uint64_t next_random(uint64_t *state) {
    uint64_t mixed = *state += 0x9E3779B97F4A7C15;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB;
    return mixed ^ (mixed >> 31);
}

void conditions_start(struct conditions *conditions, int64_t start_ns, int64_t offset_ns) {
    int64_t within_ns = offset_ns % conditions->edges_ns[conditions->segments];
    conditions->lap_ns = start_ns - within_ns;
    conditions->index = count_until(conditions->edges_ns, conditions->segments + 1, within_ns) - 1;
}

static void find_segment(struct conditions *conditions, int64_t departure_ns) {
    int64_t duration_ns = conditions->edges_ns[conditions->segments];
    int64_t laps = (departure_ns - conditions->lap_ns - 1) / duration_ns;
    if (laps > 0) {
        conditions->lap_ns += laps * duration_ns;
        conditions->index = 0;
    }
    while (departure_ns > conditions->lap_ns + conditions->edges_ns[conditions->index + 1])
        conditions->index++;
}

struct fate conditions_fate(struct conditions *conditions, int64_t departure_ns) {
    find_segment(conditions, departure_ns);
    int64_t enter = conditions->enter[conditions->index], stay = conditions->stay[conditions->index];
    int64_t threshold = conditions->lost ? stay : enter;
    conditions->lost = (enter || stay) && (int64_t)(next_random(&conditions->random) >> 11) < threshold;
    return (struct fate){.delay_ns = conditions->delays_ns[conditions->index], .lost = conditions->lost};
}
