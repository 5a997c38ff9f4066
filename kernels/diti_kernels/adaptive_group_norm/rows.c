/* Adaptive group norm on rows [B, N, C] in float32, forward and backward: every formula is derived in README.md.

   A task is one sample and some whole groups of channels, few enough that the passes over them stay in a core's cache.
   Channels are innermost in memory, so that a compiler turns every loop over them into vectors without reordering any
   sum; sums over rows are float32 for 64 rows, then float64. The channels of x come first, then those of skip. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 64
#define TILE (1 << 20) /* values that a task walks over, where groups allow; rows read whole are read fastest */
#define LINE 16        /* values of a line of cache */
#define LEAST 32       /* channels that a task has where other threads would be idle */

typedef struct {
    int64_t b, n, c1, c2, groups, step; /* step: from one sample's scales and shifts to the next one's */
    int32_t silu, threads;
    float eps;
} Shape;

/* Some channels of one of two tensors: `at` row 0, `step` to the next row, `from` the first one's place in the task. */
typedef struct {
    const float *x;
    float *dx;
    int64_t step, from, width;
} Part;

static inline float exponential(float x) {
    x = x < -80.0f ? -80.0f : x; /* beyond these it would be subnormal, or its inverse, which processors are slow at */
    x = x > 80.0f ? 80.0f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f; /* its low bits are the nearest whole number */
    const float whole = shifted - 12582912.0f;
    const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power;
    power.bits = ((int32_t)whole + 127) << 23;
    return p * power.value;
}

static int64_t task_width(const Shape *s, int64_t arrays) {
    const int64_t c = s->c1 + s->c2, d = c / s->groups;
    int64_t step = d; /* whole groups, and whole lines of cache where that is no more than all channels */
    while (step % LINE && step < c) step += d;
    if (step % LINE || c % step) step = d;
    int64_t width = step;
    while (width + step <= c && arrays * s->n * (width + step) <= TILE) width += step;
    while (width - step >= LEAST && s->b * ((c + width - 1) / width) < 2 * s->threads) width -= step;
    return width;
}

static int parts_of(const Shape *s, Part *parts, const float *x, const float *skip, float *dx, float *dskip, int64_t b,
                    int64_t first, int64_t end) {
    int count = 0;
    if (first < s->c1) {
        const int64_t at = b * s->n * s->c1 + first, stop = end < s->c1 ? end : s->c1;
        parts[count++] = (Part){x + at, dx ? dx + at : NULL, s->c1, 0, stop - first};
    }
    if (end > s->c1) {
        const int64_t start = first > s->c1 ? first : s->c1, at = b * s->n * s->c2 + start - s->c1;
        parts[count++] = (Part){skip + at, dskip ? dskip + at : NULL, s->c2, start - first, end - start};
    }
    return count;
}

/* sums[c] += sum over rows of x - centre, or of its square. */
static void sum_rows(const Part *part, int64_t n, const float *restrict centre, int squared, float *restrict partial,
                     double *restrict sums) {
    const int64_t width = part->width, step = part->step;
    for (int64_t row = 0; row < n; row += ROWS) {
        const int64_t end = row + ROWS < n ? row + ROWS : n;
        memset(partial, 0, width * sizeof(float));
        int64_t i = row;
        for (; i + 4 <= end; i += 4) {
            const float *restrict p0 = part->x + i * step;
            const float *restrict p1 = p0 + step;
            const float *restrict p2 = p1 + step;
            const float *restrict p3 = p2 + step;
            if (squared)
#pragma omp simd
                for (int64_t c = 0; c < width; c++) {
                    const float d0 = p0[c] - centre[c], d1 = p1[c] - centre[c];
                    const float d2 = p2[c] - centre[c], d3 = p3[c] - centre[c];
                    partial[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
                }
            else
#pragma omp simd
                for (int64_t c = 0; c < width; c++) partial[c] += (p0[c] + p1[c]) + (p2[c] + p3[c]);
        }
        for (; i < end; i++) {
            const float *restrict p = part->x + i * step;
#pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                const float d = squared ? p[c] - centre[c] : p[c];
                partial[c] += squared ? d * d : d;
            }
        }
#pragma omp simd
        for (int64_t c = 0; c < width; c++) sums[c] += partial[c];
    }
}

void diti_norm_forward(const Shape *s, const float *x, const float *skip, const float *scale, const float *shift,
                       float *out, float *mean, float *rstd) {
    const int64_t c = s->c1 + s->c2, n = s->n, d = c / s->groups, width = task_width(s, 2);
    const int64_t tasks = (c + width - 1) / width;
#pragma omp parallel for collapse(2) num_threads(s->threads) schedule(static)
    for (int64_t b = 0; b < s->b; b++)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t first = task * width, end = first + width < c ? first + width : c, w = end - first;
            Part parts[2];
            const int count = parts_of(s, parts, x, skip, NULL, NULL, b, first, end);
            double *sums = calloc(w, sizeof(double) + 4 * sizeof(float));
            float *partial = (float *)(sums + w), *centre = partial + w, *factor = centre + w, *added = factor + w;
            for (int i = 0; i < count; i++)
                sum_rows(&parts[i], n, centre, 0, partial, sums + parts[i].from);
            for (int64_t at = 0; at < w; at += d) {
                double sum = 0;
                for (int64_t k = at; k < at + d; k++) sum += sums[k];
                const float value = (float)(sum / (double)(n * d));
                mean[b * s->groups + (first + at) / d] = value;
                for (int64_t k = at; k < at + d; k++) centre[k] = value, sums[k] = 0;
            }
            for (int i = 0; i < count; i++)
                sum_rows(&parts[i], n, centre + parts[i].from, 1, partial, sums + parts[i].from);
            for (int64_t at = 0; at < w; at += d) {
                double sum = 0;
                for (int64_t k = at; k < at + d; k++) sum += sums[k];
                const float value = (float)(1.0 / sqrt(sum / (double)(n * d) + (double)s->eps));
                rstd[b * s->groups + (first + at) / d] = value;
                for (int64_t k = at; k < at + d; k++) {
                    factor[k] = value * scale[b * s->step + first + k];
                    added[k] = shift[b * s->step + first + k];
                }
            }
            for (int64_t row = 0; row < n; row++)
                for (int i = 0; i < count; i++) {
                    const Part part = parts[i];
                    const float *restrict p = part.x + row * part.step;
                    float *restrict y = out + (b * n + row) * c + first + part.from;
                    const float *restrict m = centre + part.from;
                    const float *restrict f = factor + part.from;
                    const float *restrict a = added + part.from;
                    if (s->silu)
#pragma omp simd
                        for (int64_t k = 0; k < part.width; k++) {
                            const float u = (p[k] - m[k]) * f[k] + a[k];
                            y[k] = u * (1.0f / (1.0f + exponential(-u)));
                        }
                    else
#pragma omp simd
                        for (int64_t k = 0; k < part.width; k++) y[k] = (p[k] - m[k]) * f[k] + a[k];
                }
            free(sums);
        }
}

void diti_norm_backward(const Shape *s, const float *grad, const float *x, const float *skip, const float *scale,
                        const float *shift, const float *mean, const float *rstd, float *dx, float *dskip,
                        float *dscale, float *dshift) {
    const int64_t c = s->c1 + s->c2, n = s->n, d = c / s->groups, width = task_width(s, 3);
    const int64_t tasks = (c + width - 1) / width;
#pragma omp parallel for collapse(2) num_threads(s->threads) schedule(static)
    for (int64_t b = 0; b < s->b; b++)
        for (int64_t task = 0; task < tasks; task++) {
            const int64_t first = task * width, end = first + width < c ? first + width : c, w = end - first;
            Part parts[2];
            const int count = parts_of(s, parts, x, skip, dx, dskip, b, first, end);
            double *sums = calloc(w, 2 * sizeof(double) + 6 * sizeof(float)), *products = sums + w;
            float *centre = (float *)(products + w), *one = centre + w, *partial = one + w, *partial2 = partial + w;
            float *unused = partial2 + w;
            const float *a = scale + b * s->step + first, *added = shift + b * s->step + first;
#pragma omp simd
            for (int64_t k = 0; k < w; k++) {
                centre[k] = mean[b * s->groups + (first + k) / d];
                one[k] = rstd[b * s->groups + (first + k) / d];
            }
            for (int64_t row = 0; row < n; row += ROWS) {
                const int64_t stop = row + ROWS < n ? row + ROWS : n;
                memset(partial, 0, 2 * w * sizeof(float));
                for (int64_t r = row; r < stop; r++)
                    for (int i = 0; i < count; i++) {
                        const Part part = parts[i];
                        const int64_t from = part.from;
                        const float *restrict p = part.x + r * part.step;
                        const float *restrict v = grad + (b * n + r) * c + first + from;
                        float *restrict q = part.dx ? part.dx + r * part.step : unused;
                        const float *restrict m = centre + from;
                        const float *restrict o = one + from;
                        const float *restrict f = a + from;
                        const float *restrict h = added + from;
                        float *restrict sum = partial + from;
                        float *restrict product = partial2 + from;
                        if (s->silu)
#pragma omp simd
                            for (int64_t k = 0; k < part.width; k++) {
                                const float normal = (p[k] - m[k]) * o[k], u = normal * f[k] + h[k];
                                const float sigmoid = 1.0f / (1.0f + exponential(-u));
                                const float inner = v[k] * sigmoid * (1.0f + u * (1.0f - sigmoid));
                                q[k] = inner;
                                sum[k] += inner;
                                product[k] += inner * normal;
                            }
                        else
#pragma omp simd
                            for (int64_t k = 0; k < part.width; k++) {
                                q[k] = v[k];
                                sum[k] += v[k];
                                product[k] += v[k] * ((p[k] - m[k]) * o[k]);
                            }
                    }
#pragma omp simd
                for (int64_t k = 0; k < w; k++) sums[k] += partial[k], products[k] += partial2[k];
            }
            float *constant = partial, *slope = partial2;
            for (int64_t at = 0; at < w; at += d) {
                double first_mean = 0, second_mean = 0;
                for (int64_t k = at; k < at + d; k++) first_mean += a[k] * sums[k], second_mean += a[k] * products[k];
                first_mean /= (double)(n * d), second_mean /= (double)(n * d);
                for (int64_t k = at; k < at + d; k++) {
                    dshift[b * c + first + k] = (float)sums[k];
                    dscale[b * c + first + k] = (float)products[k];
                    constant[k] = (float)(one[k] * first_mean);
                    slope[k] = (float)(one[k] * one[k] * second_mean);
                }
            }
#pragma omp simd
            for (int64_t k = 0; k < w; k++) one[k] *= a[k];
            for (int i = 0; i < count; i++) {
                const Part part = parts[i];
                if (!part.dx) continue;
                const int64_t from = part.from;
                const float *restrict m = centre + from;
                const float *restrict f = one + from;
                const float *restrict e = constant + from;
                const float *restrict t = slope + from;
                for (int64_t row = 0; row < n; row++) {
                    const float *restrict p = part.x + row * part.step;
                    float *restrict q = part.dx + row * part.step;
#pragma omp simd
                    for (int64_t k = 0; k < part.width; k++) q[k] = q[k] * f[k] - e[k] - (p[k] - m[k]) * t[k];
                }
            }
            free(sums);
        }
}
