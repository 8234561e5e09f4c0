/* The statistics of statistics.py, of one spectrogram. Called from native_statistics.py by
 * ctypes.
 *
 * The names and the order are those of statistics.py, which says what each is for; its constants are
 * here a second time. A series over time is a row of whole vectors: behind its last value there are
 * others that are finite, and weigh nothing. What is as large as the spectrogram is computed a block
 * of frames at a time, which stays in the nearest cache until it has become a few rows.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lanes.h"

#define ACTIVE_DB 50.0f
#define HEARD_DB 60.0f
#define LOUD_QUANTILE 0.95f
#define RANGE_DB 90.0f
#define MAX_STEP_DB 30.0f
#define FULL_DB 40.0f
#define LOUDNESS_EXPONENT 0.4f
#define RAMP_DB 0.5f
#define LN10_OVER_10 0.23025850929940456840f
enum { CEPSTRA = 25, BY20 = 20, BY8 = 8, RANGES = 5, RATES = 4, PULSES = 4, TEMPO_RANGES = 12 };
enum { N_STATISTICS = 260, PITCHES = 72, PITCHES_PER_OCTAVE = 24, FITS = 48, INTERVALS = 25, N_QUANTILES = 4 };
static const float LOUDNESS_QUANTILES[N_QUANTILES] = {0.1f, 0.25f, 0.5f, 0.75f};
static const float RATE_DB[RATES] = {1.0f, 2.0f, 4.0f, 8.0f};

enum { BLOCK = 64, BLOCK_WIDE = BLOCK + LANES }; /* frames computed at a time, and one more */

/* Rows of what is heard in each frame, and of what changes from a frame to the next. */
enum {
    CEPSTRA_AT = 0,
    BY20_AT = CEPSTRA_AT + CEPSTRA,
    BY8_AT = BY20_AT + BY20,
    FULLNESS_AT = BY8_AT + BY8,
    PEAKS_AT = FULLNESS_AT + RANGES,
    LEVEL_AT = PEAKS_AT + BY8,
    STATES = LEVEL_AT + 1
};
enum {
    RISES_AT = 0,
    STROKES_AT = RISES_AT + RANGES,
    FALLS_AT = STROKES_AT + RANGES,
    FLUX_AT = FALLS_AT + RANGES,
    STEP_AT = FLUX_AT + BY20,
    CHANGES = STEP_AT + 1
};
/* Rises of all bands, the lowest and the highest; strokes of all. */
static const int PULSE_ROWS[PULSES] = {RISES_AT, RISES_AT + 1, RISES_AT + 4, STROKES_AT};

/* (n_rows, n_columns), of which row i is zero outside [ends[2 i], ends[2 i + 1]). */
struct banded {
    const float *values;
    const int32_t *ends;
};

/* What follows from a spectrogram's parameters; the Tables of statistics_tables.py. */
struct statistics_tables {
    int32_t n_mels, held_frames, chord_frames, n_lags, n_tempo_lags;
    float frame_seconds;
    struct banded sharpen, outlines, by8, ranges, chords;
    const int32_t *pulse_lags; /* (TEMPO_RANGES, n_tempo_lags) */
};

INLINE lanes magnitude(lanes x) { return (lanes)((indices)x & 0x7fffffff); }

INLINE lanes is_above(lanes x, float level) { return chosen(x > level, all(1), all(0)); }

INLINE size_t wide(size_t n) { return (n + LANES - 1) / LANES * LANES; }

/* The product of a matrix with columns of x, which are (n_columns, n): y is (n_rows, n). */
INLINE void project(struct banded matrix, int n_rows, int n_columns, const float *x, size_t x_wide,
                    float *y, size_t y_wide, size_t n) {
    for (int row = 0; row < n_rows; row++) {
        const float *weights = matrix.values + (size_t)row * n_columns;
        int begin = matrix.ends[2 * row], end = matrix.ends[2 * row + 1];
        float *to = y + row * y_wide;
        size_t t = 0;
        for (; t + 4 * LANES <= wide(n); t += 4 * LANES) {
            lanes a = {0}, b = {0}, c = {0}, d = {0};
            for (int k = begin; k < end; k++) {
                const float *from = x + k * x_wide + t;
                a += at(from) * weights[k], b += at(from + LANES) * weights[k];
                c += at(from + 2 * LANES) * weights[k], d += at(from + 3 * LANES) * weights[k];
            }
            put(to + t, a), put(to + t + LANES, b);
            put(to + t + 2 * LANES, c), put(to + t + 3 * LANES, d);
        }
        for (; t < wide(n); t += LANES) {
            lanes a = {0};
            for (int k = begin; k < end; k++) a += at(x + k * x_wide + t) * weights[k];
            put(to + t, a);
        }
    }
}

/* Sum of products over n values; both are whole vectors. */
INLINE float product(const float *a, const float *b, size_t n) {
    lanes one = {0}, other = {0};
    size_t t = 0;
    for (; t + 2 * LANES <= wide(n); t += 2 * LANES) {
        one += at(a + t) * at(b + t);
        other += at(a + t + LANES) * at(b + t + LANES);
    }
    if (t < wide(n)) one += at(a + t) * at(b + t);
    return sum_of(one + other);
}

struct moments {
    float mean, variance, std, third, fourth;
};

/* Under weights that add up to 1. */
INLINE struct moments moments_of(const float *x, const float *shares, size_t n) {
    struct moments found;
    found.mean = product(x, shares, n);
    lanes second = {0}, third = {0}, fourth = {0};
    for (size_t t = 0; t < n; t += LANES) {
        lanes deviation = at(x + t) - found.mean, square = deviation * deviation;
        lanes weighted = square * at(shares + t);
        second += weighted;
        third += weighted * deviation;
        fourth += weighted * square;
    }
    found.variance = sum_of(second);
    found.std = sqrtf(found.variance + 1e-6f);
    found.third = sum_of(third);
    found.fourth = sum_of(fourth);
    return found;
}

/* Weights to weights that add up to 1 over n values, then zeros; all 0 where nothing weighs. */
INLINE void shares_of(const float *weights, size_t n, float *shares) {
    float sum = 0;
    for (size_t t = 0; t < n; t++) sum += weights[t];
    float scale = 1 / (sum > 1e-6f ? sum : 1e-6f);
    for (size_t t = 0; t < n; t++) shares[t] = weights[t] * scale;
    for (size_t t = n; t < wide(n); t++) shares[t] = 0;
}

/* Upwards, digit by digit of the numbers' bits, which are ordered as the numbers are once those of
 * negative ones are turned over. */
static void sort(float *x, size_t n, uint32_t *keys, uint32_t *room) {
    memcpy(keys, x, 4 * n);
    for (size_t i = 0; i < n; i++) keys[i] ^= keys[i] >> 31 ? 0xffffffffu : 0x80000000u;
    for (int digit = 0; digit < 32; digit += 8) {
        size_t begins[257] = {0};
        for (size_t i = 0; i < n; i++) begins[1 + (keys[i] >> digit & 255)]++;
        for (int i = 1; i < 256; i++) begins[i] += begins[i - 1];
        for (size_t i = 0; i < n; i++) room[begins[keys[i] >> digit & 255]++] = keys[i];
        uint32_t *sorted = room;
        room = keys, keys = sorted;
    }
    for (size_t i = 0; i < n; i++) keys[i] ^= keys[i] >> 31 ? 0x80000000u : 0xffffffffu;
    memcpy(x, keys, 4 * n);
}

/* Quantile of the last values of n that go upwards, linear in between. */
static float quantile_of_last(const float *ordered, size_t n, size_t n_last, float probability) {
    float place = probability * (float)(n_last - 1), below = floorf(place);
    size_t first = (size_t)below + n - n_last, next = first + 1 < n ? first + 1 : n - 1;
    return ordered[first] + (ordered[next] - ordered[first]) * (place - below);
}

static float clamped(float x, float least, float most) { return fminf(fmaxf(x, least), most); }

static float log_of(float x) { return logf(fmaxf(x, 0.01f)); }

INLINE size_t step_of(size_t length) { return length / 2 ? length / 2 : 1; }

INLINE size_t n_windows(size_t n, size_t length) { return (n - length) / step_of(length) + 1; }

INLINE void window_means_of(int n_rows, const float *x, size_t x_wide, size_t n, size_t length,
                            float *means, size_t means_wide) {
    size_t step = step_of(length);
    for (size_t window = 0; window < n_windows(n, length); window++) {
        float sums[LANES] = {0}; /* side by side, as one would wait for itself */
        for (size_t t = window * step; t < window * step + length; t++)
            for (int row = 0; row < n_rows; row++) sums[row] += x[row * x_wide + t];
        for (int row = 0; row < n_rows; row++)
            means[row * means_wide + window] = sums[row] / (float)length;
    }
}

/* Means of rows over windows of `length` frames that overlap by half. */
INLINE void window_means(int n_rows, const float *x, size_t x_wide, size_t n, size_t length,
                         float *means, size_t means_wide) {
    int row = 0;
    for (; row + LANES <= n_rows; row += LANES)
        window_means_of(LANES, x + row * x_wide, x_wide, n, length, means + row * means_wide,
                        means_wide);
    for (; row < n_rows; row++)
        window_means_of(1, x + row * x_wide, x_wide, n, length, means + row * means_wide,
                        means_wide);
}

/* A spectrogram of n frames on its way. Rows are `row` floats long, those over windows `window`. */
struct work {
    size_t n, row, window;
    float loud;
    size_t n_active;
    float *db, *peaks, *states, *changes;
    float *ordered, *active, *steps, *active_shares, *steps_shares, *inner_shares, *pulse;
    float *block, *means, *chords, *norm, *weights, *correlations;
    float *keys, *correlation;
};

/* Lay it out from `begin` on; returns how many floats that takes. */
static size_t lay_out(struct work *work, const struct statistics_tables *tables, size_t n,
                      float *begin) {
    size_t held = (size_t)tables->held_frames, chord = (size_t)tables->chord_frames;
    size_t shorter = held < chord ? held : chord;
    work->n = n;
    work->row = wide(n) + LANES; /* the frame behind the last whole vector is read, too */
    work->window = wide(n_windows(n, shorter < n ? shorter : n));
    size_t bands = tables->n_mels, row = work->row, window = work->window;
    size_t pulse = row + wide(tables->n_lags);
    struct {
        float **of;
        size_t n;
    } parts[] = {
        {&work->db, bands * row}, {&work->peaks, bands * row},
        {&work->states, STATES * row}, {&work->changes, CHANGES * row},
        {&work->ordered, row}, {&work->active, row}, {&work->steps, row},
        {&work->active_shares, row}, {&work->steps_shares, row}, {&work->inner_shares, row},
        {&work->pulse, pulse}, {&work->block, bands * BLOCK_WIDE},
        {&work->means, bands * window}, {&work->chords, (PITCHES + PITCHES_PER_OCTAVE + FITS) * window},
        {&work->norm, window}, {&work->weights, window}, {&work->correlations, 3 * window},
        {&work->keys, 2 * row}, {&work->correlation, wide(tables->n_lags)},
    };
    size_t taken = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (begin) *parts[i].of = begin + taken;
        taken += parts[i].n;
    }
    return taken;
}

/* Whether all are finite: nothing else is zero when multiplied by it. */
INLINE int are_finite(const float *x, size_t n) {
    lanes sum = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += at(x + i) * 0;
    float rest = 0;
    for (; i < n; i++) rest += x[i] * 0;
    return sum_of(sum) + rest == 0;
}

/* Measure levels against those of the loud frames, and find the silent ones. Whether there are levels:
 * what is not finite, or louder than float32 has powers for, has none. */
INLINE int without_gain(struct work *work, const float *log_mel, int n_mels) {
    size_t n = work->n, row = work->row;
    for (int band = 0; band < n_mels; band++) {
        float *to = work->db + band * row;
        memcpy(to, log_mel + band * n, 4 * n);
        for (size_t t = n; t < row; t++) to[t] = to[n - 1];
    }
    float *level = work->states + LEVEL_AT * row, *ordered = work->ordered;
    for (size_t t = 0; t < wide(n); t += LANES) {
        lanes one = {0}, other = {0};
        int band = 0;
        for (; band + 1 < n_mels; band += 2) {
            one += exponential(at(work->db + band * row + t) * LN10_OVER_10);
            other += exponential(at(work->db + (band + 1) * row + t) * LN10_OVER_10);
        }
        if (band < n_mels) one += exponential(at(work->db + band * row + t) * LN10_OVER_10);
        put(level + t, one + other);
    }
    for (size_t t = 0; t < wide(n); t++) level[t] = 10 * log10f(level[t]);
    for (size_t t = wide(n); t < row; t++) level[t] = level[n - 1];

    if (!are_finite(work->db, n_mels * row) || !are_finite(level, n)) return 0;

    memcpy(ordered, level, 4 * n);
    sort(ordered, n, (uint32_t *)work->keys, (uint32_t *)work->keys + n);
    size_t n_heard = 0;
    for (size_t t = 0; t < n; t++) n_heard += ordered[t] > ordered[n - 1] - HEARD_DB;
    float loud = work->loud = quantile_of_last(ordered, n, n_heard, LOUD_QUANTILE);

    for (int band = 0; band < n_mels; band++)
        for (size_t t = 0; t < row; t += LANES) {
            float *of = work->db + band * row + t;
            put(of, at_least(at(of), loud - RANGE_DB) - loud);
        }
    work->n_active = 0;
    for (size_t t = 0; t < row; t++) level[t] -= loud;
    for (size_t t = 0; t < n; t++) {
        ordered[t] -= loud;
        work->active[t] = level[t] > -ACTIVE_DB;
        work->n_active += level[t] > -ACTIVE_DB;
    }
    for (size_t t = n; t < row; t++) work->active[t] = 0;
    for (size_t t = 0; t + 1 < row; t++) work->steps[t] = work->active[t] * work->active[t + 1];
    work->steps[row - 1] = 0;
    shares_of(work->active, n, work->active_shares);
    shares_of(work->steps, n - 1, work->steps_shares);
    shares_of(work->steps + 1, n - 3, work->inner_shares);
    return 1;
}

/* The rows of a block of frames that begins with `first`. */
INLINE void rows_of_block(struct work *work, const struct statistics_tables *tables, size_t first) {
    int n_mels = tables->n_mels;
    size_t row = work->row, n = wide(work->n) - first < BLOCK ? wide(work->n) - first : BLOCK;
    const float *db = work->db + first;
    float *peaks = work->peaks + first, *block = work->block;
    float *states = work->states + first, *changes = work->changes + first;

    project(tables->outlines, CEPSTRA + BY20 + BY8, n_mels, db, row, states, row, n);
#define EACH(t) \
    for (int band = 0; band < n_mels; band++) \
        for (size_t t = 0; t < n; t += LANES)
#define BLOCK_AT(t) (block + band * BLOCK_WIDE + (t))

    EACH(t) put(BLOCK_AT(t), is_above(at(db + band * row + t), -FULL_DB));
    project(tables->ranges, RANGES, n_mels, block, BLOCK_WIDE, states + FULLNESS_AT * row, row, n);

    /* Peaks across bands: what is left of a frame without its smooth outline. */
    project(tables->sharpen, n_mels, n_mels, db, row, peaks, row, n);
    EACH(t) {
        float *of = peaks + band * row + t;
        lanes peak = at(of) * at(work->active + first + t);
        put(of, peak);
        put(BLOCK_AT(t), magnitude(peak));
    }
    project(tables->by8, BY8, n_mels, block, BLOCK_WIDE, states + PEAKS_AT * row, row, n);

#define STEP(t) (at(db + band * row + (t) + 1) - at(db + band * row + (t)))
    EACH(t) put(BLOCK_AT(t), at_most(at_least(STEP(t), 0), MAX_STEP_DB));
    project(tables->ranges, RANGES, n_mels, block, BLOCK_WIDE, changes + RISES_AT * row, row, n);
    EACH(t) put(BLOCK_AT(t), at_most(at_least(-STEP(t), 0), MAX_STEP_DB));
    project(tables->ranges, RANGES, n_mels, block, BLOCK_WIDE, changes + FALLS_AT * row, row, n);

    /* Rises of perceived loudness, where a loud drum counts for more than a faint rustle. */
    for (int band = 0; band < n_mels; band++) {
        for (size_t t = 0; t < n + LANES; t += LANES)
            put(BLOCK_AT(t), exponential(at(db + band * row + t) * (LOUDNESS_EXPONENT * LN10_OVER_10)));
        for (size_t t = 0; t < n; t += LANES)
            put(BLOCK_AT(t), at_least(at(BLOCK_AT(t + 1)) - at(BLOCK_AT(t)), 0) * 10);
    }
    project(tables->ranges, RANGES, n_mels, block, BLOCK_WIDE, changes + STROKES_AT * row, row, n);
}

INLINE void differences(const float *x, float *y, size_t n) {
    for (size_t t = 0; t < wide(n); t += LANES) put(y + t, magnitude(at(x + t + 1) - at(x + t)));
}

/* How often something begins: per second, peaks of the rise above some levels, and frames above. */
INLINE float *rates(const struct work *work, float frame_seconds, float *to) {
    size_t n = work->n - 1;
    for (int is_peak = 1; is_peak >= 0; is_peak--)
        for (int rate = 0; rate < RATES; rate++)
            for (int range = 0; range < RANGES; range++) {
                const float *rises = work->changes + (RISES_AT + range) * work->row;
                float offset = 0.5f - RATE_DB[rate] / RAMP_DB;
                lanes sum = {0};
                for (size_t t = 0; t < wide(is_peak ? n - 2 : n); t += LANES) {
                    lanes x = at(rises + t + is_peak);
                    lanes shares = at((is_peak ? work->inner_shares : work->steps_shares) + t);
                    if (is_peak) x = chosen((x > at(rises + t)) & (x >= at(rises + t + 2)), x, all(0));
                    sum += at_most(at_least(x * (1 / RAMP_DB) + offset, 0), 1) * shares;
                }
                *to++ = sum_of(sum) / frame_seconds;
            }
    return to;
}

/* How regularly rises return: autocorrelation, the largest in each range of tempo. */
INLINE float *pulse(const struct work *work, const struct statistics_tables *tables,
                    const struct moments *changes, float *to) {
    size_t n = work->n - 1, n_lags = tables->n_lags;
    float *centred = work->pulse, *correlation = work->correlation;
    for (int i = 0; i < PULSES; i++) {
        const float *x = work->changes + PULSE_ROWS[i] * work->row;
        float mean = changes[PULSE_ROWS[i]].mean;
        for (size_t t = 0; t < wide(n); t += LANES)
            put(centred + t, (at(x + t) - mean) * at(work->steps + t));
        for (size_t t = n; t < work->row + wide(n_lags); t++) centred[t] = 0;
        for (size_t lag = 0; lag < n_lags; lag++) {
            /* A lag of half the clip has half the terms; below a quarter it is only noise. */
            size_t terms = n > lag ? n - lag : 0, least = n / 4 > 1 ? n / 4 : 1;
            float sum = terms ? product(centred, centred + lag, n) : 0;
            correlation[lag] = sum * ((float)n / (float)(terms > least ? terms : least));
        }
        for (int range = 0; range < TEMPO_RANGES; range++) {
            const int32_t *lags = tables->pulse_lags + range * tables->n_tempo_lags;
            float most = correlation[lags[0]];
            for (int i = 1; i < tables->n_tempo_lags; i++) most = fmaxf(most, correlation[lags[i]]);
            *to++ = most / fmaxf(correlation[0], 1e-6f);
        }
    }
    return to;
}

/* How much of the peaks survives averaging over half a second, in eight ranges. */
INLINE float *held(const struct work *work, const struct statistics_tables *tables,
                   const struct moments *states, float *to) {
    size_t n = work->n, length = tables->held_frames, window = work->window;
    length = length < n ? length : n;
    size_t n_held = n_windows(n, length);
    window_means(1, work->active, work->row, n, length, work->weights, window);
    shares_of(work->weights, n_held, work->weights);
    window_means(tables->n_mels, work->peaks, work->row, n, length, work->means, window);
    float sums[BY8] = {0};
    for (int band = 0; band < tables->n_mels; band++) {
        float *means = work->means + band * window;
        for (size_t t = n_held; t < wide(n_held); t++) means[t] = 0;
        for (size_t t = 0; t < n_held; t += LANES) put(means + t, magnitude(at(means + t)));
        float lasting = product(means, work->weights, n_held);
        for (int range = 0; range < BY8; range++)
            sums[range] += tables->by8.values[range * tables->n_mels + band] * lasting;
    }
    for (int range = 0; range < BY8; range++)
        *to++ = sums[range] / fmaxf(states[PEAKS_AT + range].mean, 0.1f);
    return to;
}

/* Which intervals sound together, and how major or minor that is, second by second. */
INLINE void harmony(const struct work *work, const struct statistics_tables *tables, float *to) {
    size_t n = work->n, length = tables->chord_frames, window = work->window;
    length = length < n ? length : n;
    size_t n_chords = n_windows(n, length);
    int n_mels = tables->n_mels;
    for (int band = 0; band < n_mels; band++)
        for (size_t t = 0; t < wide(n); t += LANES) {
            float *of = work->peaks + band * work->row + t;
            put(of, at_least(at(of), 0));
        }
    window_means(n_mels, work->peaks, work->row, n, length, work->means, window);
    for (int band = 0; band < n_mels; band++)
        for (size_t t = n_chords; t < wide(n_chords); t++) work->means[band * window + t] = 0;
    float *grid = work->chords, *chroma = grid + PITCHES * window;
    float *fits = chroma + PITCHES_PER_OCTAVE * window;
    project(tables->chords, PITCHES + PITCHES_PER_OCTAVE + FITS, n_mels, work->means, window, grid,
            window, n_chords);

    float *norm = work->norm, *weights = work->weights;
    for (size_t t = 0; t < n_chords; t += LANES) {
        lanes sum = {0};
        for (int pitch = 0; pitch < PITCHES_PER_OCTAVE; pitch++)
            sum += at(chroma + pitch * window + t) * at(chroma + pitch * window + t);
        put(norm + t, sum);
    }
    for (size_t t = 0; t < wide(n_chords); t++) norm[t] = fmaxf(sqrtf(norm[t]), 0.03f);
    /* Seconds with clear chords count for more than seconds of noise. */
    shares_of(norm, n_chords, weights);

    float *first = work->correlations, *other = first + window;
    for (int lag = 0; lag <= INTERVALS; lag++) {
        for (size_t t = 0; t < n_chords; t += LANES) {
            lanes sum = {0};
            for (int pitch = 0; pitch + lag < PITCHES; pitch++)
                sum += at(grid + pitch * window + t) * at(grid + (pitch + lag) * window + t);
            put((lag ? other : first) + t, lag ? sum / at(first + t) : at_least(sum, 0.001f));
        }
        if (lag) *to++ = product(other, weights, n_chords);
    }

    float *fit = work->correlations; /* to major and minor keys, and the difference */
    for (size_t t = 0; t < n_chords; t += LANES) {
        lanes best[2];
        for (int key = 0; key < 2; key++) {
            const float *of = fits + key * PITCHES_PER_OCTAVE * window + t;
            best[key] = at(of);
            for (int shift = 1; shift < PITCHES_PER_OCTAVE; shift++) {
                lanes another = at(of + shift * window);
                best[key] = chosen(another > best[key], another, best[key]);
            }
            best[key] /= at(norm + t);
            put(fit + key * window + t, best[key]);
        }
        put(fit + 2 * window + t, best[0] - best[1]);
    }
    for (size_t t = 0; t < wide(n_chords); t++) norm[t] = t < n_chords ? 1.0f / (float)n_chords : 0;
    for (int i = 0; i < 3; i++) {
        *to++ = product(fit + i * window, weights, n_chords);
        to[2] = sqrtf(moments_of(fit + i * window, norm, n_chords).variance);
    }
}

INLINE float *suddenness(const struct moments *rows, float *to) {
    for (int i = 0; i < RANGES; i++) {
        to[i] = log_of(rows[i].mean);
        to[RANGES + i] = log_of(rows[i].std);
        float cube = rows[i].std * rows[i].std * rows[i].std;
        to[2 * RANGES + i] = clamped(rows[i].third / cube, -5, 20);
    }
    return to + 3 * RANGES;
}

/* Floats of room that `statistics` needs for n_frames. */
size_t statistics_room(const struct statistics_tables *tables, size_t n_frames) {
    struct work work;
    return lay_out(&work, tables, n_frames, NULL);
}

/* log_mel: (n_mels, n_frames) [dB], 12 frames or more. found: (N_STATISTICS), NaN where there are
 * no levels. */
FOR_EACH_PROCESSOR
void statistics(const struct statistics_tables *tables, const float *log_mel, size_t n_frames,
                float *room, float *found) {
    struct work work;
    lay_out(&work, tables, n_frames, room);
    size_t row = work.row;
    if (!without_gain(&work, log_mel, tables->n_mels)) {
        for (size_t i = 0; i < N_STATISTICS; i++) found[i] = NAN;
        return;
    }
    for (size_t first = 0; first < n_frames; first += BLOCK) rows_of_block(&work, tables, first);
    float *level = work.states + LEVEL_AT * row;
    for (int i = 0; i < BY20; i++) {
        float *of = work.states + (BY20_AT + i) * row;
        put(of + wide(n_frames), all(0)); /* weighs nothing, but must be a number */
        differences(of, work.changes + (FLUX_AT + i) * row, n_frames - 1);
    }
    differences(level, work.changes + STEP_AT * row, n_frames - 1);
    for (int i = 0; i < RANGES; i++)
        put(work.changes + (RISES_AT + i) * row + wide(n_frames), all(0)); /* so must these */
    struct moments states[STATES], changes[CHANGES];
    for (int i = 0; i < STATES; i++)
        states[i] = moments_of(work.states + i * row, work.active_shares, n_frames);
    for (int i = 0; i < CHANGES; i++)
        changes[i] = moments_of(work.changes + i * row, work.steps_shares, n_frames - 1);

    float *to = found;
    for (int i = 0; i < BY20; i++) *to++ = states[BY20_AT + i].mean; /* spectrum */
    for (int i = 0; i < CEPSTRA; i++) *to++ = states[CEPSTRA_AT + i].std; /* movement */
    for (int i = 0; i < BY20; i++) *to++ = log_of(changes[FLUX_AT + i].mean); /* flux */

    lanes power = {0}; /* loudness */
    for (size_t t = 0; t < n_frames; t += LANES)
        power += exponential(at(level + t) * LN10_OVER_10) * at(work.active_shares + t);
    *to++ = work.loud;
    *to++ = work.loud + 10 * log10f(sum_of(power) + 1e-10f);
    for (int i = 0; i < N_QUANTILES; i++)
        *to++ = quantile_of_last(work.ordered, n_frames, work.n_active, LOUDNESS_QUANTILES[i]);
    *to++ = states[LEVEL_AT].std;
    *to++ = changes[STEP_AT].mean;

    *to++ = states[FULLNESS_AT].mean; /* fullness */
    *to++ = states[FULLNESS_AT].std;
    for (int i = 1; i < RANGES; i++) *to++ = states[FULLNESS_AT + i].mean;
    for (int i = 0; i < BY8; i++) { /* evenness */
        float variance = fmaxf(states[BY8_AT + i].variance, 0.25f);
        *to++ = log1pf(clamped(states[BY8_AT + i].fourth / (variance * variance), 0, 15));
    }
    to = suddenness(changes + STROKES_AT, to); /* onsets */
    to = suddenness(changes + FALLS_AT, to);   /* decays */
    to = rates(&work, tables->frame_seconds, to);
    to = pulse(&work, tables, changes, to); /* and beat */
    for (int i = 0; i < BY8; i++) *to++ = states[PEAKS_AT + i].mean; /* tones */
    for (int i = 0; i < BY8; i++) *to++ = states[PEAKS_AT + i].std;
    to = held(&work, tables, states, to);
    harmony(&work, tables, to); /* intervals and keys */
}
