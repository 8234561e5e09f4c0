/* What is called for every sample or every frame of a track. Called from native.py by ctypes.
 *
 * Mel power is computed of eight frames side by side, in the lanes of vectors: a frame's numbers do
 * not depend on its neighbours', and all that is touched between reading the samples and writing the
 * bands stays in the nearest caches. The transform of n_fft real samples is that of n_fft / 2 complex
 * ones and a step that takes it apart; the complex one is Stockham's, which needs no reordering, in
 * passes of radix 8 and 4.
 *
 * References
 * ----------
 * Van Loan, C. "Computational Frameworks for the Fast Fourier Transform", SIAM, 1992: 1.7 (Stockham)
 * and 4.3 (real data).
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "lanes.h"

/* One more whenever a function of any of our C files is called in another way, its structs included, or
 * gives other numbers; native.py has it, too. */
#define INTERFACE 2

typedef struct {
    lanes re, im;
} complex_lanes;

INLINE complex_lanes add(complex_lanes a, complex_lanes b) {
    return (complex_lanes){a.re + b.re, a.im + b.im};
}

INLINE complex_lanes sub(complex_lanes a, complex_lanes b) {
    return (complex_lanes){a.re - b.re, a.im - b.im};
}

INLINE complex_lanes times_minus_i(complex_lanes a) { return (complex_lanes){a.im, -a.re}; }

INLINE complex_lanes times(complex_lanes a, const float *root) {
    return (complex_lanes){a.re * root[0] - a.im * root[1], a.re * root[1] + a.im * root[0]};
}

INLINE void transpose(lanes rows[LANES]) {
    lanes pairs[LANES], fours[LANES];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = SHUFFLE(rows[i], rows[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[i + 1] = SHUFFLE(rows[i], rows[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            lanes a = pairs[i + j], b = pairs[i + j + 2];
            fours[i + 2 * j] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
            fours[i + 2 * j + 1] = SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        rows[i] = SHUFFLE(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        rows[i + 4] = SHUFFLE(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}

/* Stockham's pass over transforms of length n, stride of them side by side. The roots of unity are
 * `stride` times as many, and twice again: those of the real transform. */
INLINE void radix_4(int n, int stride, const float *roots, const complex_lanes *x, complex_lanes *y) {
    int m = n / 4, apart = stride * m;
    for (int p = 0; p < m; p++) {
        const float *w = roots + 4 * stride * p, *w2 = w + 4 * stride * p, *w3 = w2 + 4 * stride * p;
        for (int q = 0; q < stride; q++) {
            const complex_lanes *from = x + q + stride * p;
            complex_lanes *to = y + q + 4 * stride * p;
            complex_lanes a = from[0], b = from[apart], c = from[2 * apart], d = from[3 * apart];
            complex_lanes ac = add(a, c), a_c = sub(a, c);
            complex_lanes bd = add(b, d), b_d = times_minus_i(sub(b, d));
            to[0] = add(ac, bd);
            to[stride] = times(add(a_c, b_d), w);
            to[2 * stride] = times(sub(ac, bd), w2);
            to[3 * stride] = times(sub(a_c, b_d), w3);
        }
    }
}

INLINE void radix_8(int n, int stride, const float *roots, const complex_lanes *x, complex_lanes *y) {
    const float half = 0.70710678118654752440f; /* the square root of it */
    int m = n / 8, apart = stride * m;
    for (int p = 0; p < m; p++) {
        const float *w[8];
        for (int i = 1; i < 8; i++) w[i] = roots + 4 * (size_t)stride * p * i;
        for (int q = 0; q < stride; q++) {
            const complex_lanes *from = x + q + stride * p;
            complex_lanes *to = y + q + 8 * stride * p;
            complex_lanes a = from[0], b = from[apart], c = from[2 * apart], d = from[3 * apart];
            complex_lanes e = from[4 * apart], f = from[5 * apart];
            complex_lanes g = from[6 * apart], h = from[7 * apart];
            complex_lanes ae = add(a, e), a_e = sub(a, e), cg = add(c, g), c_g = times_minus_i(sub(c, g));
            complex_lanes bf = add(b, f), b_f = sub(b, f), dh = add(d, h), d_h = times_minus_i(sub(d, h));
            complex_lanes even0 = add(ae, cg), even2 = sub(ae, cg);
            complex_lanes even1 = add(a_e, c_g), even3 = sub(a_e, c_g);
            complex_lanes odd0 = add(bf, dh), odd2 = times_minus_i(sub(bf, dh));
            complex_lanes o1 = add(b_f, d_h), o3 = sub(b_f, d_h);
            complex_lanes odd1 = {(o1.re + o1.im) * half, (o1.im - o1.re) * half};
            complex_lanes odd3 = {(o3.im - o3.re) * half, (o3.im + o3.re) * -half};
            to[0] = add(even0, odd0);
            to[stride] = times(add(even1, odd1), w[1]);
            to[2 * stride] = times(add(even2, odd2), w[2]);
            to[3 * stride] = times(add(even3, odd3), w[3]);
            to[4 * stride] = times(sub(even0, odd0), w[4]);
            to[5 * stride] = times(sub(even1, odd1), w[5]);
            to[6 * stride] = times(sub(even2, odd2), w[6]);
            to[7 * stride] = times(sub(even3, odd3), w[7]);
        }
    }
}

int native_interface(void) { return INTERFACE; }

/* samples: frame i begins at samples + i * hop_length. n_fft: a power of two, 16 or more. window:
 * (n_fft). roots: (n_fft, 2), cosine and sine of -2 pi k / n_fft. filters: (n_mels, 1 + n_fft / 2),
 * of which row j is zero outside [bins[2 j], bins[2 j + 1]). room: aligned as lanes are, for
 * 2 * n_fft + n_mels of them. mel: (n_frames, n_mels). */
FOR_EACH_PROCESSOR
void mel_power(const float *samples, size_t n_frames, size_t hop_length, int n_fft,
               const float *window, const float *roots, int n_mels, const float *filters,
               const int *bins, void *room, float *mel) {
    int n = n_fft / 2;
    complex_lanes *first = room, *second = first + n;
    lanes *bands = (lanes *)(second + n);
    for (size_t frame = 0; frame < n_frames; frame += LANES) {
        size_t n_here = n_frames - frame < LANES ? n_frames - frame : LANES;
        const float *from[LANES]; /* lanes that are left over repeat the last frame */
        for (size_t l = 0; l < LANES; l++)
            from[l] = samples + hop_length * (frame + (l < n_here ? l : n_here - 1));

        for (int i = 0; i < n_fft; i += LANES) {
            lanes *to = (lanes *)first + i, weights = *(const unaligned *)(window + i);
            for (int l = 0; l < LANES; l++) to[l] = *(const unaligned *)(from[l] + i) * weights;
            transpose(to);
        }

        complex_lanes *x = first, *y = second;
        for (int left = n, stride = 1; left > 1;) {
            int radix = left % 8 == 0 && left != 16 ? 8 : 4;
            if (radix == 8)
                radix_8(left, stride, roots, x, y);
            else
                radix_4(left, stride, roots, x, y);
            left /= radix, stride *= radix;
            complex_lanes *done = y;
            y = x, x = done;
        }

        lanes *power = (lanes *)y; /* n + 1 of 2 n */
        lanes sum = x[0].re + x[0].im, difference = x[0].re - x[0].im;
        power[0] = sum * sum;
        power[n] = difference * difference;
        power[n / 2] = x[n / 2].re * x[n / 2].re + x[n / 2].im * x[n / 2].im;
        for (int k = 1; k < n / 2; k++) {
            /* Twice the transforms of the even and of the odd samples. */
            complex_lanes u = x[k], v = {x[n - k].re, -x[n - k].im};
            complex_lanes even = add(u, v), odd = times(times_minus_i(sub(u, v)), roots + 2 * k);
            complex_lanes low = add(even, odd), high = sub(even, odd);
            power[k] = (low.re * low.re + low.im * low.im) * 0.25f;
            power[n - k] = (high.re * high.re + high.im * high.im) * 0.25f;
        }

        for (int j = 0; j < n_mels; j++) {
            const float *row = filters + (size_t)j * (n + 1);
            lanes one = {0}, other = {0}; /* two sums, as one would wait for itself */
            int k = bins[2 * j], end = bins[2 * j + 1];
            for (; k + 1 < end; k += 2) {
                one += power[k] * row[k];
                other += power[k + 1] * row[k + 1];
            }
            if (k < end) one += power[k] * row[k];
            bands[j] = one + other;
        }
        for (size_t l = 0; l < n_here; l++)
            for (int j = 0; j < n_mels; j++) mel[(frame + l) * n_mels + j] = bands[j][l];
    }
}

/* The mean of two channels: stereo is (n_samples, 2). */
FOR_EACH_PROCESSOR
void mean_of_two(const float *stereo, size_t n_samples, float *mono) {
    for (size_t i = 0; i < n_samples; i++) mono[i] = stereo[2 * i] * 0.5f + stereo[2 * i + 1] * 0.5f;
}

/* Half floats to single ones, which hold them all: the exponent counts from another number, and where
 * it is full stands for no number or none that is finite. */
FOR_EACH_PROCESSOR
void singles(const uint16_t *halves, size_t n, float *found) {
    for (size_t i = 0; i < n; i++) {
        union {
            uint32_t bits;
            float value;
        } of = {(uint32_t)(halves[i] & 0x7fff) << 13};
        of.value *= 0x1p112f;
        of.bits |= (halves[i] & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
        of.bits |= (uint32_t)(halves[i] & 0x8000) << 16;
        found[i] = of.value;
    }
}

/* Positions of MPEG frames of which one begins where the last one ends, from *position on, at most
 * `room` of them; returns how many there are, and in *position where the walk has come to. lengths:
 * (65536), of a frame by bytes 1 and 2 of its header, 0 where that is none. */
size_t run_of_frames(const uint8_t *data, size_t n_bytes, size_t *position, const int32_t *lengths,
                     int64_t *positions, size_t room) {
    size_t at = *position, n = 0;
    while (n < room && n_bytes >= 4 && at <= n_bytes - 4 && data[at] == 0xFF) {
        size_t length = lengths[data[at + 1] << 8 | data[at + 2]];
        if (length == 0 || length > n_bytes - at) break;
        positions[n++] = at;
        at += length;
    }
    *position = at;
    return n;
}

/* A file in memory, as libsndfile is to read it: the functions of its SF_VIRTUAL_IO. Places before
 * the beginning are refused where they are named and mean the beginning where they are counted to;
 * places behind the end hold nothing: as of Python's BytesIO. */
struct memory_file {
    const uint8_t *data;
    int64_t n_bytes, position;
};

int64_t memory_file_length(void *file) { return ((struct memory_file *)file)->n_bytes; }

int64_t memory_file_tell(void *file) { return ((struct memory_file *)file)->position; }

int64_t memory_file_seek(int64_t offset, int whence, void *file) {
    struct memory_file *memory = file;
    int64_t from = whence == SEEK_CUR ? memory->position : whence == SEEK_END ? memory->n_bytes : 0;
    if ((whence == SEEK_SET && offset < 0) || offset > INT64_MAX - from) return 0;
    memory->position = from + offset < 0 ? 0 : from + offset;
    return memory->position;
}

int64_t memory_file_read(void *to, int64_t n_bytes, void *file) {
    struct memory_file *memory = file;
    int64_t left = memory->n_bytes - memory->position;
    int64_t n = n_bytes < left ? n_bytes : left;
    if (n <= 0) return 0;
    memcpy(to, memory->data + memory->position, n);
    memory->position += n;
    return n;
}

int64_t memory_file_write(const void *from, int64_t n_bytes, void *file) {
    (void)from, (void)n_bytes, (void)file;
    return 0;
}
