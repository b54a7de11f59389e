// Instance norm: each plane (image, channel) is brought to mean 0 and deviation 1; then scale, shift, residual, ReLU.
//
//   out = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)     variance = M2 / n, of the plane itself
//
// Contents (T is float32, float16 or bfloat16; every statistic is float32)
//   Ending                      what is done with a number once its plane's mean and deviation are known
//   instance_norm_T             NCHW: a block keeps a piece of a plane in its registers, and blocks of a plane exchange
//                               their moments (common/exchange.cuh): x is read once
//   instance_norm_statistics_T  NCHW, planes too large to be kept: the moments (n, mean, M2) of each piece
//   instance_norm_apply_T       ... then blocks over the same pieces: each merges its plane's moments, and writes
//   instance_norm_nhwc_statistics_T, instance_norm_nhwc_apply_T      the same two steps for NHWC (channels_last)
//
// x, out     planes x size numbers, flat: NCHW with planes = images * channels and size = height * width, or NHWC.
// residual   like x, or null.         weight, bias    `channels` numbers, each may be null.     relu    0 or 1.
// saved      NCHW: 3 floats a plane for the backward pass (mean, what its rounding lost, 1 / deviation), or null.
// slots      3 * planes * pieces words for the exchange, of this launch's number and patience; null for one piece.
// partial    room for the moments: 4 * planes * pieces floats. Written by the first kernel, read by the second.
// alignment  NCHW: any. A plane is moved in vectors of 16 bytes between single elements at its ends, where the arrays
//            stand alike to a multiple of 16 bytes; else singly. NHWC: the launcher says how many numbers are moved at
//            once: LANES<T> (channels a multiple of it, arrays at multiples of 16 bytes), or 1.
// sizes      offsets have 64 bits. A plane of one element gives relu(bias + residual).
// launch     styleforge_lib/ops/instance_norm.py holds the rule. One-dimensional grids and blocks of whole warps, one
//            for each piece: of at most THREADS for instance_norm_T (pieces of at most 16 bytes * HELD a thread), of at
//            most 1024 for the two kernels; NHWC: of THREADS.
// moves      with s = planes * size * sizeof(T), and s more with a residual: instance_norm_T 2s, the least there is;
//            the pairs of kernels 3s, of which the second reading finds in the L2 cache what was read last, for it runs
//            backwards. Moments: 16 or 24 bytes a piece, below 1 %.
// computes   about 12 operations an element; at 4 TB/s an H200 could do 27 (float32) or 13 (float16) in the time of one
//            pass. Bytes and operations are predictions: nothing here has been measured yet.
// numbers    moments of distances (common/moments.cuh, Held): no cancellation at mean 4000, constant planes give bias
//            exactly. Fused steps are rounded once, at the end. NaN or infinity makes its plane NaN, and no other.
//            Where distances beyond 1e19 overflow the variance, the plane is NaN. No atomics: same launch, same bits.
#include "common/exchange.cuh"
#include "common/moments.cuh"
#include "common/vectors.cuh"

constexpr int THREADS = 256;  // of a block: NHWC, 8 lanes a thread * 16 bytes of moments are 32 of 48 KB
constexpr int HELD = 16;      // vectors that a thread keeps: 64 of its 128 registers; 64 KB a block, two blocks at once
constexpr int FLIGHT = 4;     // vectors under way where none is kept: 64 bytes, so that 1024 threads cover the latency
constexpr int GROUP = 8;      // numbers that are taken into the moments at once: one division for 8

// 1 / sqrt(v) to the nearest, or nearly always: the quotient alone is off by up to 1.5 units in the last place, and a
// step of Newton's method, its residual 1 - v * s * s taken by fused multiply-adds, repairs it.
__device__ inline float inverse_root(float v) {
    const float s = 1.0f / sqrtf(v), product = v * s, lost = fmaf(v, s, -product);
    return fmaf(0.5f * s, fmaf(-product, s, 1.0f) - lost * s, s);
}

template <typename T>
struct Ending {
    const T *weight, *bias;
    float eps;
    int relu;

    // For a channel with these moments: out = (x - mean) * scale + shift. What the mean's rounding lost is in shift.
    __device__ void prepare(Moments m, long long channel, float& mean, float& scale, float& shift) const {
        mean = m.mean.value;
        scale = inverse_root(m.m2 / m.n + eps);
        if (weight) scale *= to_float(weight[channel]);
        shift = (bias ? to_float(bias[channel]) : 0.0f) - m.mean.lost * scale;
    }

    __device__ float operator()(float x, float mean, float scale, float shift, float residual) const {
        const float y = (x - mean) * scale + shift + residual;
        return relu && y < 0.0f ? 0.0f : y;  // NaN < 0 is false: NaN is returned
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// NCHW

// The moments of what this thread takes of `count` numbers that lie together.
template <typename T>
__device__ Moments gather(const T* x, long long count) {
    constexpr int TOGETHER = GROUP / LANES<T>;  // vectors in a group: 2 of float, 1 of the others
    const Span span(count, x);
    Moments m = {};
    float one[1], some[LANES<T>];
    const auto single = [&](long long begin, long long end) {
        for (long long i = begin + threadIdx.x; i < end; i += blockDim.x) {
            load(x + i, one);
            add(m.n, m.mean, m.m2, one);
        }
    };
    single(0, span.head);
    const T* vectors = x + span.head;
    long long i = threadIdx.x;
    for (; i + (FLIGHT - 1) * blockDim.x < span.vectors; i += FLIGHT * blockDim.x) {
        float all[FLIGHT / TOGETHER][GROUP];
        for (int v = 0; v < FLIGHT; v++) {
            load(vectors + (i + v * blockDim.x) * LANES<T>, some);
            for (int k = 0; k < LANES<T>; k++) all[v / TOGETHER][v % TOGETHER * LANES<T> + k] = some[k];
        }
        for (int g = 0; g < FLIGHT / TOGETHER; g++) add(m.n, m.mean, m.m2, all[g]);
    }
    for (; i < span.vectors; i += blockDim.x) {
        load(vectors + i * LANES<T>, some);
        add(m.n, m.mean, m.m2, some);
    }
    single(span.tail, count);
    return m;
}

// (A generic lambda would do, but NVRTC 13.0 takes it for a function of the host.)
template <int COUNT, typename T>
__device__ void write_some(const T* x, const T* residual, T* out, const Ending<T>& ending, float mean, float scale,
                           float shift) {
    float value[COUNT], added[COUNT];
    load(x, value);
    if (residual) load(residual, added);
    for (int k = 0; k < COUNT; k++) value[k] = ending(value[k], mean, scale, shift, residual ? added[k] : 0.0f);
    store(out, value);
}

// Write `count` numbers that lie together, all of one plane: from the last to the first, because the L2 cache holds
// what was read last.
template <typename T>
__device__ void write(const T* x, const T* residual, T* out, long long count, const Ending<T>& ending, Moments m,
                      long long channel) {
    float mean, scale, shift;
    ending.prepare(m, channel, mean, scale, shift);
    const Span span = residual ? Span(count, x, out, residual) : Span(count, x, out);
    const auto single = [&](long long begin, long long end) {
        for (long long i = begin + threadIdx.x; i < end; i += blockDim.x)
            write_some<1>(x + i, residual ? residual + i : residual, out + i, ending, mean, scale, shift);
    };
    single(0, span.head);
#pragma unroll 4
    for (long long v = span.vectors - 1 - threadIdx.x; v >= 0; v -= blockDim.x) {
        const long long i = span.head + v * LANES<T>;
        write_some<LANES<T>>(x + i, residual ? residual + i : residual, out + i, ending, mean, scale, shift);
    }
    single(span.tail, count);
}

// Block b works on piece b % pieces of plane b / pieces: numbers [piece * length, (piece + 1) * length).
struct Piece {
    long long plane, start, count;

    __device__ Piece(long long size, long long length, int pieces, int block = blockIdx.x) {
        plane = block / pieces;
        const long long begin = block % pieces * length;
        start = plane * size + begin;
        count = begin + length < size ? length : size - begin;
    }
};

// A piece in the registers of a block, as it lies in memory: up to HELD vectors a thread. The numbers before and behind
// the vectors, fewer than 16, have a thread each, which reads them anew each time.
template <typename T>
struct Held {
    uint4 vector[HELD];  // vectors first, first + 32, ... before last: a warp's lie together
    int count, head, tail, first, last;

    __device__ void fetch(const T* x, int numbers) {
        const Span span(numbers, x);
        count = numbers;
        head = span.head;
        tail = span.tail;
        const int vectors = span.vectors, share = (vectors + blockDim.x - 1) / blockDim.x * 32;
        first = threadIdx.x / 32 * share + threadIdx.x % 32;
        last = min(vectors, threadIdx.x / 32 * share + share);
        const uint4* source = reinterpret_cast<const uint4*>(x + head) + first;
#pragma unroll
        for (int v = 0; v < HELD; v++)
            if (first + 32 * v < last) vector[v] = source[32 * v];
    }

    __device__ int single() const { return threadIdx.x < head ? threadIdx.x : tail + threadIdx.x - head; }

    template <typename Function>
    __device__ void each(const T* x, Function f) const {  // f(number) for every number that is this thread's
        float value[LANES<T>];
#pragma unroll
        for (int v = 0; v < HELD; v++)
            if (first + 32 * v < last) {
                unpack<T>(vector[v], value);
                for (int k = 0; k < LANES<T>; k++) f(value[k]);
            }
        if (single() < count) f(to_float(x[single()]));
    }

    // The moments of the piece. Two passes that never leave the registers: the mean, then the distances from it; their
    // sum, 0 without rounding, repairs both (Chan, Golub, LeVeque 1983: the corrected two-pass algorithm).
    __device__ Moments measure(const T* x, float* shared) const {
        const float pivot = to_float(*x), n = count;  // distances from it, so that equal numbers have no rounding
        float sum[1] = {}, sums[2] = {};
        each(x, [&](float value) { sum[0] += value - pivot; });
        sum_block(sum, shared);
        const float center = pivot + sum[0] / n;
        each(x, [&](float value) {
            const float distance = value - center;
            sums[0] += distance;
            sums[1] += distance * distance;
        });
        sum_block(sums, shared);
        Moments m = {n, {center, 0.0f}, sums[1] - sums[0] * (sums[0] / n)};
        m.mean.move(sums[0] / n);
        return m;
    }
};

// What the blocks of a plane found, put together. A block that waits in vain measures the whole plane itself and tells
// it in the others' place: the same order, so the same bits.
template <typename T>
__device__ Moments agree(Held<T>& held, Moments m, const T* x, long long* slots, long long size, long long length,
                         int pieces, int launch, int patience, float* sums, Moments* shared) {
    const int first = blockIdx.x / pieces * pieces;
    const auto tell_of = [&](int block) {
        const float told[3] = {m.mean.value, m.mean.lost, m.m2};
        if (threadIdx.x == 0) tell(slots + block * 3LL, launch, told);
    };
    const auto fetch = [&](int block) {
        const Piece piece(size, length, pieces, block);
        held.fetch(x + piece.start, piece.count);
        return x + piece.start;
    };
    tell_of(blockIdx.x);
    while (true) {
        float told[3];
        bool heard = true;
        m = {};
        for (int i = threadIdx.x; heard && i < pieces; i += blockDim.x) {
            heard = hear(slots + (first + i) * 3LL, launch, patience, told);
            m = merge(m, {(float)Piece(size, length, pieces, first + i).count, {told[0], told[1]}, told[2]});
        }
        if (__syncthreads_and(heard)) return merge_block(m, shared);
#pragma unroll 1
        for (int block = first; block < first + pieces; block++) {
            m = held.measure(fetch(block), sums);
            tell_of(block);
        }
        fetch(blockIdx.x);
    }
}

// What the backward pass needs of a plane: its mean, what its rounding lost, and 1 / deviation.
__device__ inline void save(float* saved, Moments m, float eps, long long plane) {
    saved[3 * plane] = m.mean.value;
    saved[3 * plane + 1] = m.mean.lost;
    saved[3 * plane + 2] = inverse_root(m.m2 / m.n + eps);
}

template <typename T>
__device__ void norm_planes(const T* x, const Ending<T>& ending, const T* residual, T* out, float* saved,
                            long long* slots, int channels, long long size, long long length, int pieces, int launch,
                            int patience) {
    __shared__ float sums[2 * 32];
    __shared__ Moments shared[32];
    const Piece piece(size, length, pieces);
    x += piece.start;
    Held<T> held;
    held.fetch(x, piece.count);
    Moments m = held.measure(x, sums);
    if (pieces > 1)
        m = agree(held, m, x - piece.start, slots, size, length, pieces, launch, patience, sums, shared);

    if (saved && threadIdx.x == 0 && blockIdx.x % pieces == 0) save(saved, m, ending.eps, piece.plane);
    out += piece.start;
    if (residual) residual += piece.start;
    const size_t phases = reinterpret_cast<size_t>(out) ^ reinterpret_cast<size_t>(x);
    const size_t phase = residual ? reinterpret_cast<size_t>(residual) ^ reinterpret_cast<size_t>(x) : 0;
    if ((phases | phase) % 16 != 0)  // no vectors that are whole in all arrays
        return write(x, residual, out, piece.count, ending, m, piece.plane % channels);
    float mean, scale, shift, value[LANES<T>], added[LANES<T>] = {};
    ending.prepare(m, piece.plane % channels, mean, scale, shift);
#pragma unroll
    for (int v = 0; v < HELD; v++) {
        const int i = held.first + 32 * v;
        if (i >= held.last) continue;
        unpack<T>(held.vector[v], value);
        if (residual) load(residual + held.head + i * LANES<T>, added);
        for (int k = 0; k < LANES<T>; k++) value[k] = ending(value[k], mean, scale, shift, added[k]);
        store(out + held.head + i * LANES<T>, value);
    }
    const int i = held.single();
    if (i < held.count)
        out[i] = to<T>(ending(to_float(x[i]), mean, scale, shift, residual ? to_float(residual[i]) : 0.0f));
}

template <typename T>
__device__ void plane_statistics(const T* x, Moments* partial, long long size, long long length, int pieces) {
    __shared__ Moments shared[32];
    const Piece piece(size, length, pieces);
    const Moments m = merge_block(gather(x + piece.start, piece.count), shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = m;
}

template <typename T>
__device__ void plane_apply(const T* x, const Moments* partial, const Ending<T>& ending, const T* residual, T* out,
                            float* saved, int channels, long long size, long long length, int pieces) {
    __shared__ Moments shared[32];
    const Piece piece(size, length, pieces);
    Moments m = {};
    for (int i = threadIdx.x; i < pieces; i += blockDim.x) m = merge(m, partial[piece.plane * pieces + i]);
    m = merge_block(m, shared);
    if (saved && threadIdx.x == 0 && blockIdx.x % pieces == 0) save(saved, m, ending.eps, piece.plane);
    write(x + piece.start, residual ? residual + piece.start : nullptr, out + piece.start, piece.count, ending, m,
          piece.plane % channels);
}

// ---------------------------------------------------------------------------------------------------------------------
// NHWC: a thread keeps to COUNT neighbouring channels, and the threads of a row stand side by side on one pixel

// Where a block and its threads work. A block has `tile` threads for channels and THREADS / tile rows for pixels.
template <int COUNT>
struct Place {
    long long image, first, last;  // pixels [first, last) of the image
    int channel, width;            // the tile's first channel, and how many it has
    int tile, rows, row, unit;     // this thread: `row` of rows, `unit` of tile; row == rows: without work

    __device__ Place(int channels, long long size, long long length, int pieces) {
        const int units = channels / COUNT, most = THREADS / COUNT, tiles = (units + most - 1) / most;
        tile = (units + tiles - 1) / tiles;
        const long long outer = blockIdx.x / pieces;
        image = outer / tiles;
        first = blockIdx.x % pieces * length;
        last = first + length < size ? first + length : size;
        const int begin = outer % tiles * tile;
        if (begin + tile > units) tile = units - begin;
        channel = begin * COUNT;
        width = tile * COUNT;
        rows = THREADS / tile;
        row = threadIdx.x < rows * tile ? threadIdx.x / tile : rows;
        unit = threadIdx.x % tile;
    }
};

// Take in MANY pixels. Every lane counts the same numbers, so n is kept once and each lane starts from it.
template <int COUNT, int MANY>
__device__ void add_pixels(float& n, Mean (&mean)[COUNT], float (&m2)[COUNT], const float (&pixels)[COUNT][MANY]) {
    float count;
    for (int k = 0; k < COUNT; k++) add(count = n, mean[k], m2[k], pixels[k]);
    n = count;
}

template <typename T, int COUNT>
__device__ void pixel_statistics(const T* x, Moments* partial, int channels, long long size, long long length,
                                 int pieces, Moments* shared) {
    const Place<COUNT> at(channels, size, length, pieces);
    if (at.row < at.rows) {
        Mean mean[COUNT] = {};
        float n = 0.0f, m2[COUNT] = {};
        const T* mine = x + at.image * size * channels + at.channel + at.unit * COUNT;
        float value[COUNT], several[COUNT][FLIGHT], single[COUNT][1];
        long long p = at.first + at.row;
        for (; p + (FLIGHT - 1) * at.rows < at.last; p += FLIGHT * at.rows) {
            for (int v = 0; v < FLIGHT; v++) {
                load(mine + (p + v * at.rows) * channels, value);
                for (int k = 0; k < COUNT; k++) several[k][v] = value[k];
            }
            add_pixels(n, mean, m2, several);
        }
        for (; p < at.last; p += at.rows) {
            load(mine + p * channels, value);
            for (int k = 0; k < COUNT; k++) single[k][0] = value[k];
            add_pixels(n, mean, m2, single);
        }
        for (int k = 0; k < COUNT; k++)  // lane after lane, so that a warp's stores fall in different banks
            shared[at.row * at.width + k * at.tile + at.unit] = {n, mean[k], m2[k]};
    }
    merge_rows(shared, at.rows, at.width);
    Moments* mine = partial + (at.image * pieces + blockIdx.x % pieces) * channels + at.channel;
    if (threadIdx.x < at.width) mine[threadIdx.x % at.tile * COUNT + threadIdx.x / at.tile] = shared[threadIdx.x];
}

template <typename T, int COUNT>
__device__ void pixel_apply(const T* x, const Moments* partial, const Ending<T>& ending, const T* residual, T* out,
                            int channels, long long size, long long length, int pieces, int measured,
                            Moments* shared) {
    const Place<COUNT> at(channels, size, length, pieces);
    const int workers = THREADS / at.width;  // threads that merge the moments of one channel
    if (threadIdx.x < workers * at.width) {
        const Moments* column = partial + at.image * measured * channels + at.channel + threadIdx.x % at.width;
        Moments m = {};
        for (int i = threadIdx.x / at.width; i < measured; i += workers) m = merge(m, column[(long long)i * channels]);
        shared[threadIdx.x] = m;
    }
    merge_rows(shared, workers, at.width);
    if (at.row == at.rows) return;
    float mean[COUNT], scale[COUNT], shift[COUNT], value[COUNT], added[COUNT];
    for (int k = 0; k < COUNT; k++) {
        const int own = at.unit * COUNT + k;
        ending.prepare(shared[own], at.channel + own, mean[k], scale[k], shift[k]);
    }
    const long long start = at.image * size * channels + at.channel + at.unit * COUNT;
#pragma unroll 4
    for (long long p = at.last - 1 - at.row; p >= at.first; p -= at.rows) {  // backwards, as in `write`
        const long long i = start + p * channels;
        load(x + i, value);
        if (residual) load(residual + i, added);
        for (int k = 0; k < COUNT; k++)
            value[k] = ending(value[k], mean[k], scale[k], shift[k], residual ? added[k] : 0.0f);
        store(out + i, value);
    }
}

// One number at a time or LANES<T>; the shared memory is here, so that both have the same.
template <typename T>
__device__ void pixel_statistics(const T* x, float* partial, int channels, long long size, long long length,
                                 int pieces, int lanes) {
    __shared__ Moments shared[THREADS * LANES<T>];
    Moments* moments = reinterpret_cast<Moments*>(partial);
    if (lanes == 1)
        pixel_statistics<T, 1>(x, moments, channels, size, length, pieces, shared);
    else
        pixel_statistics<T, LANES<T>>(x, moments, channels, size, length, pieces, shared);
}

template <typename T>
__device__ void pixel_apply(const T* x, const float* partial, const Ending<T>& ending, const T* residual, T* out,
                            int channels, long long size, long long length, int pieces, int measured, int lanes) {
    __shared__ Moments shared[THREADS];
    const Moments* moments = reinterpret_cast<const Moments*>(partial);
    if (lanes == 1)
        pixel_apply<T, 1>(x, moments, ending, residual, out, channels, size, length, pieces, measured, shared);
    else
        pixel_apply<T, LANES<T>>(x, moments, ending, residual, out, channels, size, length, pieces, measured, shared);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels: float32

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_float32(const float* __restrict__ x, const float* weight, const float* bias,
        const float* __restrict__ residual, float* __restrict__ out, float* saved, long long* slots,
        int channels, long long size, long long length, int pieces, float eps, int relu, int launch, int patience) {
    norm_planes(x, Ending<float>{weight, bias, eps, relu}, residual, out, saved, slots, channels, size,
                length, pieces, launch, patience);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_statistics_float32(const float* __restrict__ x, float* partial, long long size, long long length,
        int pieces) {
    plane_statistics(x, reinterpret_cast<Moments*>(partial), size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_apply_float32(const float* __restrict__ x, const float* partial, const float* weight,
        const float* bias, const float* __restrict__ residual, float* __restrict__ out, float* saved, int channels,
        long long size, long long length, int pieces, float eps, int relu) {
    plane_apply(x, reinterpret_cast<const Moments*>(partial), Ending<float>{weight, bias, eps, relu}, residual,
                out, saved, channels, size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_nhwc_statistics_float32(const float* __restrict__ x, float* partial, int channels, long long size,
        long long length, int pieces, int lanes) {
    pixel_statistics(x, partial, channels, size, length, pieces, lanes);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_nhwc_apply_float32(const float* __restrict__ x, const float* partial, const float* weight,
        const float* bias, const float* __restrict__ residual, float* __restrict__ out, int channels, long long size,
        long long length, int pieces, int measured, float eps, int relu, int lanes) {
    pixel_apply(x, partial, Ending<float>{weight, bias, eps, relu}, residual, out, channels, size, length,
                pieces, measured, lanes);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels: float16

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_float16(const __half* __restrict__ x, const __half* weight, const __half* bias,
        const __half* __restrict__ residual, __half* __restrict__ out, float* saved, long long* slots,
        int channels, long long size, long long length, int pieces, float eps, int relu, int launch, int patience) {
    norm_planes(x, Ending<__half>{weight, bias, eps, relu}, residual, out, saved, slots, channels, size,
                length, pieces, launch, patience);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_statistics_float16(const __half* __restrict__ x, float* partial, long long size, long long length,
        int pieces) {
    plane_statistics(x, reinterpret_cast<Moments*>(partial), size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_apply_float16(const __half* __restrict__ x, const float* partial, const __half* weight,
        const __half* bias, const __half* __restrict__ residual, __half* __restrict__ out, float* saved, int channels,
        long long size, long long length, int pieces, float eps, int relu) {
    plane_apply(x, reinterpret_cast<const Moments*>(partial), Ending<__half>{weight, bias, eps, relu}, residual,
                out, saved, channels, size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_nhwc_statistics_float16(const __half* __restrict__ x, float* partial, int channels, long long size,
        long long length, int pieces, int lanes) {
    pixel_statistics(x, partial, channels, size, length, pieces, lanes);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_nhwc_apply_float16(const __half* __restrict__ x, const float* partial, const __half* weight,
        const __half* bias, const __half* __restrict__ residual, __half* __restrict__ out, int channels,
        long long size, long long length, int pieces, int measured, float eps, int relu, int lanes) {
    pixel_apply(x, partial, Ending<__half>{weight, bias, eps, relu}, residual, out, channels, size, length,
                pieces, measured, lanes);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels: bfloat16

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_bfloat16(const __nv_bfloat16* __restrict__ x, const __nv_bfloat16* weight, const __nv_bfloat16* bias,
        const __nv_bfloat16* __restrict__ residual, __nv_bfloat16* __restrict__ out, float* saved, long long* slots,
        int channels, long long size, long long length, int pieces, float eps, int relu, int launch, int patience) {
    norm_planes(x, Ending<__nv_bfloat16>{weight, bias, eps, relu}, residual, out, saved, slots, channels, size,
                length, pieces, launch, patience);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_statistics_bfloat16(const __nv_bfloat16* __restrict__ x, float* partial, long long size,
        long long length, int pieces) {
    plane_statistics(x, reinterpret_cast<Moments*>(partial), size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_apply_bfloat16(const __nv_bfloat16* __restrict__ x, const float* partial,
        const __nv_bfloat16* weight, const __nv_bfloat16* bias, const __nv_bfloat16* __restrict__ residual,
        __nv_bfloat16* __restrict__ out, float* saved, int channels, long long size, long long length, int pieces,
        float eps, int relu) {
    plane_apply(x, reinterpret_cast<const Moments*>(partial), Ending<__nv_bfloat16>{weight, bias, eps, relu}, residual,
                out, saved, channels, size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_nhwc_statistics_bfloat16(const __nv_bfloat16* __restrict__ x, float* partial, int channels,
        long long size, long long length, int pieces, int lanes) {
    pixel_statistics(x, partial, channels, size, length, pieces, lanes);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_nhwc_apply_bfloat16(const __nv_bfloat16* __restrict__ x, const float* partial,
        const __nv_bfloat16* weight, const __nv_bfloat16* bias, const __nv_bfloat16* __restrict__ residual,
        __nv_bfloat16* __restrict__ out, int channels, long long size, long long length, int pieces, int measured,
        float eps, int relu, int lanes) {
    pixel_apply(x, partial, Ending<__nv_bfloat16>{weight, bias, eps, relu}, residual, out, channels, size, length,
                pieces, measured, lanes);
}
