// BERT's layers, forward and backward, as two calls: what finetune/fused_bert.py loads, on processors with AVX512-BF16.
//
// A batch of tweets is so small that torch's operations start for longer than they run. Here the threads share the rows
// of all tweets, without padding, and meet before and after the attention, which they share by tweets and heads. What
// each does to its rows it does to some at a time, all behind the attention, so that they stay in its core's cache.
// Products are of bf16, added up in fp32. Activations are bf16; what is computed within a row (normalisation, softmax,
// the residual's gradient) is fp32. In eight bits, for prediction alone, the linear layers' products are of bytes: each
// output's weights with a step of their own, each row of activations with a step and a zero found as it is read
// (after Yao et al., "ZeroQuant", 2022).
//
// What is computed does not depend on the number of threads and, but for dropout's masks, not on the other tweets.
//
// Names: pieces are the rows of all tweets, one behind another. Queries are the rows that a layer computes: all pieces,
// in the last layer the words' first pieces. H hidden size, D size of a head, T padded length of a tweet.

#include <omp.h>

#include <vector>

#include "fused_kernels.h"

extern "C" struct Sizes {  // as in fused_bert.py
    long tweets, pieces, words, hidden, heads, inner, layers, labels, places, types, vocabulary, threads, training,
        eight_bits;
    uint64_t seed;
    float hidden_rate, attention_rate, label_rate, epsilon;
};

extern "C" struct Inputs {  // as in fused_bert.py
    const float* embedded;  // of each place of the padded input; where there are ids, of each piece of a vocabulary
    const int64_t* ids_BT;
    const int64_t *attention_mask_BT, *token_type_ids_BT, *first_piece_BW;
};

namespace {

// clang-format off
enum EmbeddingParameter { N_W, N_B, PLACES, TYPES, OF_EMBEDDINGS };
enum Parameter { Q_W, Q_B, K_W, K_B, V_W, V_B, O_W, O_B, N1_W, N1_B, UP_W, UP_B, DOWN_W, DOWN_B, N2_W, N2_B, OF_A_LAYER };
enum LabelParameter { LABEL_W, LABEL_B };  // after those of the layers, where there are labels
enum DropoutPlace { OF_SHARES, OF_ATTENDED, OF_CHANGED, IN_A_LAYER };  // between those of the embeddings and the labels
// clang-format on

// --- What is computed on ---

// Of these, what is behind the attention reads and writes some 450 kB in BERT-Small, beside a panel of weights.
constexpr long ROWS_AT_ONCE = 4 * BLOCK_ROWS;

// Hands out parts of a block of memory; from no block, it only counts.
struct Memory {
    char* start;
    size_t used = 0;

    template <class T>
    T* take(long count) {
        T* part = (T*)(start ? start + used : nullptr);
        used += (count * sizeof(T) + 63) / 64 * 64;
        return part;
    }
};

// A weight in panels. In bytes: with the step of each output, and the output where all inputs are one.
struct Weight {
    pair* panels;
    float *step, *of_ones;
};

// A layer's weights.
struct Weights {
    Weight query, key_value, out, up, down;

    Weights(const Sizes& s, Memory& memory) {
        auto of = [&](long outputs, long inputs) {
            const long in_a_pair = s.eight_bits ? 4 : 2, scales = s.eight_bits ? outputs : 0;
            pair* panels = memory.take<pair>(outputs * inputs / in_a_pair);
            float* step = memory.take<float>(scales);
            return Weight{panels, step, memory.take<float>(scales)};
        };
        query = of(s.hidden, s.hidden);
        key_value = of(2 * s.hidden, s.hidden);
        out = of(s.hidden, s.hidden);
        up = of(s.inner, s.hidden);
        down = of(s.hidden, s.inner);
    }
};

std::vector<Weights> weights_of_layers(const Sizes& s, Memory& memory) {
    std::vector<Weights> weights;
    for (long l = 0; l < s.layers; l++) weights.emplace_back(s, memory);
    return weights;
}

// Between rows of the inner layer: beside a power of 2, where twelve rows would share a set of the cache.
long inner_stride(const Sizes& s) {
    return s.inner + PANEL;
}
long byte_stride(const Sizes& s) {
    return std::max(s.hidden, s.inner) + 2 * PANEL;
}

// Where the tweets' rows are.
struct Plan {
    std::vector<long> piece_start, word_start;                       // of each tweet, and behind the last
    std::vector<long> place_of_piece, piece_of_word, place_of_word;  // in the padded input; a row; in the output

    // False where a tweet has no piece, more than there are places, or holes in its mask; for ids and types that there
    // are not; for a first piece beyond its tweet.
    bool make(const Sizes& s, const Inputs& in) {
        piece_start = word_start = {0};
        for (long tweet = 0; tweet < s.tweets; tweet++) {
            const int64_t* mask = in.attention_mask_BT + tweet * s.pieces;
            const long length = std::count(mask, mask + s.pieces, 1);
            if (length == 0 || length > s.places || std::count(mask, mask + length, 1) != length) return false;
            for (long place = tweet * s.pieces; place < tweet * s.pieces + length; place++) {
                if (in.token_type_ids_BT[place] < 0 || in.token_type_ids_BT[place] >= s.types) return false;
                if (in.ids_BT && (in.ids_BT[place] < 0 || in.ids_BT[place] >= s.vocabulary)) return false;
                place_of_piece.push_back(place);
            }
            for (long word = tweet * s.words; word < (tweet + 1) * s.words; word++)
                if (const long piece = in.first_piece_BW[word]) {  // the first token, 0, stands at no word
                    if (piece < 0 || piece >= length) return false;
                    piece_of_word.push_back(piece_start[tweet] + piece);
                    place_of_word.push_back(word);
                }
            piece_start.push_back(place_of_piece.size());
            word_start.push_back(piece_of_word.size());
        }
        return true;
    }
};

// What the forward pass leaves for the backward pass; without one, layers share what they need, and the others are
// null.
struct Layer {
    bf16 *x, *read;  // what keys and values are computed from, and queries
    bf16 *query, *key_value, *context, *attended, *inner, *active, *normal1, *normal2;
    float *shares, *deviation1, *deviation2;
};

bf16* row_of(bf16* rows, long row, long width) {
    return rows ? rows + row * width : nullptr;
}

struct Activations {
    std::vector<Layer> layers;
    bf16* normal;
    float *deviation, *of_words;  // of_words [words, H] is what the labels' scores are computed from

    Activations(const Sizes& s, Memory& memory) {
        const long pieces = s.tweets * s.pieces, words = s.tweets * s.words;
        normal = s.training ? memory.take<bf16>(pieces * s.hidden) : nullptr;
        deviation = memory.take<float>(pieces);
        of_words = memory.take<float>(s.labels ? words * s.hidden : 0);
        for (long l = 0; l < s.layers; l++) {
            const bool last = l == s.layers - 1, first_of_its_kind = s.training || l == 0;
            if (!first_of_its_kind && !last) {
                layers.push_back(layers[0]);
                continue;
            }
            const long queries = last ? words : pieces;
            auto of = [&](long width) { return memory.take<bf16>(queries * width); };
            Layer layer;
            layer.x = first_of_its_kind ? memory.take<bf16>(pieces * s.hidden) : layers[0].x;
            layer.read = last ? of(s.hidden) : layer.x;
            layer.query = of(s.hidden);
            layer.key_value = memory.take<bf16>(pieces * 2 * s.hidden);
            layer.context = of(s.hidden);
            layer.attended = of(s.hidden);
            layer.inner = s.training ? of(inner_stride(s)) : nullptr;
            layer.active = s.training ? of(inner_stride(s)) : nullptr;
            layer.normal1 = s.training ? of(s.hidden) : nullptr;
            layer.normal2 = s.training ? of(s.hidden) : nullptr;
            layer.shares = s.training ? memory.take<float>(queries * s.heads * padded(s.pieces)) : nullptr;
            layer.deviation1 = memory.take<float>(queries);
            layer.deviation2 = memory.take<float>(queries);
            layers.push_back(layer);
        }
    }
};

// One thread's memory for the attention of one head in one tweet.
struct Head {
    pair *keys, *values, *queries, *gradients;
    float *scores, *shares;
    bf16 *of_scores, *of_shares, *transposed;

    Head(const Sizes& s, Memory& memory) {
        const long size = s.hidden / s.heads, length = padded(std::max(s.pieces, s.words));
        for (pair** panels : {&keys, &values, &queries, &gradients}) *panels = memory.take<pair>(length * size / 2);
        for (float** square : {&scores, &shares}) *square = memory.take<float>(length * length);
        for (bf16** square : {&of_scores, &of_shares, &transposed}) *square = memory.take<bf16>(length * length);
    }
};

// One thread's memory for some rows: what is to be normalised, what the inner layer gives, what a linear layer reads in
// eight bits.
struct Rowwise {
    float* sums;
    bf16* active;
    uint8_t* bytes;
    Scale* scales;

    Rowwise(const Sizes& s, Memory& memory) {
        sums = memory.take<float>(ROWS_AT_ONCE * s.hidden);
        active = memory.take<bf16>(s.training ? 0 : ROWS_AT_ONCE * inner_stride(s));
        bytes = memory.take<uint8_t>(s.eight_bits ? ROWS_AT_ONCE * byte_stride(s) : 0);
        scales = memory.take<Scale>(s.eight_bits ? ROWS_AT_ONCE : 0);
    }
};

template <class Own>
std::vector<Own> of_threads(const Sizes& s, Memory& memory) {
    std::vector<Own> of_thread;
    for (long thread = 0; thread < s.threads; thread++) of_thread.emplace_back(s, memory);
    return of_thread;
}

// Gradients of what a layer computed, until those of its weights are.
struct Gradients {
    float *of_pieces, *of_words;  // [pieces, H] of what a layer reads; [words, H] of what the last one gives
    bf16 *of_query, *of_key_value, *of_context, *of_attended, *of_inner, *of_changed, *of_norm1, *of_norm2;
    pair *panels, *blocks;  // the operands of a weight's gradient

    Gradients(const Sizes& s, Memory& memory) {
        const long pieces = s.tweets * s.pieces, words = s.tweets * s.words, rows = std::max(pieces, words);
        of_pieces = memory.take<float>(pieces * s.hidden);
        of_words = memory.take<float>(words * s.hidden);
        for (bf16** part : {&of_query, &of_context, &of_attended, &of_changed, &of_norm1, &of_norm2})
            *part = memory.take<bf16>(rows * s.hidden);
        of_key_value = memory.take<bf16>(pieces * 2 * s.hidden);
        of_inner = memory.take<bf16>(rows * inner_stride(s));
        for (pair** operand : {&panels, &blocks})
            *operand = memory.take<pair>((rows + 1) / 2 * std::max(s.hidden, s.inner));
    }
};

// What all threads of a pass know.
struct Pass {
    const Sizes& s;
    const Plan& plan;
    const Inputs& in;
    const float* const* parameters;
    const Activations& activations;

    const float* const* of_layer(long l) const { return parameters + OF_EMBEDDINGS + l * OF_A_LAYER; }
    Norm norm(const float* weight, const float* bias) const { return {weight, bias, s.epsilon}; }
    const float* of_label(LabelParameter parameter) const { return of_layer(s.layers)[parameter]; }
    Dropout of_labels() const { return {s.seed, 1 + s.layers * IN_A_LAYER, s.label_rate}; }
    Dropout of_embeddings() const { return {s.seed, 0, s.hidden_rate}; }
    Dropout of_place(long l, DropoutPlace place) const {
        return {s.seed, 1 + l * IN_A_LAYER + place, place == OF_SHARES ? s.attention_rate : s.hidden_rate};
    }
    bool is_last(long l) const { return l == s.layers - 1; }
    const std::vector<long>& query_start(long l) const { return is_last(l) ? plan.word_start : plan.piece_start; }
    Range rows_of(long rows, long thread) const { return share_of(rows, BLOCK_ROWS, thread, s.threads); }
    Range pieces(long thread) const { return rows_of(plan.piece_start.back(), thread); }
    Range queries(long l, long thread) const { return rows_of(query_start(l).back(), thread); }
    Range heads(long thread) const { return share_of(s.tweets * s.heads, 1, thread, s.threads); }
};

// One head in one tweet.
struct HeadOfTweet {
    long piece, pieces, query, queries;       // its rows
    long column, size;                        // its columns
    long width, pairs, query_pairs, element;  // T; halves of the rows; the number of its first share of attention
    float scale;

    HeadOfTweet(const Pass& p, long l, long number) {
        const long tweet = number / p.s.heads, head = number % p.s.heads;
        const std::vector<long>& query_start = p.query_start(l);
        piece = p.plan.piece_start[tweet];
        pieces = p.plan.piece_start[tweet + 1] - piece;
        query = query_start[tweet];
        queries = query_start[tweet + 1] - query;
        size = p.s.hidden / p.s.heads;
        column = head * size;
        width = padded(pieces);
        pairs = (pieces + 1) / 2;
        query_pairs = (queries + 1) / 2;
        element = (query * p.s.heads + head * queries) * padded(p.s.pieces);
        scale = 1 / std::sqrt((float)size);
    }
};

// --- The forward pass ---

void embed(const Pass& p, long thread, float* sum) {
    const long hidden = p.s.hidden;
    const Norm norm = p.norm(p.parameters[N_W], p.parameters[N_B]);
    const Dropout dropout = p.of_embeddings();
    const Range rows = p.pieces(thread);
    for (long row = rows.first; row < rows.last; row++) {
        const long place = p.plan.place_of_piece[row];
        const float* embedded = p.in.embedded + (p.in.ids_BT ? p.in.ids_BT[place] : place) * hidden;
        const float* of_place = p.parameters[PLACES] + place % p.s.pieces * hidden;
        const float* of_type = p.parameters[TYPES] + p.in.token_type_ids_BT[place] * hidden;
        for (long h = 0; h < hidden; h += LANES)
            store(sum + h, load(embedded + h) + load(of_type + h) + load(of_place + h));
        bf16* x = p.activations.layers[0].x + row * hidden;
        p.activations.deviation[row] = normalise(sum, hidden, norm, row_of(p.activations.normal, row, hidden),
                                                 [&](long h, __m512 y) { store(x + h, dropout(y, row * hidden + h)); });
    }
}

// The shares of the pieces for each query, from scores [queries, T]; and what dropout leaves of them.
void take_shares(const HeadOfTweet& head, const float* scores, Dropout dropout, float* shares, bf16* dropped) {
    const __m512 scale = all(head.scale);
    for (long query = 0; query < head.queries; query++) {
        const long first = query * head.width;
        auto there = [&](long t) { return lanes_of(head.pieces - t); };
        __m512 highest = all(-INFINITY), sum = _mm512_setzero_ps();
        for (long t = 0; t < head.width; t += LANES)
            highest = _mm512_mask_max_ps(highest, there(t), highest, load(scores + first + t));
        const __m512 most = all(_mm512_reduce_max_ps(highest));
        for (long t = 0; t < head.width; t += LANES) {
            const __m512 raised = exponential((load(scores + first + t) - most) * scale);
            const __m512 share = _mm512_maskz_mov_ps(there(t), raised);
            store(shares + first + t, share);
            sum += share;
        }
        const __m512 over = all(1 / _mm512_reduce_add_ps(sum));
        for (long place = first; place < first + head.width; place += LANES) {
            const __m512 share = load(shares + place) * over;
            store(shares + place, share);
            store(dropped + place, dropout(share, head.element + place));
        }
    }
}

void attend(const Pass& p, long l, const HeadOfTweet& head, const Head& of_head) {
    const Layer& layer = p.activations.layers[l];
    const long hidden = p.s.hidden;
    const bf16* query = layer.query + head.query * hidden + head.column;
    const bf16* key = layer.key_value + head.piece * 2 * hidden + head.column;
    const bf16* value = key + hidden;
    bf16* context = layer.context + head.query * hidden + head.column;
    const Range queries{0, head.queries};
    pack_columns(key, 2 * hidden, head.pieces, head.size, of_head.keys);
    multiply(Rows::of(query, hidden), queries, of_head.keys, head.size / 2, head.width,
             [&](long row, long t, __m512 x) { store(of_head.scores + row * head.width + t, x); });
    float* shares = layer.shares ? layer.shares + head.element : of_head.shares;
    take_shares(head, of_head.scores, p.of_place(l, OF_SHARES), shares, of_head.of_shares);
    pack_rows(value, 2 * hidden, head.pieces, head.size, of_head.values, head.pairs);
    multiply(Rows::of(of_head.of_shares, head.width), queries, of_head.values, head.pairs, head.size,
             [&](long row, long column, __m512 x) { store(context + row * hidden + column, x); });
}

// A linear layer without its bias, for some rows: x is the first. `epilogue(row, column, y)` takes 16 neighbours, of
// rows numbered from 0.
template <class Epilogue>
void multiply_weight(const Sizes& s, const Rowwise& of_rows, const bf16* x, long stride, long rows,
                     const Weight& weight, long inputs, long outputs, Epilogue epilogue) {
    if (!s.eight_bits) {
        multiply(Rows::of(x, stride), {0, rows}, weight.panels, inputs / 2, outputs, epilogue);
        return;
    }
    for (long row = 0; row < rows; row++)
        of_rows.scales[row] = to_bytes(x + row * stride, inputs, of_rows.bytes + row * byte_stride(s));
    multiply<OfBytes>(Rows::of(of_rows.bytes, byte_stride(s)), {0, rows}, weight.panels, inputs / 4, outputs,
                      [=, scales = of_rows.scales](long row, long column, OfBytes::Sums sums) {
                          const __m512 y = _mm512_cvtepi32_ps((__m512i)sums) * all(scales[row].step);
                          const __m512 of_lowest = all(scales[row].lowest) * load(weight.of_ones + column);
                          epilogue(row, column, _mm512_fmadd_ps(y, load(weight.step + column), of_lowest));
                      });
}

// A word's scores, from its row.
void score_labels(const Pass& p, const float* word, float* scores) {
    for (long label = 0; label < p.s.labels; label++) {
        const float* weight = p.of_label(LABEL_W) + label * p.s.hidden;
        __m512 sum = _mm512_setzero_ps();
        for (long h = 0; h < p.s.hidden; h += LANES) sum = _mm512_fmadd_ps(load(word + h), load(weight + h), sum);
        scores[label] = _mm512_reduce_add_ps(sum) + p.of_label(LABEL_B)[label];
    }
}

template <class Compute>
void in_parts(Range rows, Compute compute) {
    for (long first = rows.first; first < rows.last; first += ROWS_AT_ONCE)
        compute(Range{first, std::min(first + ROWS_AT_ONCE, rows.last)});
}

// What is behind the attention, for some rows. It goes to the next layer, from the last one to `output`: [B, W, H], or
// the labels' scores.
void compute_rows(const Pass& p, long l, Range rows, const Weights& weights, const Rowwise& of_rows, float* output) {
    const Layer& layer = p.activations.layers[l];
    const float* const* parameters = p.of_layer(l);
    const long hidden = p.s.hidden, inner = p.s.inner, stride = inner_stride(p.s), count = rows.count();
    auto added = [=, sums = of_rows.sums](const float* bias, Dropout dropout, const bf16* residual) {
        return [=](long row, long column, __m512 x) {
            const long place = row * hidden + column;
            x = dropout(x + load(bias + column), rows.first * hidden + place);
            store(sums + place, x + load(residual + place));
        };
    };
    bf16* attended = layer.attended + rows.first * hidden;
    multiply_weight(p.s, of_rows, layer.context + rows.first * hidden, hidden, count, weights.out, hidden, hidden,
                    added(parameters[O_B], p.of_place(l, OF_ATTENDED), layer.read + rows.first * hidden));
    for (long row = 0; row < count; row++)
        layer.deviation1[rows.first + row] =
            normalise(of_rows.sums + row * hidden, hidden, p.norm(parameters[N1_W], parameters[N1_B]),
                      row_of(layer.normal1, rows.first + row, hidden),
                      [&](long h, __m512 y) { store(attended + row * hidden + h, y); });
    bf16* inner_rows = row_of(layer.inner, rows.first, stride);
    bf16* active = layer.active ? layer.active + rows.first * stride : of_rows.active;
    multiply_weight(p.s, of_rows, attended, hidden, count, weights.up, hidden, inner,
                    [=, bias = parameters[UP_B]](long row, long column, __m512 x) {
                        x += load(bias + column);
                        if (inner_rows) store(inner_rows + row * stride + column, x);
                        store(active + row * stride + column, gelu(x).value);
                    });
    multiply_weight(p.s, of_rows, active, stride, count, weights.down, inner, hidden,
                    added(parameters[DOWN_B], p.of_place(l, OF_CHANGED), attended));
    for (long row = rows.first; row < rows.last; row++) {
        auto give = [&](auto store_row) {
            layer.deviation2[row] =
                normalise(of_rows.sums + (row - rows.first) * hidden, hidden,
                          p.norm(parameters[N2_W], parameters[N2_B]), row_of(layer.normal2, row, hidden), store_row);
        };
        if (!p.is_last(l)) {
            bf16* next = p.activations.layers[l + 1].x + row * hidden;
            give([&](long h, __m512 y) { store(next + h, y); });
        } else if (!p.s.labels) {
            float* to = output + p.plan.place_of_word[row] * hidden;
            give([&](long h, __m512 y) { store(to + h, y); });
        } else {
            float* word = p.activations.of_words + row * hidden;
            const Dropout dropout = p.of_labels();
            give([&](long h, __m512 y) { store(word + h, dropout(y, row * hidden + h)); });
            score_labels(p, word, output + p.plan.place_of_word[row] * p.s.labels);
        }
    }
}

void compute_layer(const Pass& p, long l, long thread, const Weights& weights, const Head& of_head,
                   const Rowwise& of_rows, float* output) {
    const Layer& layer = p.activations.layers[l];
    const float* const* parameters = p.of_layer(l);
    const long hidden = p.s.hidden;
    const Range pieces = p.pieces(thread), queries = p.queries(l, thread), heads = p.heads(thread);
    if (p.is_last(l)) {
#pragma omp barrier
        for (long row = queries.first; row < queries.last; row++)
            std::memcpy(layer.read + row * hidden, layer.x + p.plan.piece_of_word[row] * hidden, hidden * sizeof(bf16));
    }
    in_parts(queries, [&](Range rows) {
        bf16* query = layer.query + rows.first * hidden;
        multiply_weight(p.s, of_rows, layer.read + rows.first * hidden, hidden, rows.count(), weights.query, hidden,
                        hidden, [=, bias = parameters[Q_B]](long row, long column, __m512 x) {
                            store(query + row * hidden + column, x + load(bias + column));
                        });
    });
    in_parts(pieces, [&](Range rows) {
        bf16* key_value = layer.key_value + rows.first * 2 * hidden;
        multiply_weight(p.s, of_rows, layer.x + rows.first * hidden, hidden, rows.count(), weights.key_value, hidden,
                        2 * hidden,
                        [=, of_key = parameters[K_B], of_value = parameters[V_B]](long row, long column, __m512 x) {
                            const float* bias = column < hidden ? of_key + column : of_value + column - hidden;
                            store(key_value + row * 2 * hidden + column, x + load(bias));
                        });
    });
#pragma omp barrier
    for (long head = heads.first; head < heads.last; head++) attend(p, l, HeadOfTweet(p, l, head), of_head);
#pragma omp barrier
    in_parts(queries, [&](Range rows) { compute_rows(p, l, rows, weights, of_rows, output); });
}

// --- The backward pass ---

// From the gradient of the output to that of the words' rows; and the gradients of the labels' weights.
void output_backward(const Pass& p, long thread, const Gradients& g, const float* of_output, float* const* gradients) {
    const long hidden = p.s.hidden, labels = p.s.labels;
    const Range words = p.queries(p.s.layers - 1, thread);
    const std::vector<long>& place_of_word = p.plan.place_of_word;
    const Dropout dropout = p.of_labels();
    for (long word = words.first; word < words.last; word++) {
        float* of_word = g.of_words + word * hidden;
        if (!labels) std::memcpy(of_word, of_output + place_of_word[word] * hidden, hidden * sizeof(float));
        for (long h = 0; labels && h < hidden; h += LANES) {
            __m512 sum = _mm512_setzero_ps();
            for (long label = 0; label < labels; label++) {
                const __m512 of_score = all(of_output[place_of_word[word] * labels + label]);
                sum = _mm512_fmadd_ps(of_score, load(p.of_label(LABEL_W) + label * hidden + h), sum);
            }
            store(of_word + h, dropout(sum, word * hidden + h));
        }
    }
    float* const* of_labels = gradients + OF_EMBEDDINGS + p.s.layers * OF_A_LAYER;
    const Range columns = share_of(hidden, LANES, thread, p.s.threads);
    for (long label = 0; label < labels; label++) {
        for (long h = columns.first; h < columns.last; h += LANES) {
            __m512 sum = _mm512_setzero_ps();
            for (size_t word = 0; word < place_of_word.size(); word++) {
                const __m512 of_score = all(of_output[place_of_word[word] * labels + label]);
                sum = _mm512_fmadd_ps(of_score, load(p.activations.of_words + word * hidden + h), sum);
            }
            store(of_labels[LABEL_W] + label * hidden + h, sum);
        }
        if (thread == 0) {
            float sum = 0;
            for (const long place : place_of_word) sum += of_output[place * labels + label];
            of_labels[LABEL_B][label] = sum;
        }
    }
}

void attend_backward(const Pass& p, long l, const HeadOfTweet& head, const Head& of_head, const Gradients& g) {
    const Layer& layer = p.activations.layers[l];
    const long hidden = p.s.hidden, first_query = head.query * hidden + head.column;
    const long first_key = head.piece * 2 * hidden + head.column, first_value = first_key + hidden;
    const float* shares = layer.shares + head.element;
    const Dropout dropout = p.of_place(l, OF_SHARES);
    const Range queries{0, head.queries};
    pack_columns(layer.key_value + first_value, 2 * hidden, head.pieces, head.size, of_head.values);
    multiply(Rows::of(g.of_context + first_query, hidden), queries, of_head.values, head.size / 2, head.width,
             [&](long row, long t, __m512 x) { store(of_head.scores + row * head.width + t, x); });
    for (long query = 0; query < head.queries; query++) {
        const long first = query * head.width;
        __m512 product = _mm512_setzero_ps();
        for (long place = first; place < first + head.width; place += LANES) {
            const __m512 share = load(shares + place),
                         of_share = dropout(load(of_head.scores + place), head.element + place);
            product = _mm512_fmadd_ps(share, of_share, product);
            store(of_head.scores + place, of_share);
            store(of_head.of_shares + place, dropout(share, head.element + place));
        }
        const __m512 along = all(_mm512_reduce_add_ps(product)), scale = all(head.scale);
        for (long place = first; place < first + head.width; place += LANES)
            store(of_head.of_scores + place, load(shares + place) * (load(of_head.scores + place) - along) * scale);
    }
    pack_rows(layer.key_value + first_key, 2 * hidden, head.pieces, head.size, of_head.keys, head.pairs);
    multiply(Rows::of(of_head.of_scores, head.width), queries, of_head.keys, head.pairs, head.size,
             [&](long row, long column, __m512 x) { store(g.of_query + first_query + row * hidden + column, x); });
    // The product of `square` [queries, T], transposed, and of rows of queries.
    auto of_pieces = [&](const bf16* square, const bf16* rows, pair* panels, bf16* gradient) {
        const long stride = 2 * head.query_pairs;
        for (long t = 0; t < head.pieces; t++) {
            for (long query = 0; query < head.queries; query++)
                of_head.transposed[t * stride + query] = square[query * head.width + t];
            if (head.queries % 2) of_head.transposed[t * stride + head.queries] = 0;
        }
        pack_rows(rows, hidden, head.queries, head.size, panels, head.query_pairs);
        multiply(Rows::of(of_head.transposed, stride), {0, head.pieces}, panels, head.query_pairs, head.size,
                 [&](long t, long column, __m512 x) { store(gradient + t * 2 * hidden + column, x); });
    };
    of_pieces(of_head.of_scores, layer.query + first_query, of_head.queries, g.of_key_value + first_key);
    of_pieces(of_head.of_shares, g.of_context + first_query, of_head.gradients, g.of_key_value + first_value);
}

// From the gradient of what the layer gave to that of what it read.
void compute_layer_backward(const Pass& p, long l, long thread, const Weights& weights, const Head& of_head,
                            const Gradients& g) {
    const Layer& layer = p.activations.layers[l];
    const float* const* parameters = p.of_layer(l);
    const long hidden = p.s.hidden, inner = p.s.inner, stride = inner_stride(p.s);
    const Range pieces = p.pieces(thread), queries = p.queries(l, thread), heads = p.heads(thread);
    float* gradient = p.is_last(l) ? g.of_words : g.of_pieces;
    // From the gradient of a normalised sum to those of what was added: of the residual in its place; of what dropout
    // was on.
    auto through_norm = [&](const float* weight, const bf16* normal, const float* deviation, Dropout dropout,
                            bf16* of_norm, bf16* of_dropped) {
        for (long row = queries.first; row < queries.last; row++) {
            const long first = row * hidden;
            for (long h = first; h < first + hidden; h += LANES) store(of_norm + h, load(gradient + h));
            normalise_backward(gradient + first, normal + first, deviation[row], weight, hidden);
            for (long h = first; h < first + hidden; h += LANES) store(of_dropped + h, dropout(load(gradient + h), h));
        }
    };
    auto add_to = [=](float* to) {
        return [=](long row, long column, __m512 x) {
            float* place = to + row * hidden + column;
            store(place, load(place) + x);
        };
    };
    through_norm(parameters[N2_W], layer.normal2, layer.deviation2, p.of_place(l, OF_CHANGED), g.of_norm2,
                 g.of_changed);
    multiply(Rows::of(g.of_changed, hidden), queries, weights.down.panels, hidden / 2, inner,
             [&](long row, long column, __m512 x) {
                 const long place = row * stride + column;
                 store(g.of_inner + place, x * gelu(load(layer.inner + place)).slope);
             });
    multiply(Rows::of(g.of_inner, stride), queries, weights.up.panels, inner / 2, hidden, add_to(gradient));
    through_norm(parameters[N1_W], layer.normal1, layer.deviation1, p.of_place(l, OF_ATTENDED), g.of_norm1,
                 g.of_attended);
    multiply(Rows::of(g.of_attended, hidden), queries, weights.out.panels, hidden / 2, hidden,
             [&](long row, long column, __m512 x) { store(g.of_context + row * hidden + column, x); });
#pragma omp barrier
    for (long head = heads.first; head < heads.last; head++) attend_backward(p, l, HeadOfTweet(p, l, head), of_head, g);
#pragma omp barrier
    multiply(Rows::of(g.of_query, hidden), queries, weights.query.panels, hidden / 2, hidden, add_to(gradient));
    if (p.is_last(l)) {
#pragma omp barrier
        std::memset(g.of_pieces + pieces.first * hidden, 0, pieces.count() * hidden * sizeof(float));
        for (size_t word = 0; word < p.plan.piece_of_word.size(); word++) {
            const long piece = p.plan.piece_of_word[word];
            if (pieces.first <= piece && piece < pieces.last)
                for (long h = 0; h < hidden; h += LANES)
                    add_to(g.of_pieces)(piece, h, load(g.of_words + word * hidden + h));
        }
    }
    multiply(Rows::of(g.of_key_value, 2 * hidden), pieces, weights.key_value.panels, hidden, hidden,
             add_to(g.of_pieces));
}

// The gradients of the layer's weights and biases.
void of_weights(const Pass& p, long l, const Gradients& g, float* const* gradients, long thread) {
    const Layer& layer = p.activations.layers[l];
    float* const* of_layer = gradients + OF_EMBEDDINGS + l * OF_A_LAYER;
    const long hidden = p.s.hidden, inner = p.s.inner, stride = inner_stride(p.s), threads = p.s.threads;
    const long pieces = p.plan.piece_start.back(), queries = p.query_start(l).back();
    const bool past_the_cache = p.s.layers * (4 * hidden + 2 * inner) * hidden * sizeof(float) > LARGE;
    struct Matrix {
        const bf16* start;
        long columns, stride;
    };
    // Of a weight [outputs, inputs], from what the linear layer read [rows, inputs] and the gradient of what it gave.
    auto linear = [&](Parameter weight, Matrix gradient, Matrix input, long rows) {
        const long pairs = (rows + 1) / 2, inputs = input.columns;
        const Range of_inputs = share_of(inputs, PANEL, thread, threads);
        const Range of_outputs = share_of(gradient.columns, BLOCK_ROWS, thread, threads);
        float *of_weight = of_layer[weight], *of_bias = of_layer[weight + 1];
        const bool streams = past_the_cache && (uintptr_t)of_weight % 64 == 0;
#pragma omp barrier
        pack_rows(input.start + of_inputs.first, input.stride, rows, of_inputs.count(),
                  g.panels + of_inputs.first * pairs, pairs);
        pack_transposed(gradient.start, gradient.stride, rows, of_outputs, g.blocks + of_outputs.first * pairs,
                        of_bias);
#pragma omp barrier
        multiply(Rows::of_packed(g.blocks, pairs), of_outputs, g.panels, pairs, inputs,
                 [=](long row, long column, __m512 x) { put(of_weight + row * inputs + column, x, streams); });
    };
    const Matrix x{layer.x, hidden, hidden};
    linear(DOWN_W, {g.of_changed, hidden, hidden}, {layer.active, inner, stride}, queries);
    linear(UP_W, {g.of_inner, inner, stride}, {layer.attended, hidden, hidden}, queries);
    linear(O_W, {g.of_attended, hidden, hidden}, {layer.context, hidden, hidden}, queries);
    linear(Q_W, {g.of_query, hidden, hidden}, {layer.read, hidden, hidden}, queries);
    linear(K_W, {g.of_key_value, hidden, 2 * hidden}, x, pieces);
    linear(V_W, {g.of_key_value + hidden, hidden, 2 * hidden}, x, pieces);
    const Range columns = share_of(hidden, LANES, thread, threads);
    of_norm(g.of_norm1, layer.normal1, queries, hidden, columns, of_layer[N1_W], of_layer[N1_B]);
    of_norm(g.of_norm2, layer.normal2, queries, hidden, columns, of_layer[N2_W], of_layer[N2_B]);
#pragma omp barrier
}

void embed_backward(const Pass& p, long thread, const Gradients& g, float* of_embedded_BTH, float* const* gradients) {
    const long hidden = p.s.hidden;
    const Dropout dropout = p.of_embeddings();
    const Range rows = p.pieces(thread), columns = share_of(hidden, LANES, thread, p.s.threads);
    for (long row = rows.first; row < rows.last; row++) {
        float* gradient = of_embedded_BTH + p.plan.place_of_piece[row] * hidden;
        for (long h = 0; h < hidden; h += LANES) {
            const __m512 x = dropout(load(g.of_pieces + row * hidden + h), row * hidden + h);
            store(gradient + h, x);
            store(g.of_norm1 + row * hidden + h, x);
        }
        normalise_backward(gradient, p.activations.normal + row * hidden, p.activations.deviation[row],
                           p.parameters[N_W], hidden);
    }
#pragma omp barrier
    of_norm(g.of_norm1, p.activations.normal, p.plan.piece_start.back(), hidden, columns, gradients[N_W],
            gradients[N_B]);
    for (const long place : p.plan.place_of_piece)
        for (long h = columns.first; h < columns.last; h += LANES) {
            const __m512 x = load(of_embedded_BTH + place * hidden + h);
            float* of_place = gradients[PLACES] + place % p.s.pieces * hidden + h;
            float* of_type = gradients[TYPES] + p.in.token_type_ids_BT[place] * hidden + h;
            store(of_place, load(of_place) + x);
            store(of_type, load(of_type) + x);
        }
}

// --- The weights ---

// The weights of all layers in panels, as the forward pass reads them and, if asked for, as the backward pass does.
void pack_weights(const Sizes& s, const float* const* parameters, const std::vector<Weights>& forward,
                  const std::vector<Weights>& backward, bool past_the_cache, long thread) {
    std::vector<bf16> rows(PANEL * std::max(s.hidden, s.inner));
    for (long l = 0; l < s.layers; l++) {
        const float* const* of_layer = parameters + OF_EMBEDDINGS + l * OF_A_LAYER;
        // The weight's outputs begin at `first` of the `all_outputs` in the panels.
        auto pack = [&](Parameter weight, long outputs, long inputs, Weight Weights::* place, long all_outputs,
                        long first) {
            const Weight& to = forward[l].*place;
            const Range share = share_of(outputs, PANEL, thread, s.threads);
            for (long row = share.first; row < share.last; row += PANEL) {
                const float* from = of_layer[weight] + row * inputs;
                if (s.eight_bits) {
                    int8_t* bytes = (int8_t*)rows.data();
                    for (long output = 0; output < PANEL; output++) {
                        const SignedScale scale =
                            to_signed_bytes(from + output * inputs, inputs, bytes + output * inputs);
                        to.step[first + row + output] = scale.step;
                        to.of_ones[first + row + output] = scale.step * scale.sum;
                    }
                    // Two bytes pass for one bf16.
                    pack_columns(rows.data(), inputs / 2, PANEL, inputs / 2, to.panels + (first + row) * inputs / 4,
                                 past_the_cache);
                    continue;
                }
                for (long place = 0; place < PANEL * inputs; place += LANES) store(&rows[place], load(from + place));
                pack_columns(rows.data(), inputs, PANEL, inputs, to.panels + (first + row) * inputs / 2,
                             past_the_cache);
                if (!backward.empty())
                    pack_rows(rows.data(), inputs, PANEL, inputs, (backward[l].*place).panels, all_outputs / 2,
                              (first + row) / 2, past_the_cache);
            }
        };
        pack(Q_W, s.hidden, s.hidden, &Weights::query, s.hidden, 0);
        pack(K_W, s.hidden, s.hidden, &Weights::key_value, 2 * s.hidden, 0);
        pack(V_W, s.hidden, s.hidden, &Weights::key_value, 2 * s.hidden, s.hidden);
        pack(O_W, s.hidden, s.hidden, &Weights::out, s.hidden, 0);
        pack(UP_W, s.inner, s.hidden, &Weights::up, s.inner, 0);
        pack(DOWN_W, s.hidden, s.inner, &Weights::down, s.hidden, 0);
    }
    _mm_sfence();  // what went past the cache is there for the other threads
}

// In a parallel region: there may be fewer threads than were asked for, as within another region.
void count_threads(Sizes& s) {
#pragma omp single
    s.threads = omp_get_num_threads();
}

}  // namespace

// --- What Python calls ---

extern "C" {

// Bytes of the packed weights for one direction, of what the forward pass writes, and of what the backward pass writes
// beside.
void fused_bert_bytes(const Sizes* s, long* weights, long* forward, long* backward) {
    Memory of_weights{nullptr}, of_forward{nullptr}, of_backward{nullptr};
    weights_of_layers(*s, of_weights);
    Activations(*s, of_forward);
    of_threads<Head>(*s, of_forward);
    of_threads<Rowwise>(*s, of_forward);
    Gradients(*s, of_backward);
    of_threads<Head>(*s, of_backward);
    *weights = of_weights.used;
    *forward = of_forward.used;
    *backward = of_backward.used;
}

// `backward` may be null; in eight bits it is.
void fused_bert_pack(const Sizes* asked, const float* const* parameters, char* forward_start, char* backward_start) {
    Sizes s = *asked;
    Memory of_forward{forward_start}, of_backward{backward_start};
    const std::vector<Weights> forward = weights_of_layers(s, of_forward);
    std::vector<Weights> backward;
    if (backward_start) backward = weights_of_layers(s, of_backward);
#pragma omp parallel num_threads(s.threads)
    {
        count_threads(s);
        pack_weights(s, parameters, forward, backward, of_forward.used > LARGE, omp_get_thread_num());
    }
}

// Returns 0, or 1 where the inputs cannot be: see Plan::make.
int fused_bert_forward(const Sizes* asked, const Inputs* in, const float* const* parameters, char* weights_start,
                       char* memory_start, float* output) {
    Sizes s = *asked;
    Plan plan;
    if (!plan.make(s, *in)) return 1;
    Memory packed{weights_start}, memory{memory_start};
    const std::vector<Weights> weights = weights_of_layers(s, packed);
    const Activations activations(s, memory);
    const std::vector<Head> of_heads = of_threads<Head>(s, memory);
    const std::vector<Rowwise> of_rows = of_threads<Rowwise>(s, memory);
    const Pass pass{s, plan, *in, parameters, activations};
    std::memset(output, 0, s.tweets * s.words * (s.labels ? s.labels : s.hidden) * sizeof(float));
#pragma omp parallel num_threads(s.threads)
    {
        count_threads(s);
        const long thread = omp_get_thread_num();
        embed(pass, thread, of_rows[thread].sums);
        for (long l = 0; l < s.layers; l++)
            compute_layer(pass, l, thread, weights[l], of_heads[thread], of_rows[thread], output);
    }
    return 0;
}

// After the forward pass with the same sizes, inputs and memory. `gradients` are in the order of the parameters; those
// of places and types are added to.
void fused_bert_backward(const Sizes* asked, const Inputs* in, const float* const* parameters, char* weights_start,
                         char* memory_start, char* scratch, const float* of_output, float* of_embedded_BTH,
                         float* const* gradients) {
    Sizes s = *asked;
    Plan plan;
    plan.make(s, *in);
    Memory packed{weights_start}, memory{memory_start}, beside{scratch};
    const std::vector<Weights> weights = weights_of_layers(s, packed);
    const Activations activations(s, memory);
    const Gradients g(s, beside);
    const std::vector<Head> of_heads = of_threads<Head>(s, beside);
    const Pass pass{s, plan, *in, parameters, activations};
    std::memset(of_embedded_BTH, 0, s.tweets * s.pieces * s.hidden * sizeof(float));
#pragma omp parallel num_threads(s.threads)
    {
        count_threads(s);
        const long thread = omp_get_thread_num();
        output_backward(pass, thread, g, of_output, gradients);
        for (long l = s.layers - 1; l >= 0; l--) {
            compute_layer_backward(pass, l, thread, weights[l], of_heads[thread], g);
            of_weights(pass, l, g, gradients, thread);
        }
        embed_backward(pass, thread, g, of_embedded_BTH, gradients);
        _mm_sfence();  // what went past the cache is there for all
    }
}

// gelu of x, `count` numbers, a multiple of 16, in its place, and its slope there; for tests.
void fused_bert_gelu(long count, float* x, float* slope) {
    for (long element = 0; element < count; element += LANES) {
        const Gelu y = gelu(load(x + element));
        store(x + element, y.value);
        store(slope + element, y.slope);
    }
}

// What dropout at a place leaves of x, `count` numbers, a multiple of 16; for tests.
void fused_bert_dropout(uint64_t seed, long place, float rate, long count, float* x) {
    const Dropout dropout(seed, place, rate);
    for (long element = 0; element < count; element += LANES) store(x + element, dropout(load(x + element), element));
}

}  // extern "C"
