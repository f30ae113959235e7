// Clipping of the gradient's norm and AdamW in one pass, for launch/clipped_adamw.py: each number is read once for the
// norm and once for the step. What is computed does not depend on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

extern "C" struct Parameter {  // as in clipped_adamw.py
    float *weight, *average, *square_average;
    const float* gradient;
    float* steps;
    long count;
    double learning_rate, weight_decay;
};

extern "C" struct Settings {  // as in clipped_adamw.py
    double beta1, beta2, epsilon, maximum_norm;
};

namespace {

constexpr long CHUNK = 16384, LANES = 32;

struct Chunk {
    const Parameter* parameter;
    long first, last;
};

float square_sum(const Chunk& chunk) {
    float sums[LANES] = {};
    const float* x = chunk.parameter->gradient;
    long i = chunk.first;
    for (; i + LANES <= chunk.last; i += LANES)
        for (long lane = 0; lane < LANES; lane++) sums[lane] += x[i + lane] * x[i + lane];
    float sum = 0;
    for (; i < chunk.last; i++) sum += x[i] * x[i];
    for (float of_lane : sums) sum += of_lane;
    return sum;
}

// Loshchilov and Hutter, 2019, algorithm 2, as torch.optim.AdamW computes it.
void step(const Chunk& chunk, const Settings& s, float clip) {
    const Parameter& p = *chunk.parameter;
    const double corrected1 = 1 - std::pow(s.beta1, (double)*p.steps),
                 corrected2 = 1 - std::pow(s.beta2, (double)*p.steps);
    const float size = p.learning_rate / corrected1, over_root = 1 / std::sqrt(corrected2), epsilon = s.epsilon;
    const float keep = 1 - p.learning_rate * p.weight_decay, of_gradient = 1 - s.beta1;
    const float beta2 = s.beta2, of_square = 1 - s.beta2;
    float* __restrict weight = p.weight, * __restrict average = p.average, * __restrict square_average = p.square_average;
    const float* __restrict gradient = p.gradient;
    for (long i = chunk.first; i < chunk.last; i++) {
        const float g = gradient[i] * clip;
        average[i] += of_gradient * (g - average[i]);
        square_average[i] = beta2 * square_average[i] + of_square * g * g;
        weight[i] = keep * weight[i] - size * average[i] / (std::sqrt(square_average[i]) * over_root + epsilon);
    }
}

}  // namespace

// One step. Returns the norm of all gradients together; they are clipped to the maximum, if that is above 0.
extern "C" double clipped_adamw(const Parameter* parameters, long count, const Settings* settings, long threads) {
    std::vector<Chunk> chunks;
    for (const Parameter* p = parameters; p < parameters + count; p++) {
        *p->steps += 1;
        for (long first = 0; first < p->count; first += CHUNK)
            chunks.push_back({p, first, std::min(p->count, first + CHUNK)});
    }
    std::vector<float> sums(chunks.size());
    double norm = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (size_t i = 0; i < chunks.size(); i++) sums[i] = square_sum(chunks[i]);
#pragma omp single
        {
            for (const float sum : sums) norm += sum;
            norm = std::sqrt(norm);
        }
        // As torch.nn.utils.clip_grad_norm_; not a number stays one.
        const bool clips = settings->maximum_norm > 0 && !(settings->maximum_norm / (norm + 1e-6) >= 1);
        const float clip = clips ? settings->maximum_norm / (norm + 1e-6) : 1;
#pragma omp for schedule(static)
        for (size_t i = 0; i < chunks.size(); i++) step(chunks[i], *settings, clip);
    }
    return norm;
}
