/* 3x3 convolutions with stride 1 and padding 1 of channels_last float32 maps by Winograd's minimal filtering F(4x4, 3x3):
   every formula is derived in README.md.

   A tile is 4x4 output pixels, which 6x6 input pixels give. Tiles are transformed a block at a time, so that the 36
   products of a block, each over all channels, find their operands in cache. Channels are innermost: every vector is
   some channels of one pixel. */

#include <omp.h>
#include <string.h>

#include "products.h"

#define PAD 16 /* floats between matrices, so that the same place in each is not in the same set of the cache */
#define MOST_CHANNELS 4096
#define MOST_SUMS (1 << 25) /* floats in which threads add up a weight's gradient; more threads do not take part */

typedef struct {
    int64_t b, h, w, c_in, c_out, block;
    int32_t threads;
} Shape;

static const float zeros[MOST_CHANNELS];

/* Of one line of six or so: B^T d, A^T m, A g, G w and G^T u. */
static inline void input_line(Vector o[6], const Vector d[6]) {
    const Vector a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    o[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    o[1] = a + b, o[2] = a - b, o[3] = c + e, o[4] = c - e;
    o[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

static inline void output_line(Vector o[4], const Vector m[6]) {
    const Vector s = m[1] + m[2], d = m[1] - m[2], t = m[3] + m[4], e = m[3] - m[4];
    o[0] = m[0] + s + t, o[1] = d + 2.0f * e, o[2] = s + 4.0f * t, o[3] = d + 8.0f * e + m[5];
}

static inline void gradient_line(Vector o[6], const Vector g[4]) {
    const Vector s = g[0] + g[2], t = g[1] + g[3], p = g[0] + 4.0f * g[2], q = 2.0f * g[1] + 8.0f * g[3];
    o[0] = g[0], o[1] = s + t, o[2] = s - t, o[3] = p + q, o[4] = p - q, o[5] = g[3];
}

static inline void weight_line(Vector o[6], const Vector w[3]) {
    const Vector s = (w[0] + w[2]) * (1.0f / 6), m = w[1] * (1.0f / 6), d = w[1] * (1.0f / 12);
    const Vector t = w[0] * (1.0f / 24) + w[2] * (1.0f / 6);
    o[0] = 0.25f * w[0], o[1] = -s - m, o[2] = m - s, o[3] = t + d, o[4] = t - d, o[5] = w[2];
}

static inline void weight_gradient_line(Vector o[3], const Vector u[6]) {
    const Vector s = (u[1] + u[2]) * (1.0f / 6), t = u[3] + u[4];
    o[0] = 0.25f * u[0] - s + t * (1.0f / 24);
    o[1] = (u[2] - u[1]) * (1.0f / 6) + (u[3] - u[4]) * (1.0f / 12);
    o[2] = u[5] - s + t * (1.0f / 6);
}

typedef struct {
    int64_t b, y, x;
} Place; /* of a tile's first output pixel */

static inline Place place_of(const Shape *s, int64_t tile) {
    const int64_t across = s->w / 4, down = s->h / 4;
    return (Place){tile / (across * down), tile / across % down * 4, tile % across * 4};
}

static inline int64_t tiles_of(const Shape *s) { return s->b * (s->h / 4) * (s->w / 4); }

/* out[36][`stride`]: B^T d B of a tile's 6x6 pixels, which are zero outside the map. */
static void transform_input(const Shape *s, const float *x, int64_t tile, float *restrict out, int64_t stride) {
    const int64_t c = s->c_in;
    const Place p = place_of(s, tile);
    const float *pixel[6][6];
    for (int j = 0; j < 6; j++)
        for (int i = 0; i < 6; i++) {
            const int64_t row = p.y + i - 1, column = p.x + j - 1;
            const int outside = row < 0 || row >= s->h || column < 0 || column >= s->w;
            pixel[j][i] = outside ? zeros : x + ((p.b * s->h + row) * s->w + column) * c;
        }
    for (int64_t k = 0; k < c; k += LANES) {
        Vector columns[6][6];
#pragma GCC unroll 6
        for (int j = 0; j < 6; j++) {
            Vector d[6];
            for (int i = 0; i < 6; i++) d[i] = load(pixel[j][i] + k);
            input_line(columns[j], d);
        }
#pragma GCC unroll 6
        for (int i = 0; i < 6; i++) {
            Vector d[6], o[6];
            for (int j = 0; j < 6; j++) d[j] = columns[j][i];
            input_line(o, d);
            for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * stride + k, o[j]);
        }
    }
}

/* out[36][`stride`]: A g A^T of the gradients of a tile's 4x4 outputs. */
static void transform_gradient(const Shape *s, const float *g, int64_t tile, float *restrict out, int64_t stride) {
    const int64_t c = s->c_out;
    const Place p = place_of(s, tile);
    const float *first = g + ((p.b * s->h + p.y) * s->w + p.x) * c;
    for (int64_t k = 0; k < c; k += LANES) {
        Vector columns[4][6];
        for (int j = 0; j < 4; j++) {
            Vector d[4];
            for (int i = 0; i < 4; i++) d[i] = load(first + (i * s->w + j) * c + k);
            gradient_line(columns[j], d);
        }
        for (int i = 0; i < 6; i++) {
            Vector d[4], o[6];
            for (int j = 0; j < 4; j++) d[j] = columns[j][i];
            gradient_line(o, d);
            for (int j = 0; j < 6; j++) store(out + (i * 6 + j) * stride + k, o[j]);
        }
    }
}

/* A tile's 4x4 outputs, A^T m A + bias, of m[36][`stride`]. */
static void transform_output(const Shape *s, float *y, int64_t tile, const float *restrict m, int64_t stride,
                             const float *bias) {
    const int64_t c = s->c_out;
    const Place p = place_of(s, tile);
    float *first = y + ((p.b * s->h + p.y) * s->w + p.x) * c;
    for (int64_t k = 0; k < c; k += LANES) {
        const Vector added = bias ? load(bias + k) : (Vector){0};
        Vector columns[6][4];
        for (int j = 0; j < 6; j++) {
            Vector d[6];
            for (int i = 0; i < 6; i++) d[i] = load(m + (i * 6 + j) * stride + k);
            output_line(columns[j], d);
        }
        for (int i = 0; i < 4; i++) {
            Vector d[6], o[4];
            for (int j = 0; j < 6; j++) d[j] = columns[j][i];
            output_line(o, d);
            for (int j = 0; j < 4; j++) store(first + (i * s->w + j) * c + k, o[j] + added);
        }
    }
}

/* u[ROWS][columns] += v[n][ROWS]^T m[n][columns]; columns is PANEL or WIDE. */
static inline void accumulate(const float *restrict v, int64_t v_step, const float *restrict m, int64_t m_step,
                              int64_t n, float *restrict u, int64_t u_step, int64_t columns) {
    const int64_t second = columns > LANES ? LANES : 0;
    Vector sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++) {
        sums[r][0] = load(u + r * u_step), sums[r][1] = load(u + r * u_step + second);
        for (int q = 2; q < VECTORS; q++) sums[r][q] = load(u + r * u_step + q * LANES);
    }
    for (int64_t k = 0; k < n; k++) {
        Vector gradients[VECTORS];
        gradients[0] = load(m + k * m_step), gradients[1] = load(m + k * m_step + second);
        for (int q = 2; q < VECTORS; q++) gradients[q] = load(m + k * m_step + q * LANES);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const Vector value = v[k * v_step + r] - (Vector){0};
            for (int q = 0; q < VECTORS; q++) sums[r][q] += value * gradients[q];
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        store(u + r * u_step, sums[r][0]);
        if (columns > LANES) store(u + r * u_step + LANES, sums[r][1]);
        for (int q = 2; q < VECTORS; q++) store(u + r * u_step + q * LANES, sums[r][q]);
    }
}

int64_t diti_winograd_rows(void) { return ROWS; }

/* w [3][3][c_in][c_out] -> u [36][c_out / PANEL][c_in][PANEL], G w G^T, with PAD floats after each of the 36. */
void diti_winograd_pack(const Shape *s, const float *w, float *u) {
    const int64_t step = s->c_in * s->c_out + PAD;
#pragma omp parallel for num_threads(s->threads) schedule(static)
    for (int64_t c = 0; c < s->c_in; c++)
        for (int64_t o = 0; o < s->c_out; o += LANES) {
            float *at = u + (o / PANEL * s->c_in + c) * PANEL + o % PANEL;
            Vector columns[3][6];
            for (int j = 0; j < 3; j++) {
                Vector d[3];
                for (int i = 0; i < 3; i++) d[i] = load(w + ((i * 3 + j) * s->c_in + c) * s->c_out + o);
                weight_line(columns[j], d);
            }
            for (int i = 0; i < 6; i++) {
                Vector d[3], q[6];
                for (int j = 0; j < 3; j++) d[j] = columns[j][i];
                weight_line(q, d);
                for (int j = 0; j < 6; j++) store(at + (i * 6 + j) * step, q[j]);
            }
        }
}

/* x [b][h][w][c_in], packed u, bias [c_out] or NULL -> y [b][h][w][c_out]; 0, or 1 where memory ran out. */
int diti_winograd_convolve(const Shape *s, const float *x, const float *u, const float *bias, float *y) {
    const int64_t tiles = tiles_of(s), block = s->block, c_in = s->c_in, c_out = s->c_out;
    const int64_t v_step = block * c_in + PAD, m_step = block * c_out + PAD, u_step = c_in * c_out + PAD;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *v = room(36 * (v_step + m_step)), *m = v + 36 * v_step;
        failed = v == NULL;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles; first += block) {
            if (failed) continue;
            const int64_t n = tiles - first < block ? tiles - first : block, rows = rounded_up(n, ROWS);
            for (int64_t t = 0; t < n; t++) transform_input(s, x, first + t, v + t * c_in, v_step);
            for (int k = 0; k < 36; k++) memset(v + k * v_step + n * c_in, 0, (rows - n) * c_in * sizeof(float));
            for (int k = 0; k < 36; k++)
                for (int64_t o = 0; o < c_out; o += WIDE)
                    for (int64_t r = 0; r < rows; r += ROWS)
                        multiply(v + k * v_step + r * c_in, c_in, u + k * u_step + o * c_in, c_in,
                                 m + k * m_step + r * c_out + o, c_out, (c_out - o < WIDE ? c_out - o : WIDE) / PANEL);
            for (int64_t t = 0; t < n; t++) transform_output(s, y, first + t, m + t * c_out, m_step, bias);
        }
        free(v);
    }
    return failed;
}

/* x [b][h][w][c_in], gradients g [b][h][w][c_out] -> dw [3][3][c_in][c_out]; 0, or 1 where memory ran out.

   Every thread adds up its own tiles, so that none waits for another but once: where others use the processor as well, a
   thread that is waited for may not be running. */
int diti_winograd_weight_gradient(const Shape *s, const float *x, const float *g, float *dw) {
    const int64_t tiles = tiles_of(s), block = s->block, c_in = s->c_in, c_out = s->c_out;
    const int64_t wide = rounded_up(c_in, ROWS); /* channels, with some that are zero */
    const int64_t v_step = block * wide + PAD, m_step = block * c_out + PAD, u_step = wide * c_out + PAD;
    const int64_t most = MOST_SUMS / (36 * u_step);
    const int threads = s->threads < most ? s->threads : most < 1 ? 1 : (int)most;
    float *sums = room(threads * 36 * u_step);
    if (sums == NULL) return 1;
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *u = sums + omp_get_thread_num() * 36 * u_step;
        float *v = room(36 * (v_step + m_step)), *m = v + 36 * v_step;
        const int team = omp_get_num_threads();
        memset(u, 0, 36 * u_step * sizeof(float));
        if (v != NULL) memset(v, 0, 36 * v_step * sizeof(float));
        failed = v == NULL;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles; first += block) {
            if (failed) continue;
            const int64_t n = tiles - first < block ? tiles - first : block;
            for (int64_t t = 0; t < n; t++) {
                transform_input(s, x, first + t, v + t * wide, v_step);
                transform_gradient(s, g, first + t, m + t * c_out, m_step);
            }
            for (int k = 0; k < 36; k++)
                for (int64_t o = 0; o < c_out; o += WIDE)
                    for (int64_t r = 0; r < wide; r += ROWS)
                        accumulate(v + k * v_step + r, wide, m + k * m_step + o, c_out, n,
                                   u + k * u_step + r * c_out + o, c_out, c_out - o < WIDE ? c_out - o : WIDE);
        }
        free(v);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < c_in; c++)
            for (int64_t o = 0; o < c_out; o += LANES) {
                Vector columns[6][3];
                for (int j = 0; j < 6; j++) {
                    Vector d[6];
                    for (int i = 0; i < 6; i++) {
                        const float *at = sums + (i * 6 + j) * u_step + c * c_out + o;
                        d[i] = load(at);
                        for (int other = 1; other < team; other++) d[i] += load(at + other * 36 * u_step);
                    }
                    weight_gradient_line(columns[j], d);
                }
                for (int i = 0; i < 3; i++) {
                    Vector d[6], q[3];
                    for (int j = 0; j < 6; j++) d[j] = columns[j][i];
                    weight_gradient_line(q, d);
                    for (int j = 0; j < 3; j++) store(dw + ((i * 3 + j) * c_in + c) * c_out + o, q[j]);
                }
            }
    }
    free(sums);
    return failed;
}
