/* Attention of float32 heads on a CPU, softmax(q k^T / sqrt(c)) v: every formula is in README.md.

   A task is one head of one sample, or some of its queries where threads outnumber heads. Its keys and values are packed
   into panels once; then the scores of ROWS queries against all keys stay in the nearest cache between both products. */

#include <string.h>

#include "products.h"

#define FOUR 4        /* keys that are turned into columns at a time */
#define LINE 16       /* floats of a line of cache */
#define LEAST -126.0f /* below it, a power of two is no normal number */

typedef int32_t Bits __attribute__((vector_size(4 * LANES)));
typedef float Four __attribute__((vector_size(16)));

/* Steps are floats from one sample, token and head to the next, of q, k and v; channels lie side by side. */
typedef struct {
    int64_t b, m, n, h, c;
    int64_t sample[3], token[3], head[3];
    int32_t threads;
    float scale; /* log2(e) / sqrt(c) */
} Shape;

/* 2^x to 2e-7 of it for x <= 0, and 0 where that is no normal number; a NaN stays one. */
static inline Vector power_of_two(Vector x) {
    const Vector shifted = x + 12583039.0f; /* 1.5 * 2^23 + 127: its low bits are the exponent of the nearest whole */
    const Vector r = x - (shifted - 12583039.0f);
    Vector p = 1.3264715e-3f * r + 9.6715139e-3f;
    p = p * r + 5.5507340e-2f;
    p = p * r + 2.4022242e-1f;
    p = p * r + 6.9314700e-1f;
    p = p * r + 1.0f;
    p *= (Vector)((Bits)shifted << 23);
    return (Vector)((Bits)p & ~(x < LEAST));
}

/* Weights, which are not yet divided by their sum, in place of `n` scores and as many more as fill panels: the sum. */
static inline float weights_of(float *restrict s, int64_t n) {
    const int64_t end = rounded_up(n, PANEL);
    float largest = s[0];
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < n; j++) largest = s[j] > largest ? s[j] : largest;
    for (int64_t j = n; j < end; j++) s[j] = -1.0f / 0.0f;
    Vector sums[PANEL / LANES];
    for (int i = 0; i < PANEL / LANES; i++) sums[i] = (Vector){0};
    for (int64_t j = 0; j < end; j += PANEL)
        for (int i = 0; i < PANEL / LANES; i++) {
            const Vector w = power_of_two(load(s + j + i * LANES) - largest);
            store(s + j + i * LANES, w);
            sums[i] += w;
        }
    float sum = 0;
    for (int i = 0; i < PANEL / LANES; i++)
        for (int l = 0; l < LANES; l++) sum += sums[i][l];
    return sum;
}

/* keys [n / PANEL][c][PANEL], the last one again to fill a panel, and values [c / PANEL][n][PANEL] of one head. */
static void pack(const Shape *s, const float *k, const float *v, float *restrict keys, float *restrict values) {
    const int64_t n = s->n, c = s->c;
    for (int64_t j = 0; j < rounded_up(n, PANEL); j += FOUR) {
        const float *key[FOUR];
        for (int l = 0; l < FOUR; l++) key[l] = k + (j + l < n ? j + l : n - 1) * s->token[1];
        float *at = keys + j / PANEL * PANEL * c + j % PANEL;
        for (int64_t i = 0; i < c; i++)
            *(Four *)(at + i * PANEL) = (Four){key[0][i], key[1][i], key[2][i], key[3][i]};
    }
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < c; i += PANEL)
            memcpy(values + i * n + j * PANEL, v + j * s->token[2] + i, PANEL * sizeof(float));
}

/* Ask for some tokens' channels of one head, which are far apart in memory, before they are needed. */
static inline void prefetch(const float *head, int64_t token, int64_t c, int64_t first, int64_t end) {
    for (int64_t j = first; j < end; j++)
        for (int64_t i = 0; i < c; i += LINE) __builtin_prefetch(head + j * token + i, 0, 2);
}

static inline int panels(int64_t columns) { return columns < WIDE ? (int)(columns / PANEL) : WIDE / PANEL; }

/* q [b][m][h][c], k and v [b][n][h][c], c a multiple of PANEL -> y [b][m][h][c]; 0, or 1 where memory ran out. */
int diti_attention(const Shape *s, const float *q, const float *k, const float *v, float *y) {
    const int64_t m = s->m, n = s->n, h = s->h, c = s->c, columns = rounded_up(n, PANEL), step = columns + PANEL;
    const int64_t heads = s->b * h, share = (heads + s->threads - 1) / heads; /* threads of each head */
    const int64_t part = rounded_up((m + share - 1) / share, ROWS), parts = (m + part - 1) / part;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *keys = room(columns * c + n * c + ROWS * (step + 2 * c));
        float *values = keys + columns * c, *scores = values + n * c;
        float *queries = scores + ROWS * step, *sums = queries + ROWS * c;
        failed = keys == NULL;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < heads * parts; task++) {
            if (failed) continue;
            const int64_t head = task / parts, next = head + 1 < heads ? head + 1 : head;
            const int64_t first = task % parts * part, end = first + part < m ? first + part : m;
            const float *at[3] = {q, k, v}, *then[3] = {q, k, v};
            for (int i = 0; i < 3; i++) at[i] += head / h * s->sample[i] + head % h * s->head[i];
            for (int i = 0; i < 3; i++) then[i] += next / h * s->sample[i] + next % h * s->head[i];
            pack(s, at[1], at[2], keys, values);
            for (int64_t row = first; row < end; row += ROWS) {
                const int64_t rows = end - row < ROWS ? end - row : ROWS;
                for (int64_t r = 0; r < ROWS; r++) {
                    const float *query = at[0] + (row + (r < rows ? r : 0)) * s->token[0];
                    for (int64_t i = 0; i < c; i += LANES) store(queries + r * c + i, load(query + i) * s->scale);
                }
                for (int64_t j = 0; j < columns; j += WIDE)
                    multiply(queries, c, keys + j * c, c, scores + j, step, panels(columns - j));
                for (int i = 0; i < 3; i++) {
                    const int64_t count = i ? n : m;
                    prefetch(then[i], s->token[i], c, (row - first) * count / part, (row - first + rows) * count / part);
                }
                float total[ROWS];
                for (int64_t r = 0; r < rows; r++) total[r] = weights_of(scores + r * step, n);
                for (int64_t j = 0; j < c; j += WIDE)
                    multiply(scores, step, values + j * n, n, sums + j, c, panels(c - j));
                for (int64_t r = 0; r < rows; r++) {
                    float *out = y + ((head / h * m + row + r) * h + head % h) * c;
                    for (int64_t i = 0; i < c; i += LANES) store(out + i, load(sums + r * c + i) / total[r]);
                }
            }
        }
        free(keys);
    }
    return failed;
}
