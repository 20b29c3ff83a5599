// Single numbers, the same bits on every machine: plain double arithmetic instead of the C library's functions, whose
// last bit depends on its version and on the CPU.
#pragma once

// Natural logarithm, within 2 units in the last place; -infinity for 0, NaN below.
double det_log(double x);
// e^x, within 2 units in the last place; 0 below the normal range, infinity above.
double det_exp(double x);
