/* The three parts of the frequency filter; frequency_filter.py says what they are, and checks.

   Maps are channels last. LANES channels of an image are taken at a time, their numbers first gathered side by side:
   what runs over a window finds a frame of zeros around a strip of rows, and meets neither strides nor edges. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 8
#define AHEAD 8     /* neighbouring pixels whose sums are in registers together */
#define STRIP 16    /* rows that are gathered together */
#define FORESEE 8   /* pixels ahead whose numbers are fetched: they lie too far apart for the processor to guess */
#define TAPS 50     /* of the largest window, and one for the bias */
#define STRETCH 32  /* pixels whose heads are taken one after another */
#define SEGMENT 512 /* pixels that a thread takes in one go */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t bits __attribute__((vector_size(4 * LANES), aligned(4)));

/* Channels last: `pixel` and `image` are strides in floats. */
typedef struct {
    float *data;
    int64_t image, pixel;
} map;

/* Depth-wise windows of a group of channels, odd, at most 7 x 7: weights (width, side, side), biases (width). */
typedef struct {
    int64_t width, side;
    float *weights, *biases;
} window;

/* Cells of a group of `width` channels: `bins` x `bins`. A matrix (height or width of the map, bins) for each way: cells
   are the rows' and columns' `pool` of a map, and a map is their `spread` of the cells. */
typedef struct {
    int64_t width, bins;
    float *pool_rows, *pool_columns, *spread_rows, *spread_columns;
} level;

typedef struct {
    int64_t images, height, width, groups;
} sizes;

/* At most LANES channels of group `of`: `some`, the first of them `channel` of the map and `first` of the group. */
typedef struct {
    int64_t of, channel, first, some;
} block;

static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

static inline lanes load(const float *from, int64_t some) {
    lanes found = {0};
    if (some == LANES)
        memcpy(&found, from, sizeof found);
    else
        for (int64_t i = 0; i < some; i++) found[i] = from[i];
    return found;
}

static inline void add(float *to, lanes value, int64_t some) {
    if (some == LANES) {
        value += load(to, LANES);
        memcpy(to, &value, sizeof value);
    } else
        for (int64_t i = 0; i < some; i++) to[i] += value[i];
}

/* `value` where `what` is above 0 or not a number, else 0. */
static inline lanes where_above(lanes what, lanes value) { return (lanes)((bits)value & ~(bits)(what <= 0)); }

static inline float *at(const map *m, const sizes *of, const block *b, int64_t image, int64_t y, int64_t x) {
    return m->data + image * m->image + (y * of->width + x) * m->pixel + b->channel;
}

/* The blocks of all groups, whose structures, `each` so long, begin with their width; NULL where memory is short. */
static int64_t blocks_of(const void *groups, size_t each, const sizes *of, block **blocks) {
    int64_t count = 0, channel = 0, most = 0;
    for (int64_t g = 0; g < of->groups; g++) most += *(const int64_t *)((const char *)groups + g * each) / LANES + 1;
    if (!(*blocks = malloc(most * sizeof **blocks))) return 0;
    for (int64_t g = 0; g < of->groups; g++) {
        int64_t width = *(const int64_t *)((const char *)groups + g * each);
        for (int64_t first = 0; first < width; first += LANES)
            (*blocks)[count++] = (block){g, channel + first, first, at_most(LANES, width - first)};
        channel += width;
    }
    return count;
}

/* Rows `top` to `bottom` of a block, times those of `factor` if it is not NULL, each `reach` zeros from the start of a
   `line`; what lies outside of the map is zero. */
static void gather(const map *from, const map *factor, const sizes *of, const block *b, int64_t image, int64_t top,
                   int64_t bottom, int64_t reach, int64_t line, lanes *to) {
    for (int64_t y = top; y < bottom; y++, to += line) {
        memset(to, 0, line * sizeof *to);
        if (y < 0 || y >= of->height) continue;
        for (int64_t x = 0; x < of->width; x++) {
            const float *pixel = at(from, of, b, image, y, x);
            __builtin_prefetch(pixel + FORESEE * from->pixel);
            to[reach + x] = load(pixel, b->some);
        }
        for (int64_t x = 0; factor && x < of->width; x++) {
            const float *pixel = at(factor, of, b, image, y, x);
            __builtin_prefetch(pixel + FORESEE * factor->pixel);
            to[reach + x] *= load(pixel, b->some);
        }
    }
}

/* Adds a row of a block, times that of `factor` if it is not NULL, to that of `to`. */
static void scatter(const lanes *row, const map *factor, const map *to, const sizes *of, const block *b, int64_t image,
                    int64_t y) {
    for (int64_t x = 0; x < of->width; x++) {
        float *pixel = at(to, of, b, image, y, x);
        const float *times = factor ? at(factor, of, b, image, y, x) : NULL;
        __builtin_prefetch(pixel + FORESEE * to->pixel);
        if (times) __builtin_prefetch(times + FORESEE * factor->pixel);
        add(pixel, times ? row[x] * load(times, b->some) : row[x], b->some);
    }
}

/* The taps of a block, tap by tap, or from the last to the first; then its biases. */
static void taps_of(const window *of, const block *b, int flipped, lanes *taps) {
    int64_t area = of->side * of->side;
    memset(taps, 0, TAPS * sizeof *taps);
    for (int64_t i = 0; i < b->some; i++) {
        for (int64_t tap = 0; tap < area; tap++)
            taps[flipped ? area - 1 - tap : tap][i] = of->weights[(b->first + i) * area + tap];
        taps[area][i] = of->biases[b->first + i];
    }
}

/* What the window sees at AHEAD pixels, the first of which has its first tap at `from`, and `bias`. */
static inline __attribute__((always_inline)) void look(const lanes *from, int64_t line, const lanes *taps, lanes bias,
                                                       int side, lanes *seen) {
    lanes sums[AHEAD];
    for (int i = 0; i < AHEAD; i++) sums[i] = bias;
    for (int row = 0; row < side; row++)
        for (int column = 0; column < side; column++) {
            lanes tap = taps[row * side + column];
            for (int i = 0; i < AHEAD; i++) sums[i] += tap * from[row * line + column + i];
        }
    memcpy(seen, sums, sizeof sums);
}

/* A row of what the window sees; `width` is a multiple of AHEAD. */
static void see(const lanes *from, int64_t line, const lanes *taps, lanes bias, int64_t side, int64_t width,
                lanes *seen) {
    for (int64_t x = 0; x < width; x += AHEAD)
        if (side == 3)
            look(from + x, line, taps, bias, 3, seen + x);
        else if (side == 5)
            look(from + x, line, taps, bias, 5, seen + x);
        else if (side == 7)
            look(from + x, line, taps, bias, 7, seen + x);
        else
            look(from + x, line, taps, bias, 1, seen + x);
}

/* Adds to the taps' gradients those of one row: `slopes` of what was seen, and the first taps at `from`. */
static inline __attribute__((always_inline)) void learn_by(const lanes *from, int64_t line, const lanes *slopes,
                                                           int64_t width, int side, lanes *taps) {
    for (int row = 0; row < side; row++, from += line, taps += side) {
        lanes sums[7];
        for (int column = 0; column < side; column++) sums[column] = taps[column];
        for (int64_t x = 0; x < width; x++)
            for (int column = 0; column < side; column++) sums[column] += slopes[x] * from[x + column];
        for (int column = 0; column < side; column++) taps[column] = sums[column];
    }
}

static void learn(const lanes *from, int64_t line, const lanes *slopes, int64_t side, int64_t width, lanes *taps) {
    if (side == 3)
        learn_by(from, line, slopes, width, 3, taps);
    else if (side == 5)
        learn_by(from, line, slopes, width, 5, taps);
    else if (side == 7)
        learn_by(from, line, slopes, width, 7, taps);
    else
        learn_by(from, line, slopes, width, 1, taps);
    for (int64_t x = 0; x < width; x++) taps[side * side] += slopes[x];
}

static int64_t padded(int64_t width) { return (width + AHEAD - 1) / AHEAD * AHEAD; }

/* out += query * (convolution of value + bias), `windows` over groups of channels. 0, or 1 where memory is short. */
int repertory_high(const map *query, const map *value, const map *out, const window *windows, const sizes *of,
                   int threads) {
    block *blocks;
    int64_t count = blocks_of(windows, sizeof *windows, of, &blocks), failed = !blocks, wide = padded(of->width);
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : failed)
    for (int64_t task = 0; task < count * of->images; task++) {
        const block *b = blocks + task % count;
        const window *w = windows + b->of;
        int64_t image = task / count, reach = w->side / 2, line = wide + 2 * reach, room = (STRIP + 2 * reach) * line;
        lanes taps[TAPS], *strip = malloc((room + wide) * sizeof *strip), *row = strip + room;
        if (!strip) {
            failed++;
            continue;
        }
        taps_of(w, b, 0, taps);
        for (int64_t top = 0; top < of->height; top += STRIP) {
            int64_t bottom = at_most(top + STRIP, of->height);
            gather(value, NULL, of, b, image, top - reach, bottom + reach, reach, line, strip);
            for (int64_t y = top; y < bottom; y++) {
                see(strip + (y - top) * line, line, taps, taps[w->side * w->side], w->side, wide, row);
                scatter(row, query, out, of, b, image, y);
            }
        }
        free(strip);
    }
    free(blocks);
    return failed > 0;
}

/* Adds to the gradients of query and value, and to those of weights and biases in `found`, what `repertory_high` makes
   of that of its output. 0, or 1 where memory is short. */
int repertory_high_gradients(const map *query, const map *value, const map *grad, const map *to_query,
                             const map *to_value, const window *windows, const window *found, const sizes *of,
                             int threads) {
    block *blocks;
    int64_t count = blocks_of(windows, sizeof *windows, of, &blocks), failed = !blocks, wide = padded(of->width);
    int64_t tasks = count * of->images;
    lanes(*learnt)[TAPS] = calloc(tasks + 1, sizeof *learnt);
    if (!learnt) failed = 1, tasks = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : failed)
    for (int64_t task = 0; task < tasks; task++) {
        const block *b = blocks + task % count;
        const window *w = windows + b->of;
        int64_t image = task / count, reach = w->side / 2, line = wide + 2 * reach, room = (STRIP + 2 * reach) * line;
        lanes taps[TAPS], flipped[TAPS], *strip = malloc((2 * room + wide) * sizeof *strip);
        lanes *slopes = strip + room, *row = slopes + room;
        if (!strip) {
            failed++;
            continue;
        }
        taps_of(w, b, 0, taps);
        taps_of(w, b, 1, flipped);
        for (int64_t top = 0; top < of->height; top += STRIP) {
            int64_t bottom = at_most(top + STRIP, of->height);
            gather(value, NULL, of, b, image, top - reach, bottom + reach, reach, line, strip);
            gather(grad, query, of, b, image, top - reach, bottom + reach, reach, line, slopes);
            for (int64_t y = top; y < bottom; y++) {
                const lanes *values = strip + (y - top) * line, *around = slopes + (y - top) * line;
                see(values, line, taps, taps[w->side * w->side], w->side, wide, row);
                scatter(row, grad, to_query, of, b, image, y);
                see(around, line, flipped, (lanes){0}, w->side, wide, row);
                scatter(row, NULL, to_value, of, b, image, y);
                learn(values, line, around + reach * line + reach, w->side, of->width, learnt[task]);
            }
        }
        free(strip);
    }
    for (int64_t task = 0; task < tasks; task++) { /* in one order, whatever the threads were */
        const block *b = blocks + task % count;
        const window *to = found + b->of;
        int64_t area = to->side * to->side;
        for (int64_t i = 0; i < b->some; i++) {
            for (int64_t tap = 0; tap < area; tap++)
                to->weights[(b->first + i) * area + tap] += learnt[task][tap][i];
            to->biases[b->first + i] += learnt[task][area][i];
        }
    }
    free(blocks);
    free(learnt);
    return failed > 0;
}

/* A row of a map: the cells spread by `row` (bins) and `columns` (width, bins). */
static void spread(const lanes *cells, const float *row, const float *columns, int64_t bins, int64_t width,
                   lanes *line) {
    memset(line, 0, width * sizeof *line);
    for (int64_t j = 0; j < bins; j++) {
        lanes along = {0};
        for (int64_t i = 0; i < bins; i++) along += row[i] * cells[i * bins + j];
        for (int64_t x = 0; x < width; x++) line[x] += columns[x * bins + j] * along;
    }
}

/* The transpose of that: a row's share of the cells. */
static void collect(const lanes *line, const float *row, const float *columns, int64_t bins, int64_t width,
                    lanes *cells) {
    for (int64_t j = 0; j < bins; j++) {
        lanes even = {0}, odd = {0};
        for (int64_t x = 0; x + 1 < width; x += 2) {
            even += columns[x * bins + j] * line[x];
            odd += columns[(x + 1) * bins + j] * line[x + 1];
        }
        if (width % 2) even += columns[(width - 1) * bins + j] * line[width - 1];
        for (int64_t i = 0; i < bins; i++) cells[i * bins + j] += row[i] * (even + odd);
    }
}

/* Where the cells of a block lie in `pooled`, (images, cells of all levels, channels of a level). */
static float *cells_at(float *pooled, const level *levels, const sizes *of, const block *b, int64_t image) {
    int64_t before = 0, all = 0;
    for (int64_t g = 0; g < of->groups; g++) {
        if (g == b->of) before = all;
        all += levels[g].bins * levels[g].bins;
    }
    return pooled + (image * all + before) * levels[b->of].width + b->first;
}

/* pooled = cells of value; out += relu(map of the cells). 0, or 1 where memory is short. */
int repertory_low(const map *value, const map *out, float *pooled, const level *levels, const sizes *of, int threads) {
    block *blocks;
    int64_t count = blocks_of(levels, sizeof *levels, of, &blocks), failed = !blocks, wide = of->width;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : failed)
    for (int64_t task = 0; task < count * of->images; task++) {
        const block *b = blocks + task % count;
        const level *l = levels + b->of;
        int64_t image = task / count, area = l->bins * l->bins;
        lanes *cells = calloc(area + wide, sizeof *cells), *line = cells + area;
        if (!cells) {
            failed++;
            continue;
        }
        for (int64_t y = 0; y < of->height; y++) {
            gather(value, NULL, of, b, image, y, y + 1, 0, wide, line);
            collect(line, l->pool_rows + y * l->bins, l->pool_columns, l->bins, wide, cells);
        }
        float *kept = cells_at(pooled, levels, of, b, image);
        for (int64_t cell = 0; cell < area; cell++)
            for (int64_t i = 0; i < b->some; i++) kept[cell * l->width + i] = cells[cell][i];
        for (int64_t y = 0; y < of->height; y++) {
            spread(cells, l->spread_rows + y * l->bins, l->spread_columns, l->bins, wide, line);
            for (int64_t x = 0; x < wide; x++) line[x] = where_above(line[x], line[x]);
            scatter(line, NULL, out, of, b, image, y);
        }
        free(cells);
    }
    free(blocks);
    return failed > 0;
}

/* Adds to the gradient of value what `repertory_low`, which kept `pooled`, makes of that of its output. 0, or 1 where
   memory is short. */
int repertory_low_gradients(const map *grad, const map *to_value, float *pooled, const level *levels, const sizes *of,
                            int threads) {
    block *blocks;
    int64_t count = blocks_of(levels, sizeof *levels, of, &blocks), failed = !blocks, wide = of->width;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : failed)
    for (int64_t task = 0; task < count * of->images; task++) {
        const block *b = blocks + task % count;
        const level *l = levels + b->of;
        int64_t image = task / count, area = l->bins * l->bins;
        lanes *cells = calloc(2 * (area + wide), sizeof *cells), *slopes = cells + area;
        lanes *line = slopes + area, *cut = line + wide;
        if (!cells) {
            failed++;
            continue;
        }
        const float *kept = cells_at(pooled, levels, of, b, image);
        for (int64_t cell = 0; cell < area; cell++) cells[cell] = load(kept + cell * l->width, b->some);
        for (int64_t y = 0; y < of->height; y++) {
            const float *row = l->spread_rows + y * l->bins;
            spread(cells, row, l->spread_columns, l->bins, wide, line);
            gather(grad, NULL, of, b, image, y, y + 1, 0, wide, cut);
            for (int64_t x = 0; x < wide; x++) cut[x] = where_above(line[x], cut[x]);
            collect(cut, row, l->spread_columns, l->bins, wide, slopes);
        }
        for (int64_t y = 0; y < of->height; y++) {
            spread(slopes, l->pool_rows + y * l->bins, l->pool_columns, l->bins, wide, line);
            scatter(line, NULL, to_value, of, b, image, y);
        }
        free(cells);
    }
    free(blocks);
    return failed > 0;
}

/* Below, of each head of `width` channels: rows of `count` vectors, and matrices of `width` such rows. */
typedef struct {
    int64_t heads, width, count;
} shape;

static shape shape_of(int64_t heads, int64_t width) { return (shape){heads, width, (width + LANES - 1) / LANES}; }

/* Adds to columns of `to` those of x^T y, for `pixels` rows x, `stride` apart, and y. */
static inline __attribute__((always_inline)) void multiply_by(const float *x, int64_t stride, const lanes *y,
                                                              int64_t pixels, const shape *s, int columns, lanes *to) {
    const int rows = columns < 3 ? 4 : 2; /* as many as registers hold */
    for (int64_t first = 0; first < s->width; first += rows) {
        lanes sums[4][4] = {{{0}}};
        const float *from[4];
        for (int r = 0; r < rows; r++) from[r] = x + at_most(first + r, s->width - 1);
        for (int64_t p = 0; p < pixels; p++)
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < columns; v++) sums[r][v] += from[r][p * stride] * y[p * s->count + v];
        for (int r = 0; r < at_most(rows, s->width - first); r++)
            for (int v = 0; v < columns; v++) to[(first + r) * s->count + v] += sums[r][v];
    }
}

/* Columns of the rows of `pixels` rows x, `stride` apart, times a matrix. */
static inline __attribute__((always_inline)) void apply_by(const float *x, int64_t stride, const lanes *matrix,
                                                           int64_t pixels, const shape *s, int columns, lanes *to) {
    const int rows = columns < 3 ? 4 : 2;
    for (int64_t first = 0; first < pixels; first += rows) {
        lanes sums[4][4] = {{{0}}};
        const float *from[4];
        for (int r = 0; r < rows; r++) from[r] = x + at_most(first + r, pixels - 1) * stride;
        for (int64_t i = 0; i < s->width; i++)
            for (int r = 0; r < rows; r++)
                for (int v = 0; v < columns; v++) sums[r][v] += from[r][i] * matrix[i * s->count + v];
        for (int r = 0; r < at_most(rows, pixels - first); r++)
            for (int v = 0; v < columns; v++) to[(first + r) * s->count + v] = sums[r][v];
    }
}

/* All columns of a product, as many at a time as registers hold. */
static inline __attribute__((always_inline)) void by_columns(
    void (*product)(const float *, int64_t, const lanes *, int64_t, const shape *, int, lanes *), const float *x,
    int64_t stride, const lanes *y, int64_t pixels, const shape *s, lanes *to) {
    for (int64_t v = 0; v < s->count; v += 4)
        if (s->count - v == 1)
            product(x, stride, y + v, pixels, s, 1, to + v);
        else if (s->count - v == 2)
            product(x, stride, y + v, pixels, s, 2, to + v);
        else if (s->count - v == 3)
            product(x, stride, y + v, pixels, s, 3, to + v);
        else
            product(x, stride, y + v, pixels, s, 4, to + v);
}

static void multiply(const float *x, int64_t stride, const lanes *y, int64_t pixels, const shape *s, lanes *to) {
    by_columns(multiply_by, x, stride, y, pixels, s, to);
}

static void apply(const float *x, int64_t stride, const lanes *matrix, int64_t pixels, const shape *s, lanes *to) {
    by_columns(apply_by, x, stride, matrix, pixels, s, to);
}

/* Where `first` pixels of a head begin. */
static inline float *head_at(const map *m, const shape *s, int64_t image, int64_t head, int64_t first) {
    return m->data + image * m->image + first * m->pixel + head * s->width;
}

/* A matrix (width, width) times `scale`, or its transpose, in vectors. */
static void matrix_of(const float *from, const shape *s, float scale, int transposed, lanes *to) {
    memset(to, 0, s->width * s->count * sizeof *to);
    for (int64_t i = 0; i < s->width; i++)
        for (int64_t j = 0; j < s->width; j++)
            to[i * s->count + j / LANES][j % LANES] = scale * from[transposed ? j * s->width + i : i * s->width + j];
}

/* The pixels of a head of `to` = those of x times a matrix; `rows` is working memory, as below. */
static void apply_head(const map *x, const lanes *matrix, const map *to, const shape *s, int64_t image, int64_t head,
                       int64_t first, int64_t pixels, lanes *rows) {
    float *target = head_at(to, s, image, head, first);
    apply(head_at(x, s, image, head, first), x->pixel, matrix, pixels, s, rows);
    for (int64_t p = 0; p < pixels; p++, target += to->pixel)
        memcpy(target, rows + p * s->count, s->width * sizeof *target);
}

static int64_t segments_of(const sizes *of) { return (of->height * of->width + SEGMENT - 1) / SEGMENT; }

/* scale * x^T y of every head, summed over pixels, into (images, heads, width, width). 0, or 1 where memory is short. */
static int between(const map *x, const map *y, const sizes *of, const shape *s, float scale, int threads,
                   float *found) {
    int64_t area = of->height * of->width, segments = segments_of(of), size = s->heads * s->width * s->count;
    int64_t tasks = of->images * segments;
    lanes *sums = calloc(tasks * (size + STRETCH * s->count), sizeof *sums), *working = sums + tasks * size;
    if (!sums) return 1;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < tasks; task++) {
        int64_t image = task / segments, start = task % segments * SEGMENT, stop = at_most(start + SEGMENT, area);
        lanes *rows = working + task * STRETCH * s->count;
        for (int64_t first = start; first < stop; first += STRETCH)
            for (int64_t head = 0; head < s->heads; head++) { /* all of them while the pixels are near */
                int64_t pixels = at_most(STRETCH, stop - first);
                for (int64_t p = 0; p < pixels; p++)
                    for (int64_t v = 0; v < s->count; v++)
                        rows[p * s->count + v] = load(head_at(y, s, image, head, first + p) + v * LANES,
                                                      at_most(LANES, s->width - v * LANES));
                multiply(head_at(x, s, image, head, first), x->pixel, rows, pixels, s,
                         sums + task * size + head * s->width * s->count);
            }
    }
    for (int64_t row = 0; row < of->images * s->heads * s->width; row++) { /* in one order, whatever the threads were */
        int64_t each = s->heads * s->width, image = row / each;
        for (int64_t j = 0; j < s->width; j++) {
            float sum = 0;
            for (int64_t segment = 0; segment < segments; segment++)
                sum += sums[(image * segments + segment) * size + row % each * s->count + j / LANES][j % LANES];
            found[row * s->width + j] = scale * sum;
        }
    }
    free(sums);
    return 0;
}

/* kernels = share^T value, (images, heads, width, width); out = query * scale * kernels. `share` is the softmax of the
   key. 0, or 1 where memory is short. */
int repertory_attend(const map *query, const map *share, const map *value, const map *out, float *kernels,
                     int64_t heads, int64_t width, float scale, const sizes *of, int threads) {
    const shape s = shape_of(heads, width);
    int64_t area = of->height * of->width, segments = segments_of(of), size = width * s.count;
    int64_t failed = between(share, value, of, &s, 1, threads, kernels);
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : failed)
    for (int64_t task = 0; task < of->images * segments; task++) {
        int64_t image = task / segments, start = task % segments * SEGMENT, stop = at_most(start + SEGMENT, area);
        lanes *matrices = malloc((heads * size + STRETCH * s.count) * sizeof *matrices);
        if (!matrices) {
            failed++;
            continue;
        }
        for (int64_t head = 0; head < heads; head++)
            matrix_of(kernels + (image * heads + head) * width * width, &s, scale, 0, matrices + head * size);
        for (int64_t first = start; first < stop; first += STRETCH)
            for (int64_t head = 0; head < heads; head++)
                apply_head(query, matrices + head * size, out, &s, image, head, first, at_most(STRETCH, stop - first),
                           matrices + heads * size);
        free(matrices);
    }
    return failed > 0;
}

/* Gradients of query, key and value by `repertory_attend`, which made `kernels`, given that of its output. 0, or 1 where
   memory is short. */
int repertory_attend_gradients(const map *query, const map *share, const map *value, const map *grad,
                               const map *to_query, const map *to_key, const map *to_value, const float *kernels,
                               int64_t heads, int64_t width, float scale, const sizes *of, int threads) {
    const shape s = shape_of(heads, width);
    int64_t area = of->height * of->width, segments = segments_of(of), size = width * s.count;
    float *slopes = malloc(of->images * heads * width * width * sizeof *slopes + 1);
    if (!slopes) return 1;
    int64_t failed = between(query, grad, of, &s, scale, threads, slopes);
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : failed)
    for (int64_t task = 0; task < of->images * segments; task++) {
        int64_t image = task / segments, start = task % segments * SEGMENT, stop = at_most(start + SEGMENT, area);
        lanes *matrices = malloc((3 * heads * size + STRETCH * s.count) * sizeof *matrices);
        float *taken = calloc(heads * width, sizeof *taken);
        if (!matrices || !taken) {
            free(matrices);
            free(taken);
            failed++;
            continue;
        }
        lanes *backwards = matrices + heads * size, *forwards = backwards + heads * size;
        for (int64_t head = 0; head < heads; head++) {
            const float *kernel = kernels + (image * heads + head) * width * width;
            const float *slope = slopes + (image * heads + head) * width * width;
            matrix_of(kernel, &s, scale, 1, matrices + head * size);
            matrix_of(slope, &s, 1, 1, backwards + head * size);
            matrix_of(slope, &s, 1, 0, forwards + head * size);
            for (int64_t i = 0; i < width; i++) /* what the softmax takes off is the same at every pixel */
                for (int64_t j = 0; j < width; j++)
                    taken[head * width + i] += kernel[i * width + j] * slope[i * width + j];
        }
        for (int64_t first = start; first < stop; first += STRETCH) {
            int64_t pixels = at_most(STRETCH, stop - first);
            lanes *rows = forwards + heads * size;
            for (int64_t head = 0; head < heads; head++) {
                apply_head(grad, matrices + head * size, to_query, &s, image, head, first, pixels, rows);
                apply_head(value, backwards + head * size, to_key, &s, image, head, first, pixels, rows);
                apply_head(share, forwards + head * size, to_value, &s, image, head, first, pixels, rows);
            }
            for (int64_t p = first; p < first + pixels; p++) {
                float *to = head_at(to_key, &s, image, 0, p);
                const float *shares = head_at(share, &s, image, 0, p);
                for (int64_t i = 0; i < heads * width; i++) to[i] = (to[i] - taken[i]) * shares[i];
            }
        }
        free(matrices);
        free(taken);
    }
    free(slopes);
    return failed > 0;
}
