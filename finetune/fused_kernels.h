// What fused_bert.cpp is made of: rows of 16 numbers, dropout, products of bf16 and of bytes, the packing of their
// operands, layer normalisation.
//
// A product C = A B reads "pairs": two neighbours along the summed dimension, in 32 bits, as the processor's
// instruction takes them; where numbers are bytes, a "pair" has four. B is packed beforehand in panels of 32 columns,
// [columns / 32][pairs][32].

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using bf16 = uint16_t;
using pair = uint32_t;

constexpr long BLOCK_ROWS = 12, PANEL = 32, LANES = 16;
constexpr size_t LARGE = 8 << 20;  // bytes: more than a core's own cache holds

// --- Rows of 16 numbers ---------------------------------------------------------------------------------------------

inline __m512 load(const float* x) {
    return _mm512_loadu_ps(x);
}
inline __m512 load(const bf16* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}
inline void store(float* x, __m512 value) {
    _mm512_storeu_ps(x, value);
}
inline void store(bf16* x, __m512 value) {
    _mm256_storeu_si256((__m256i*)x, (__m256i)_mm512_cvtneps_pbh(value));
}
inline __m512 all(float value) {
    return _mm512_set1_ps(value);
}

inline __m512 exponential(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(x * all(1.44269504f), 0);
    __m512 r = _mm512_fnmadd_ps(n, all(0.693359375f), x);  // the logarithm of 2 in two parts
    r = _mm512_fnmadd_ps(n, all(-2.12194440e-4f), r);
    __m512 p = all(1 / 720.f);
    for (float c : {1 / 120.f, 1 / 24.f, 1 / 6.f, 0.5f, 1.f, 1.f}) p = _mm512_fmadd_ps(p, r, all(c));
    return _mm512_scalef_ps(p, n);
}

// The first `count` of 16.
inline __mmask16 lanes_of(long count) {
    return count >= LANES ? 0xFFFF : (1 << std::max(0l, count)) - 1;
}

// x Phi(x) is max(x, 0) less z Phi(-z), with z = |x|, which is a low hill: here a polynomial for each of 16 intervals
// of z, through its values at Chebyshev's nodes; to 1e-6, as which the hill is lower where the intervals end.
struct Hill {
    static constexpr long DEGREE = 4, NODES = DEGREE + 1;
    static constexpr float PER_UNIT = 3, END = (LANES - 0.6f) / PER_UNIT;

    alignas(64) float coefficients[NODES][LANES];  // of the powers of z, in each interval

    Hill() {
        for (long interval = 0; interval < LANES; interval++) {
            const double first = std::max(0.0, (interval - 0.5) / PER_UNIT), last = (interval + 0.5) / PER_UNIT;
            double z[NODES], differences[NODES], powers[NODES] = {};
            for (long i = 0; i < NODES; i++) {
                z[i] = (first + last) / 2 - (last - first) / 2 * std::cos(M_PI * (2 * i + 1) / (2 * NODES));
                if (interval == 0 && i == 0) z[i] = 0;  // there it is 0
                differences[i] = z[i] / 2 * std::erfc(z[i] / M_SQRT2);
            }
            for (long order = 1; order < NODES; order++)  // Newton's divided differences
                for (long i = DEGREE; i >= order; i--)
                    differences[i] = (differences[i] - differences[i - 1]) / (z[i] - z[i - order]);
            for (long i = DEGREE; i >= 0; i--) {  // powers = powers * (z - z[i]) + differences[i]
                for (long power = DEGREE; power > 0; power--) powers[power] = powers[power - 1] - z[i] * powers[power];
                powers[0] = differences[i] - z[i] * powers[0];
            }
            for (long power = 0; power < NODES; power++) coefficients[power][interval] = powers[power];
        }
    }
};

const Hill HILL;

struct Gelu {
    __m512 value, slope;
};

inline Gelu gelu(__m512 x) {
    const __m512 z = _mm512_min_ps(_mm512_abs_ps(x), all(Hill::END));
    // Beside 2^23 there is no place for a fraction: the last bits are the number of the interval.
    const __m512i interval = _mm512_castps_si512(_mm512_fmadd_ps(z, all(Hill::PER_UNIT), all(1 << 23)));
    auto coefficient = [=](long power) {
        return _mm512_permutexvar_ps(interval, _mm512_load_ps(HILL.coefficients[power]));
    };
    __m512 hill = coefficient(Hill::DEGREE), rise = _mm512_setzero_ps();
    for (long power = Hill::DEGREE - 1; power >= 0; power--) {
        rise = _mm512_fmadd_ps(rise, z, hill);
        hill = _mm512_fmadd_ps(hill, z, coefficient(power));
    }
    const __m512 value = _mm512_max_ps(_mm512_setzero_ps(), x) - hill;  // of two, the second where one is no number
    return {value, _mm512_mask_sub_ps(rise, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ), all(1.f), rise)};
}

// --- Dropout --------------------------------------------------------------------------------------------------------

// Whether an element is kept is a hash of the seed, the place in the network and the element's number: the backward
// pass draws the same again. (Two rounds of C. Wellons' lowbias32.)
struct Dropout {
    uint32_t first_key, second_key, dropped;
    float scale;

    Dropout(uint64_t seed, long place, float rate) {
        uint64_t x = seed + (place + 1) * 0x9E3779B97F4A7C15;  // splitmix64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        x ^= x >> 31;
        first_key = (uint32_t)x;
        second_key = (uint32_t)(x >> 32);
        dropped = (uint32_t)std::min(4294967295.0, rate * 4294967296.0);
        scale = rate < 1 ? 1 / (1 - rate) : 0;
    }
    bool off() const { return dropped == 0; }

    static __m512i hash(__m512i x) {
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
        x = _mm512_mullo_epi32(x, _mm512_set1_epi32(0x7feb352d));
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
        x = _mm512_mullo_epi32(x, _mm512_set1_epi32((int)0x846ca68b));
        return _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
    }

    // 16 neighbours from `element`, those that are dropped 0, the others scaled.
    __m512 operator()(__m512 x, long element) const {
        if (off()) return x;
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i bits = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)((uint32_t)element + first_key)));
        bits = hash(_mm512_xor_si512(hash(bits), _mm512_set1_epi32((int)second_key)));
        const __mmask16 kept = _mm512_cmpge_epu32_mask(bits, _mm512_set1_epi32((int)dropped));
        return _mm512_maskz_mul_ps(kept, x, all(scale));
    }
};

// --- Products -------------------------------------------------------------------------------------------------------

// What an instruction adds to 16 sums: the products of two bf16,
struct OfPairs {
    using Sums = __m512;

    static Sums add(Sums sums, __m512i x, __m512i panel) {
        return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)panel);
    }
};

// or of four bytes, without a sign in A and with one in B. (As vectors of int, not of long long as __m512i is, sums
// stay in registers.)
struct OfBytes {
    using Sums = int __attribute__((vector_size(64)));

    static Sums add(Sums sums, __m512i x, __m512i panel) { return (Sums)_mm512_dpbusd_epi32((__m512i)sums, x, panel); }
};

template <class Product, long R, class Epilogue>
inline void multiply_block(const pair* a, long row_stride, long pair_stride, const pair* panel, long pairs, long row,
                           long column, Epilogue epilogue) {
    typename Product::Sums sums[R][2];
#pragma GCC unroll 12
    for (long r = 0; r < R; r++) sums[r][0] = sums[r][1] = typename Product::Sums{};
    const pair* rows[4] = {a, a + 3 * row_stride, a + 6 * row_stride,
                           a + 9 * row_stride};  // few registers: one for three
    for (long k = 0; k < pairs; k++) {
        const __m512i left = _mm512_loadu_si512(panel), right = _mm512_loadu_si512(panel + LANES);
#pragma GCC unroll 12
        for (long r = 0; r < R; r++) {
            const __m512i x = _mm512_set1_epi32((int)rows[r / 3][r % 3 * row_stride]);
            sums[r][0] = Product::add(sums[r][0], x, left);
            sums[r][1] = Product::add(sums[r][1], x, right);
        }
#pragma GCC unroll 4
        for (long group = 0; group < (R + 2) / 3; group++) rows[group] += pair_stride;
        panel += PANEL;
    }
#pragma GCC unroll 12
    for (long r = 0; r < R; r++) {
        epilogue(row + r, column, sums[r][0]);
        epilogue(row + r, column + LANES, sums[r][1]);
    }
}

// Rows from `first` to before `last`.
struct Range {
    long first, last;

    long count() const { return last - first; }
};

// A thread's share of `count` things, in whole units.
inline Range share_of(long count, long unit, long thread, long threads) {
    const long units = (count + unit - 1) / unit;
    return {std::min(count, units * thread / threads * unit), std::min(count, units * (thread + 1) / threads * unit)};
}

// What a product's first operand looks like: rows of pairs, or blocks of 12 rows as pack_transposed makes them.
struct Rows {
    const pair* start;
    long row_stride, block_stride;  // between rows of a block, and of the blocks' first rows
    bool packed;

    static Rows of(const bf16* x, long stride) { return {(const pair*)x, stride / 2, stride / 2, false}; }
    static Rows of(const uint8_t* x, long stride) { return {(const pair*)x, stride / 4, stride / 4, false}; }
    static Rows of_packed(const pair* x, long pairs) { return {x, 1, pairs, true}; }
};

// `epilogue(row, column, sums)` takes 16 neighbours of C. `columns` are a multiple of 32.
template <class Product = OfPairs, class Epilogue>
void multiply(Rows a, Range rows, const pair* panels, long pairs, long columns, Epilogue epilogue) {
    for (long column = 0; column < columns; column += PANEL, panels += pairs * PANEL) {
        long row = rows.first;
        auto blocks_of = [&](auto size) {
            for (; row + size.value <= rows.last; row += size.value)
                multiply_block<Product, size.value>(a.start + row * a.block_stride, a.row_stride,
                                                    a.packed ? size.value : 1, panels, pairs, row, column, epilogue);
        };
        // A packed last block is whole: of a multiple of 32 rows, 0, 4 or 8 are left.
        blocks_of(std::integral_constant<long, 12>());
        blocks_of(std::integral_constant<long, 8>());
        blocks_of(std::integral_constant<long, 4>());
        blocks_of(std::integral_constant<long, 2>());
        blocks_of(std::integral_constant<long, 1>());
    }
}

inline long padded(long length) {
    return (length + PANEL - 1) / PANEL * PANEL;
}

// Stores 64 bytes; `past_the_cache`, to a multiple of 64, where so much is stored that it would not be found there
// again.
inline void put(pair* to, __m512i x, bool past_the_cache) {
    if (past_the_cache)
        _mm512_stream_si512((__m512i*)to, x);
    else
        _mm512_storeu_si512(to, x);
}
inline void put(float* to, __m512 x, bool past_the_cache) {
    put((pair*)to, _mm512_castps_si512(x), past_the_cache);
}

// 16 rows of 16 numbers, transposed.
inline void transpose(__m512i (&x)[LANES]) {
    __m512i y[LANES];
    for (long i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (long i = 0; i < 16; i += 4)
        for (long half = 0; half < 2; half++) {
            x[i + 2 * half] = _mm512_unpacklo_epi64(y[i + half], y[i + half + 2]);
            x[i + 2 * half + 1] = _mm512_unpackhi_epi64(y[i + half], y[i + half + 2]);
        }
    for (long j = 0; j < 4; j++) {  // x[4 i + j] has columns j, 4 + j, 8 + j and 12 + j of rows 4 i to 4 i + 3
        const __m512i even = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88),
                      odd = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        const __m512i even2 = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88),
                      odd2 = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        y[j] = _mm512_shuffle_i32x4(even, even2, 0x88);
        y[4 + j] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
        y[8 + j] = _mm512_shuffle_i32x4(even, even2, 0xdd);
        y[12 + j] = _mm512_shuffle_i32x4(odd, odd2, 0xdd);
    }
    std::copy(y, y + LANES, x);
}

// Panels of a B that is given with its columns as rows: [count][depth] -> [count / 32][depth / 2][32]. The depth is a
// multiple of 32; columns that are missing of the last panel are zero.
inline void pack_columns(const bf16* x, long stride, long count, long depth, pair* panels,
                         bool past_the_cache = false) {
    const long pairs = depth / 2;
    for (long first = 0; first < count; first += PANEL, panels += pairs * PANEL)
        for (long half = 0; half < PANEL; half += LANES)
            for (long k = 0; k < pairs; k += LANES) {
                __m512i rows[LANES];
                for (long lane = 0; lane < LANES; lane++) {
                    const long column = first + half + lane;
                    rows[lane] = column < count ? _mm512_loadu_si512((const pair*)(x + column * stride) + k)
                                                : _mm512_setzero_si512();
                }
                transpose(rows);
                for (long lane = 0; lane < LANES; lane++)
                    put(panels + (k + lane) * PANEL + half, rows[lane], past_the_cache);
            }
}

// Panels of a B that is given as it is: [depth][columns] -> [columns / 32][pairs][32]. An odd last row gets zeros
// beside it. The rows are pairs `first_pair` and on of `pairs`.
inline void pack_rows(const bf16* x, long stride, long depth, long columns, pair* panels, long pairs,
                      long first_pair = 0, bool past_the_cache = false) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (long column = 0; column < columns; column += PANEL, panels += pairs * PANEL)
        for (long k = 0; 2 * k < depth; k++) {
            const bf16* from = x + 2 * k * stride + column;
            const __m512i even = _mm512_loadu_si512(from);
            const __m512i odd = 2 * k + 1 < depth ? _mm512_loadu_si512(from + stride) : _mm512_setzero_si512();
            pair* to = panels + (first_pair + k) * PANEL;
            put(to, _mm512_permutex2var_epi16(even, low, odd), past_the_cache);
            put(to + LANES, _mm512_permutex2var_epi16(even, high, odd), past_the_cache);
        }
}

// A transposed A, given as [depth][rows], in blocks of 12 rows (the last one may be smaller): [rows / 12][pairs][12];
// and the sum of each row.
inline void pack_transposed(const bf16* x, long stride, long depth, Range rows, pair* blocks, float* sums) {
    for (long row = rows.first; row < rows.last; row += BLOCK_ROWS) {
        const long width = std::min(BLOCK_ROWS, rows.last - row);
        const __mmask16 columns = (1 << width) - 1;
        auto numbers = [&](long k) {
            return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(columns, x + k * stride + row));
        };
        __m512 sum = _mm512_setzero_ps();
        for (long k = 0; k < depth; k += 2, blocks += width) {
            const __m512i even = numbers(k),
                          odd = k + 1 < depth ? _mm512_slli_epi32(numbers(k + 1), 16) : _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(blocks, columns, _mm512_or_si512(even, odd));
            sum += _mm512_castsi512_ps(_mm512_slli_epi32(even, 16)) + _mm512_castsi512_ps(odd);
        }
        _mm512_mask_storeu_ps(sums + row, columns, sum);
    }
}

// --- Bytes ---

inline __mmask16 not_numbers(__m512 x) {
    return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
}

// A row in bytes without a sign: x is about lowest + step * byte. Where one of a row is no number, none is.
struct Scale {
    float lowest, step;
};

inline Scale to_bytes(const bf16* x, long width, uint8_t* bytes) {
    __m512 least = load(x), most = least;
    __mmask16 lost = not_numbers(least);
    for (long h = LANES; h < width; h += LANES) {
        const __m512 value = load(x + h);
        least = _mm512_min_ps(least, value);
        most = _mm512_max_ps(most, value);
        lost |= not_numbers(value);
    }
    const float lowest = lost ? NAN : _mm512_reduce_min_ps(least), step = (_mm512_reduce_max_ps(most) - lowest) / 255;
    const __m512 over = all(step > 0 ? 1 / step : 0);
    for (long h = 0; h < width; h += LANES) {
        const __m512i whole = _mm512_cvtps_epi32((load(x + h) - all(lowest)) * over);
        _mm_storeu_si128((__m128i*)(bytes + h), _mm512_cvtusepi32_epi8(whole));
    }
    return {lowest, step};
}

// A row in bytes with a sign, x is about step * byte: gives the step, and the sum of the bytes. As above, none is a
// number where one is not.
struct SignedScale {
    float step;
    long sum;
};

inline SignedScale to_signed_bytes(const float* x, long width, int8_t* bytes) {
    __m512 most = _mm512_setzero_ps();
    __mmask16 lost = 0;
    for (long h = 0; h < width; h += LANES) {
        most = _mm512_max_ps(most, _mm512_abs_ps(load(x + h)));
        lost |= not_numbers(load(x + h));
    }
    const float step = lost ? NAN : _mm512_reduce_max_ps(most) / 127;
    const __m512 over = all(step > 0 ? 1 / step : 0);
    __m512i sum = _mm512_setzero_si512();
    for (long h = 0; h < width; h += LANES) {
        const __m512i whole = _mm512_cvtps_epi32(load(x + h) * over);
        _mm_storeu_si128((__m128i*)(bytes + h), _mm512_cvtsepi32_epi8(whole));
        sum = _mm512_add_epi32(sum, whole);
    }
    return {step, _mm512_reduce_add_epi32(sum)};
}

// --- Layer normalisation ---

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

// Of a row: one over the deviation; and in `normal`, if given, what is normalised, before weight and bias.
// `finish(column, y)` takes what is behind them.
template <class Finish>
inline float normalise(const float* x, long hidden, Norm norm, bf16* normal, Finish finish) {
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (long h = 0; h < hidden; h += LANES) sum += load(x + h);
    const __m512 mean = all(_mm512_reduce_add_ps(sum) / hidden);
    for (long h = 0; h < hidden; h += LANES) {
        const __m512 centred = load(x + h) - mean;
        squares = _mm512_fmadd_ps(centred, centred, squares);
    }
    const float over_deviation = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / hidden + norm.epsilon);
    for (long h = 0; h < hidden; h += LANES) {
        const __m512 value = (load(x + h) - mean) * all(over_deviation);
        if (normal) store(normal + h, value);
        finish(h, _mm512_fmadd_ps(value, load(norm.weight + h), load(norm.bias + h)));
    }
    return over_deviation;
}

// From the gradient of y to that of x, in the same place.
inline void normalise_backward(float* gradient, const bf16* normal, float over_deviation, const float* weight,
                               long hidden) {
    __m512 sum = _mm512_setzero_ps(), product = sum;
    for (long h = 0; h < hidden; h += LANES) {
        const __m512 g = load(gradient + h) * load(weight + h);
        sum += g;
        product = _mm512_fmadd_ps(g, load(normal + h), product);
    }
    const __m512 mean = all(_mm512_reduce_add_ps(sum) / hidden), along = all(_mm512_reduce_add_ps(product) / hidden);
    for (long h = 0; h < hidden; h += LANES) {
        const __m512 g = load(gradient + h) * load(weight + h);
        store(gradient + h, (g - mean - load(normal + h) * along) * all(over_deviation));
    }
}

// The gradients of weight and bias, from the gradients of y [rows, H], in some columns.
inline void of_norm(const bf16* gradient, const bf16* normal, long rows, long hidden, Range columns, float* of_weight,
                    float* of_bias) {
    for (long h = columns.first; h < columns.last; h += LANES) {
        __m512 weight = _mm512_setzero_ps(), bias = weight;
        for (long row = 0; row < rows; row++) {
            const __m512 g = load(gradient + row * hidden + h);
            weight = _mm512_fmadd_ps(g, load(normal + row * hidden + h), weight);
            bias += g;
        }
        store(of_weight + h, weight);
        store(of_bias + h, bias);
    }
}

}  // namespace
