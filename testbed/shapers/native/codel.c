/* The names are those of the pseudo-code in section 5 of the RFC; the control law's square root is rounded down to whole ns. */
#include "codel.h"

#include <math.h>

#include "capacity.h"

static const int64_t REENTRY_INTERVALS = 16; /* section 5.5 */

static int64_t square_root(int64_t number) {
    int64_t root = (int64_t)sqrt((double)number);
    while (root * root > number)
        root--;
    while ((root + 1) * (root + 1) <= number)
        root++;
    return root;
}

static int64_t control_law(const struct codel *codel, int64_t now_ns) {
    return now_ns + square_root(codel->interval_ns * codel->interval_ns / codel->count);
}

/* Whether packets have waited longer than the target for an interval at least. */
static bool ok_to_drop(struct codel *codel, int64_t now_ns, const struct packet *packet, const struct fifo *queue) {
    if (!packet || now_ns - packet->arrival_ns < codel->target_ns || queue->bytes <= MTU_BYTES)
        codel->first_above_ns = 0;
    else if (codel->first_above_ns == 0)
        codel->first_above_ns = now_ns + codel->interval_ns;
    else
        return now_ns >= codel->first_above_ns;
    return false;
}

static void start_dropping(struct codel *codel, int64_t now_ns) {
    int64_t delta = codel->count - codel->last_count;
    bool recently = now_ns - codel->drop_next_ns < REENTRY_INTERVALS * codel->interval_ns;
    codel->dropping = true;
    codel->count = delta > 1 && recently ? delta : 1;
    codel->drop_next_ns = control_law(codel, now_ns);
    codel->last_count = codel->count;
}

void codel_reset(struct codel *codel) {
    *codel = (struct codel){.target_ns = codel->target_ns, .interval_ns = codel->interval_ns};
}

struct packet *codel_dequeue(struct codel *codel, int64_t now_ns, struct fifo *queue, struct fifo *dropped) {
    struct packet *packet = fifo_pop(queue);
    bool above = ok_to_drop(codel, now_ns, packet, queue);
    if (codel->dropping) {
        codel->dropping = above;
        while (packet && codel->dropping && now_ns >= codel->drop_next_ns) {
            fifo_push(dropped, packet);
            codel->count++;
            packet = fifo_pop(queue);
            codel->dropping = ok_to_drop(codel, now_ns, packet, queue);
            if (codel->dropping)
                codel->drop_next_ns = control_law(codel, codel->drop_next_ns);
        }
    } else if (packet && above) {
        fifo_push(dropped, packet);
        packet = fifo_pop(queue);
        ok_to_drop(codel, now_ns, packet, queue);
        start_dropping(codel, now_ns);
    }
    return packet;
}
