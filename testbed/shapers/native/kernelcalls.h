/* The few Linux calls: the clock, real-time set-up of the process, TAP devices in other network namespaces. */
#pragma once

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* CLOCK_MONOTONIC. */
int64_t clock_now_ns(void);

/* Have the kernel kill this process when the thread that started it ends; at once if its parent is no longer `parent_pid`. */
void die_with_parent(pid_t parent_pid);

/* SCHED_FIFO (not inherited by children), memory locked, no timer slack. Adds a line to `problems` for each thing the kernel refused. */
void become_realtime(int priority, char *problems, size_t size);

/* Take memory from the kernel now, and keep what is freed: a page fault while packets pass would hold them up. To be called before the
   memory is locked, which a limit may forbid: if it came after that, a limit would keep the memory away. */
void keep_memory(size_t bytes);

/* Make TAP device `interface` in the network namespace of process `pid`. It lives as long as the descriptor returned, which doesn't
   block; -1: see `fault`. With `offload` each frame has a virtio_net_hdr before it. */
int open_tap(pid_t pid, const char *interface, bool offload);
