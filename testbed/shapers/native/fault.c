#include "fault.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

char fault[FAULT_BYTES];

bool fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fault, sizeof fault, format, arguments);
    va_end(arguments);
    return false;
}

bool fail_errno(const char *format, ...) {
    const char *reason = strerror(errno);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(fault, sizeof fault, format, arguments);
    va_end(arguments);
    if (length >= 0 && length < FAULT_BYTES)
        snprintf(fault + length, sizeof fault - (size_t)length, ": %s", reason);
    return false;
}
