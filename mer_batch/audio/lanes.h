/* Vectors of eight floats, and functions compiled for several processors: what our C files share. */
#ifndef MER_BATCH_LANES_H
#define MER_BATCH_LANES_H

#include <stddef.h>

#define LANES 8
#define INLINE static inline __attribute__((always_inline))

/* The same source for what every x86-64 has and for two widths of vectors; the C library picks. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_PROCESSOR \
    __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (indices){__VA_ARGS__})
#endif

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int indices __attribute__((vector_size(4 * LANES)));

INLINE lanes at(const float *x) { return *(const unaligned *)x; }

INLINE void put(float *to, lanes x) { *(unaligned *)to = x; }

INLINE lanes all(float x) { return (lanes){x, x, x, x, x, x, x, x}; }

INLINE lanes chosen(indices mask, lanes a, lanes b) {
    return (lanes)((mask & (indices)a) | (~mask & (indices)b));
}

/* What is no number stays none, here and below. */
INLINE lanes at_least(lanes x, float least) { return chosen(x < least, all(least), x); }

INLINE lanes at_most(lanes x, float most) { return chosen(x > most, all(most), x); }

INLINE float sum_of(lanes x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* e to the x: 2 to a whole number, by way of the exponent's bits, times e to at most ln(2) / 2, by
 * the first eight terms of its series. To float32's rounding; what would be below 1e-37 is 1e-37, what
 * would be above 2e38 infinite. */
INLINE lanes exponential(lanes x) {
    const float round = 12582912.0f; /* 1.5 * 2^23: next to it float32 has no fractions */
    x = at_most(at_least(x, -85.0f), 89.0f);
    lanes twos = (x * 1.44269504088896341f + round) - round;
    lanes r = x - twos * 0.693359375f + twos * 2.12194440e-4f; /* ln(2) in two parts */
    lanes e = r * (1.0f / 5040) + 1.0f / 720;
    e = e * r + 1.0f / 120;
    e = e * r + 1.0f / 24;
    e = e * r + 1.0f / 6;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    indices power = (__builtin_convertvector(twos, indices) + 127) << 23;
    return e * (lanes)power;
}

#endif
