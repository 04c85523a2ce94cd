#include "kernelcalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "fault.h"

int64_t clock_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void die_with_parent(pid_t parent_pid) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent_pid)
        raise(SIGKILL);
}

static void tell_refused(const char *what, char *problems, size_t size) {
    const char *reason = strerror(errno);
    size_t used = strlen(problems);
    snprintf(problems + used, size - used, "%s%s refused: %s", used ? "\n" : "", what, reason);
}

void become_realtime(int priority, char *problems, size_t size) {
    struct sched_param parameters = {.sched_priority = priority};
    if (sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &parameters) < 0)
        tell_refused("SCHED_FIFO", problems, size);
#ifndef __SANITIZE_ADDRESS__ /* whose terabytes of shadow memory can't be locked */
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
        tell_refused("mlockall", problems, size);
#endif
    prctl(PR_SET_TIMERSLACK, 1);
}

void keep_memory(size_t bytes) {
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, -1);
    void *volatile kept = malloc(bytes); /* a compiler leaves out what it sees is not used */
    free(kept);
}

static int create_tap(const char *interface, bool offload) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | (offload ? IFF_VNET_HDR : 0)};
    memcpy(request.ifr_name, interface, strnlen(interface, IFNAMSIZ - 1));
    int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap < 0)
        fail_errno("open /dev/net/tun");
    else if (ioctl(tap, TUNSETIFF, &request) < 0)
        fail_errno("make interface %s", request.ifr_name);
    else if (offload && ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6) < 0)
        fail_errno("set offloads of interface %s", request.ifr_name);
    else
        return tap;
    if (tap >= 0)
        close(tap);
    return -1;
}

int open_tap(pid_t pid, const char *interface, bool offload) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there = open(path, O_RDONLY | O_CLOEXEC), tap = -1;
    if (own < 0 || there < 0 || setns(there, CLONE_NEWNET) < 0) {
        fail_errno("enter the network namespace %s", path);
    } else {
        tap = create_tap(interface, offload);
        if (setns(own, CLONE_NEWNET) < 0)
            abort(); /* it would make the next device in a wrong place */
    }
    if (own >= 0)
        close(own);
    if (there >= 0)
        close(there);
    return tap;
}
