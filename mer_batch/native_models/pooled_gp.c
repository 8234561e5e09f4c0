/* A Gaussian process's answer. Called from pooled_gp.py by ctypes. */
#include "../audio/lanes.h"

/* x: (n) standardised statistics; landmarks: (n_landmarks, n); coefficients: (n_landmarks, n_scores);
 * scores: (n_scores), to which is added. n and n_scores are whole vectors. */
FOR_EACH_PROCESSOR
void gaussian_process(const float *x, size_t n, const float *landmarks, size_t n_landmarks,
                      float sharpness, const float *coefficients, size_t n_scores, float *scores) {
    for (size_t begin = 0; begin < n_landmarks; begin += LANES) {
        size_t n_here = n_landmarks - begin < LANES ? n_landmarks - begin : LANES;
        lanes alike = {0};
        for (size_t l = 0; l < n_here; l++) {
            const float *landmark = landmarks + (begin + l) * n;
            lanes one = {0}, other = {0}; /* two sums, as one would wait for itself */
            size_t i = 0;
            for (; i + 2 * LANES <= n; i += 2 * LANES) {
                lanes a = at(x + i) - at(landmark + i);
                lanes b = at(x + i + LANES) - at(landmark + i + LANES);
                one += a * a, other += b * b;
            }
            if (i < n) one += (at(x + i) - at(landmark + i)) * (at(x + i) - at(landmark + i));
            alike[l] = sum_of(one + other);
        }
        alike = exponential(alike * -sharpness);
        for (size_t l = 0; l < n_here; l++)
            for (size_t i = 0; i < n_scores; i += LANES)
                put(scores + i,
                    at(scores + i) + alike[l] * at(coefficients + (begin + l) * n_scores + i));
    }
}
