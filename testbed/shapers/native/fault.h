/* What went wrong, in a sentence. */
#pragma once

#include <stdbool.h>

enum { FAULT_BYTES = 400 };
extern char fault[FAULT_BYTES];

/* Sets `fault`; returns false. */
bool fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same with what errno means behind it. */
bool fail_errno(const char *format, ...) __attribute__((format(printf, 1, 2)));
