/* Keeps the cores from halting, at the lowest priority there is. */
#pragma once

/* Spin on every core until killed; returns 1 when that can't be begun. */
int awake_main(void);
