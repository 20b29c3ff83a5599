// Time. The only file that asks the system for it, so that tests can set it.
#pragma once

#include <stdint.h>

double clock_now(void);  // monotonic seconds; for durations and limits
double clock_wall(void); // seconds since 1970, for logs only; never for ordering or time-outs
// "2026-11-21T12:00:00Z" into text[21].
void clock_iso(double wall, char text[21]);
// Test hook: adds `seconds` to clock_wall.
void clock_shift(double seconds);
