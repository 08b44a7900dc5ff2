/* Convolution of signs by counting bits; binary_conv.py says what the bits mean, checks the input, and loads this.

   32 channels of a pixel are a word; LANES sums of neighbouring pixels are taken at once, nine words of each at a time:
   full adders make bits of 1, 2, 4 and 8 of them, so that four words are counted in place of nine. */

#include <stdint.h>
#include <stdlib.h>

#define LANES 8
#define NINE 9
#define STRETCH 64 /* neighbouring pixels that are packed together */

typedef uint32_t lanes __attribute__((vector_size(4 * LANES)));

static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

static inline void add(lanes a, lanes b, lanes c, lanes *ones, lanes *twos) {
    lanes either = a ^ b;
    *ones = either ^ c;
    *twos = (a & b) | (either & c);
}

static inline lanes in_nibbles(lanes bits) {
    lanes pairs = bits - ((bits >> 1) & 0x55555555);
    return (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333);
}

static inline lanes in_octets(lanes nibbles) { return (nibbles & 0x0f0f0f0f) + ((nibbles >> 4) & 0x0f0f0f0f); }

/* Bits set in nine words of each lane. */
static inline lanes count(const lanes *v) {
    lanes a, b, c, two_a, two_b, two_c, two_d, ones, twos, four_a, four_b, fours;
    add(v[0], v[1], v[2], &a, &two_a);
    add(v[3], v[4], v[5], &b, &two_b);
    add(v[6], v[7], v[8], &c, &two_c);
    add(a, b, c, &ones, &two_d);
    add(two_a, two_b, two_c, &twos, &four_a);
    four_b = twos & two_d;
    twos ^= two_d;
    fours = four_a ^ four_b;
    lanes eights = four_a & four_b;
    lanes few = in_octets(in_nibbles(ones) + (in_nibbles(twos) << 1)); /* at most 3 x 4 in a nibble */
    lanes many = in_octets(in_nibbles(fours) + (in_nibbles(eights) << 1));
    lanes octets = few + (many << 2); /* at most 72 */
    lanes halves = (octets & 0xff00ff) + ((octets >> 8) & 0xff00ff);
    return (halves & 0xffff) + (halves >> 16);
}

/* Packs `pixels` of `channels` maps, `plane` apart: their signs, and `area` words further on which of them are not 0. */
static void pack(const float *x, int64_t channels, int64_t plane, int64_t pixels, int64_t words, int64_t area,
                 uint32_t *to) {
    for (int64_t first = 0; first < pixels; first += STRETCH)
        for (int64_t word = 0; word < words; word++) {
            uint32_t positive[STRETCH] = {0}, counting[STRETCH] = {0};
            int64_t some = at_most(STRETCH, pixels - first), bits = at_most(32, channels - 32 * word);
            for (int64_t bit = 0; bit < bits; bit++) {
                const float *from = x + (32 * word + bit) * plane + first;
                for (int64_t i = 0; i < some; i++) {
                    positive[i] |= (uint32_t)(from[i] > 0) << bit;
                    counting[i] |= (uint32_t)(from[i] != 0) << bit;
                }
            }
            for (int64_t i = 0; i < some; i++) {
                to[(first + i) * words + word] = positive[i];
                to[(first + i) * words + word + area] = counting[i];
            }
        }
}

/* The LANES sums of every output channel, `plane` apart, of which `some` are wanted. */
static void sums(const lanes *sign, const lanes *counts, const uint32_t *weight, int64_t nines, int64_t outputs,
                 int64_t plane, int64_t some, float *out) {
    lanes terms = {0};
    for (int64_t k = 0; k < nines; k++) terms += count(counts + NINE * k);
    for (int64_t output = 0; output < outputs; output++, out += plane) {
        lanes differing = {0};
        for (int64_t k = 0; k < nines; k++, weight += NINE) {
            lanes found[NINE];
            for (int i = 0; i < NINE; i++) found[i] = (sign[NINE * k + i] ^ weight[i]) & counts[NINE * k + i];
            differing += count(found);
        }
        lanes sum = terms - 2 * differing;
        for (int64_t i = 0; i < some; i++) out[i] = (float)(int32_t)sum[i];
    }
}

/* x (maps, channels, height, width), where the groups of an image are maps of their own; weight (groups outputs, words
   of 32 channels for every tap, as many nines as hold them); out (maps, outputs, rows, columns); none with gaps. Kernel,
   stride, padding and dilation are (vertical, horizontal). Returns 0, or 1 where there is not memory enough. */
int repertory_binary_conv(const float *x, const uint32_t *weight, float *out, int64_t maps, int64_t groups,
                          int64_t channels, int64_t height, int64_t width, int64_t outputs, int64_t rows,
                          int64_t columns, const int64_t *kernel, const int64_t *stride, const int64_t *padding,
                          const int64_t *dilation, int threads) {
    int64_t taps = kernel[0] * kernel[1], words = (channels + 31) / 32, length = taps * words;
    int64_t nines = (length + NINE - 1) / NINE, plane = rows * columns, blocks = (plane + LANES - 1) / LANES;
    int64_t wide = width + 2 * padding[1], area = wide * (height + 2 * padding[0]) * words;
    uint32_t *packed = calloc(2 * maps * area, 4);
    lanes *gathered = aligned_alloc(sizeof(lanes), 2 * threads * nines * NINE * sizeof(lanes));
    int64_t *under = malloc(length * sizeof(int64_t)); /* from the first pixel of a window to each of its words */
    int failed = !packed || !gathered || !under;
    if (!failed) {
        for (int64_t k = 0; k < length; k++) {
            int64_t tap = k % taps, down = tap / kernel[1] * dilation[0], across = tap % kernel[1] * dilation[1];
            under[k] = (down * wide + across) * words + k / taps;
        }
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t line = 0; line < maps * height; line++) {
            int64_t map = line / height, row = line % height, place = (row + padding[0]) * wide + padding[1];
            pack(x + (map * channels * height + row) * width, channels, height * width, width, words, area,
                 packed + 2 * map * area + place * words);
        }
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int part = 0; part < threads; part++) {
            lanes *sign = gathered + 2 * part * nines * NINE, *counts = sign + nines * NINE;
            for (int64_t k = 0; k < 2 * nines * NINE; k++) sign[k] = (lanes){0};
            for (int64_t block = part; block < maps * blocks; block += threads) {
                int64_t map = block / blocks, first = block % blocks * LANES, some = at_most(LANES, plane - first);
                for (int64_t i = 0; i < some; i++) {
                    int64_t row = (first + i) / columns, column = (first + i) % columns;
                    const uint32_t *from =
                        packed + 2 * map * area + (row * stride[0] * wide + column * stride[1]) * words;
                    for (int64_t k = 0; k < length; k++) {
                        ((uint32_t *)sign)[k * LANES + i] = from[under[k]];
                        ((uint32_t *)counts)[k * LANES + i] = from[under[k] + area];
                    }
                }
                sums(sign, counts, weight + map % groups * outputs * nines * NINE, nines, outputs, plane, some,
                     out + map * outputs * plane + first);
            }
        }
    }
    free(packed), free(gathered), free(under);
    return failed;
}
