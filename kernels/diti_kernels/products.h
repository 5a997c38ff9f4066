/* Products of float32 matrices whose sums stay in registers, for whatever vectors the processor has. */

#include <stdint.h>
#include <stdlib.h>

#if defined(__AVX512F__)
#define LANES 16 /* floats of a vector */
#define ROWS 12  /* rows of a product that is summed in registers, beside as many as WIDE columns */
#elif defined(__AVX__)
#define LANES 8
#define ROWS 6
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 6
#else
#define LANES 4
#define ROWS 2
#endif
#define PANEL 16 /* columns that lie side by side in a packed matrix */
#define WIDE (LANES == 16 ? 32 : 16)
#define VECTORS (WIDE / LANES)

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

static inline Vector load(const float *p) { return *(const Unaligned *)p; }
static inline void store(float *p, Vector v) { *(Unaligned *)p = v; }

/* m[ROWS][panels * PANEL] = v[ROWS][n] u, of packed u; `second` follows the panel u where there are two. */
static inline void multiply(const float *restrict v, int64_t v_step, const float *restrict u, int64_t n,
                            float *restrict m, int64_t m_step, int panels) {
    const float *second = panels * PANEL > LANES && LANES == PANEL ? u + n * PANEL : u + LANES % PANEL;
    Vector sums[ROWS][VECTORS];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int q = 0; q < VECTORS; q++) sums[r][q] = (Vector){0};
    for (int64_t k = 0; k < n; k++) {
        Vector weights[VECTORS];
        weights[0] = load(u + k * PANEL), weights[1] = load(second + k * PANEL);
        for (int q = 2; q < VECTORS; q++) weights[q] = load(u + k * PANEL + q * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const Vector value = v[r * v_step + k] - (Vector){0};
#pragma GCC unroll 4
            for (int q = 0; q < VECTORS; q++) sums[r][q] += value * weights[q];
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        store(m + r * m_step, sums[r][0]);
        if (LANES < PANEL || panels > 1) store(m + r * m_step + LANES, sums[r][1]);
#pragma GCC unroll 4
        for (int q = 2; q < VECTORS; q++) store(m + r * m_step + q * LANES, sums[r][q]);
    }
}

static float *room(int64_t floats) { return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64); }

static inline int64_t rounded_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
