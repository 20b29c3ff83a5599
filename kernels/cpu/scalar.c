// See scalar.h.
#include "kernels/cpu/scalar.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

// x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m - 1) / (m + 1), |s| <= 0.1716, as a series:
// its twelfth term is below 1e-19.
double det_log(double x) {
    if (isnan(x) || x < 0) return NAN;
    if (x == 0) return -INFINITY;
    if (isinf(x)) return x;
    int exponent = 0;
    if (x < 0x1p-1022) x *= 0x1p54, exponent = -54;
    uint64_t u;
    memcpy(&u, &x, 8);
    exponent += (int)(u >> 52) - 1023;
    u = (u & 0xFFFFFFFFFFFFFu) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &u, 8);
    if (m > 1.4142135623730951) m *= 0.5, exponent++;
    double s = (m - 1) / (m + 1), square = s * s, sum = 0;
    for (int i = 23; i >= 3; i -= 2) sum = (sum + 1.0 / i) * square;
    // ln 2 in two parts, the first with trailing zeros, so that its product is exact
    double e = exponent;
    return e * 6.93147180369123816490e-01 + (e * 1.90821492927058770002e-10 + 2 * s * sum + 2 * s);
}

// x = n ln 2 + r with |r| <= 0.347; e^r as a series whose last term is below 1e-18.
double det_exp(double x) {
    if (isnan(x)) return x;
    if (x < -708) return 0;
    if (x > 709) return INFINITY;
    double n = floor(x * 1.4426950408889634074 + 0.5);
    double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10, sum = 1;
    for (int i = 15; i >= 1; i--) sum = 1 + sum * r / i;
    uint64_t u = (uint64_t)((int64_t)n + 1023) << 52;
    double scale;
    memcpy(&scale, &u, 8);
    return sum * scale;
}
