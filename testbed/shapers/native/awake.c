#include "awake.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LEAST "19"

/* Between sessions, weight is the session's: a task of the lowest class in a session of its own would else count as much as all of another. */
static void weigh_little(void) {
    FILE *file = fopen("/proc/self/autogroup", "w"); /* there is none where sessions have no weight */
    if (file) {
        fputs(LEAST, file);
        fclose(file);
    }
}

static inline void relax(void) {
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause(); /* leaves the core to its other hardware thread for the while */
#elif defined __aarch64__
    __asm__ volatile("isb");
#else
    __asm__ volatile("");
#endif
}

static void *spin(void *unused) {
    struct sched_param parameters = {0};
    sched_setscheduler(0, SCHED_IDLE, &parameters); /* of this thread alone */
    for (;;)
        relax();
    return unused;
}

static int spin_on(int core) {
    pthread_t thread;
    pthread_attr_t attributes;
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET((size_t)core, &cores);
    pthread_attr_init(&attributes);
    pthread_attr_setaffinity_np(&attributes, sizeof cores, &cores);
    return pthread_create(&thread, &attributes, spin, NULL);
}

int awake_main(void) {
    cpu_set_t allowed;
    weigh_little();
    int fault = sched_getaffinity(0, sizeof allowed, &allowed) < 0 ? errno : 0;
    for (int core = 0; core < CPU_SETSIZE && !fault; core++)
        if (CPU_ISSET((size_t)core, &allowed))
            fault = spin_on(core);
    if (fault) {
        fprintf(stderr, "relay: the cores can't be kept awake: %s\n", strerror(fault));
        return 1;
    }
    for (;;)
        pause();
}
