/* 3x3 convolutions with padding 1 of channels_last float32 maps by Winograd's minimal filtering: F(4x4, 3x3) with stride 1,
   F(4, 2) of every other pixel with stride 2. Every formula is derived in README.md.

   A tile is 4x4 output pixels, which 6x6 input pixels give, or 9x9 with stride 2. Tiles are transformed a block at a time, so that the 36
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

/* The same with stride 2: of nine pixels those under the middle weight as they are, the five others for F(4, 2). */
static inline void strided_input_line(Vector o[9], const Vector d[9]) {
    const Vector a = d[6] - d[4], b = d[6] - d[2];
    o[0] = d[1], o[1] = d[3], o[2] = d[5], o[3] = d[7];
    o[4] = 2.0f * (d[0] - d[4]) + b;
    o[5] = a - 2.0f * d[2], o[6] = a + 2.0f * (d[2] - d[4]), o[7] = b;
    o[8] = d[8] - d[4] - 2.0f * b;
}

static inline void strided_output_line(Vector o[4], const Vector m[9]) {
    const Vector s = m[5] + m[6], d = m[5] - m[6];
    o[0] = m[0] + m[4] + s + m[7], o[1] = m[1] + d + 2.0f * m[7];
    o[2] = m[2] + s + 4.0f * m[7], o[3] = m[3] + d + 8.0f * m[7] + m[8];
}

static inline void strided_weight_line(Vector o[6], const Vector w[3]) {
    o[0] = w[1], o[1] = 0.5f * w[0], o[5] = w[2];
    o[2] = -0.5f * (w[0] + w[2]), o[3] = (w[2] - w[0]) * (1.0f / 6), o[4] = (w[0] + 2.0f * w[2]) * (1.0f / 6);
}

static inline void weight_gradient_line(Vector o[3], const Vector u[6]) {
    const Vector s = (u[1] + u[2]) * (1.0f / 6), t = u[3] + u[4];
    o[0] = 0.25f * u[0] - s + t * (1.0f / 24);
    o[1] = (u[2] - u[1]) * (1.0f / 6) + (u[3] - u[4]) * (1.0f / 12);
    o[2] = u[5] - s + t * (1.0f / 6);
}

#define INLINED static inline __attribute__((always_inline))
typedef void Line(Vector *, const Vector *);

/* A line's transform along columns and then along rows: `from` names in*in places, column by column, at whose channel k
   its input lies; out*out results go to `to`. All that is constant where it is called is so in here. */
INLINED void both_ways(Line line, int in, int out, const float *const *from, int64_t k, float *to, int64_t row,
                       int64_t column, Vector added) {
    Vector columns[9][9];
#pragma GCC unroll 9
    for (int j = 0; j < in; j++) {
        Vector d[9];
        for (int i = 0; i < in; i++) d[i] = load(from[j * in + i] + k);
        line(columns[j], d);
    }
#pragma GCC unroll 9
    for (int i = 0; i < out; i++) {
        Vector d[9], o[9];
        for (int j = 0; j < in; j++) d[j] = columns[j][i];
        line(o, d);
        for (int j = 0; j < out; j++) store(to + i * row + j * column + k, o[j] + added);
    }
}

typedef struct {
    int64_t b, y, x;
} Place; /* of a tile's first output pixel */

static inline Place place_of(const Shape *s, int64_t tile) {
    const int64_t across = s->w / 4, down = s->h / 4;
    return (Place){tile / (across * down), tile / across % down * 4, tile % across * 4};
}

static inline int64_t tiles_of(const Shape *s) { return s->b * (s->h / 4) * (s->w / 4); }

/* out[size * size][`step`]: a tile's size x size input pixels, zero outside the map, transformed. */
INLINED void transform_input(const Shape *s, const float *x, int64_t tile, float *restrict out, int64_t step, Line line,
                             int size, int stride) {
    const int64_t h = s->h * stride, w = s->w * stride;
    const Place p = place_of(s, tile);
    const float *pixels[81];
    for (int j = 0; j < size; j++)
        for (int i = 0; i < size; i++) {
            const int64_t row = p.y * stride + i - 1, column = p.x * stride + j - 1;
            const int outside = row < 0 || row >= h || column < 0 || column >= w;
            pixels[j * size + i] = outside ? zeros : x + ((p.b * h + row) * w + column) * s->c_in;
        }
    for (int64_t k = 0; k < s->c_in; k += LANES) both_ways(line, size, size, pixels, k, out, size * step, step, (Vector){0});
}

/* out[36][`step`]: A g A^T of the gradients of a tile's 4x4 outputs. */
static void transform_gradient(const Shape *s, const float *g, int64_t tile, float *restrict out, int64_t step) {
    const Place p = place_of(s, tile);
    const float *pixels[16];
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 4; i++)
            pixels[j * 4 + i] = g + ((p.b * s->h + p.y + i) * s->w + p.x + j) * s->c_out;
    for (int64_t k = 0; k < s->c_out; k += LANES)
        both_ways(gradient_line, 4, 6, pixels, k, out, 6 * step, step, (Vector){0});
}

/* Some channels of a tile's 4x4 outputs, A^T m A + bias, of m[size * size][`step`]; y and bias begin with the first. */
INLINED void transform_output(const Shape *s, float *y, int64_t tile, const float *restrict m, int64_t step,
                              const float *bias, int64_t channels, Line line, int size) {
    const int64_t c = s->c_out;
    const Place p = place_of(s, tile);
    const float *places[81];
    for (int j = 0; j < size; j++)
        for (int i = 0; i < size; i++) places[j * size + i] = m + (i * size + j) * step;
    for (int64_t k = 0; k < channels; k += LANES)
        both_ways(line, size, 4, places, k, y + ((p.b * s->h + p.y) * s->w + p.x) * c, s->w * c, c,
                  bias ? load(bias + k) : (Vector){0});
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
void diti_winograd_pack(const Shape *s, int stride, const float *w, float *u) {
    const int64_t step = s->c_in * s->c_out + PAD;
#pragma omp parallel for num_threads(s->threads) schedule(static)
    for (int64_t c = 0; c < s->c_in; c++)
        for (int64_t o = 0; o < s->c_out; o += LANES) {
            const float *places[9];
            for (int j = 0; j < 3; j++)
                for (int i = 0; i < 3; i++) places[j * 3 + i] = w + ((i * 3 + j) * s->c_in + c) * s->c_out + o;
            float *at = u + (o / PANEL * s->c_in + c) * PANEL + o % PANEL;
            if (stride == 2)
                both_ways(strided_weight_line, 3, 6, places, 0, at, 6 * step, step, (Vector){0});
            else
                both_ways(weight_line, 3, 6, places, 0, at, 6 * step, step, (Vector){0});
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
            for (int64_t t = 0; t < n; t++) transform_input(s, x, first + t, v + t * c_in, v_step, input_line, 6, 1);
            for (int k = 0; k < 36; k++) memset(v + k * v_step + n * c_in, 0, (rows - n) * c_in * sizeof(float));
            for (int k = 0; k < 36; k++)
                for (int64_t o = 0; o < c_out; o += WIDE)
                    for (int64_t r = 0; r < rows; r += ROWS)
                        multiply(v + k * v_step + r * c_in, c_in, u + k * u_step + o * c_in, c_in,
                                 m + k * m_step + r * c_out + o, c_out, (c_out - o < WIDE ? c_out - o : WIDE) / PANEL);
            for (int64_t t = 0; t < n; t++) transform_output(s, y, first + t, m + t * c_out, m_step, bias, c_out, output_line, 6);
        }
        free(v);
    }
    return failed;
}

/* As diti_winograd_convolve with stride 2 of x [b][2 h][2 w][c_in].

   81 products of 36 weights: the four places of a line that its middle weight gives share it. Output channels come
   first, since the products of all would not fit in a core's cache. */
int diti_winograd_convolve_strided(const Shape *s, const float *x, const float *u, const float *bias, float *y) {
    const int64_t tiles = tiles_of(s), block = s->block, c_in = s->c_in, c_out = s->c_out;
    const int64_t v_step = block * c_in + PAD, m_step = block * WIDE + PAD, u_step = c_in * c_out + PAD;
    int failed = 0;
#pragma omp parallel num_threads(s->threads) reduction(| : failed)
    {
        float *v = room(81 * (v_step + m_step)), *m = v + 81 * v_step;
        failed = v == NULL;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles; first += block) {
            if (failed) continue;
            const int64_t n = tiles - first < block ? tiles - first : block, rows = rounded_up(n, ROWS);
            for (int64_t t = 0; t < n; t++)
                transform_input(s, x, first + t, v + t * c_in, v_step, strided_input_line, 9, 2);
            for (int k = 0; k < 81; k++) memset(v + k * v_step + n * c_in, 0, (rows - n) * c_in * sizeof(float));
            for (int64_t o = 0; o < c_out; o += WIDE) {
                const int64_t channels = c_out - o < WIDE ? c_out - o : WIDE;
                for (int g = 0; g < 36; g++) {
                    const int i = g / 6, j = g % 6;
                    for (int p = i ? i + 3 : 0; p < i + 4; p++)
                        for (int q = j ? j + 3 : 0; q < j + 4; q++)
                            for (int64_t r = 0; r < rows; r += ROWS)
                                multiply(v + (p * 9 + q) * v_step + r * c_in, c_in, u + g * u_step + o * c_in, c_in,
                                         m + (p * 9 + q) * m_step + r * WIDE, WIDE, channels / PANEL);
                }
                for (int64_t t = 0; t < n; t++)
                    transform_output(s, y + o, first + t, m + t * WIDE, m_step, bias ? bias + o : NULL, channels,
                                     strided_output_line, 9);
            }
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
                transform_input(s, x, first + t, v + t * wide, v_step, input_line, 6, 1);
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
