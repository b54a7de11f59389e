// Instance norm of NCHW tensors: each plane (image, channel) is brought to mean 0 and deviation 1; then scale, shift,
// residual, ReLU. cuda/instance_norm_nhwc.cu is the same for NHWC (channels_last), and cuda/instance_norm_hopper.cu for
// what the copy engine of a Hopper card brings faster.
//
//   out = relu((x - mean) / sqrt(variance + eps) * weight + bias + residual)     variance = M2 / n, of the plane itself
//
// Contents (every statistic is float32)
//   Held                            a piece of a plane in the registers of a block: its moments, and its end
//   agree                           what the blocks of a plane found, exchanged (common/exchange.cuh)
//   instance_norm_held16, instance_norm_held8        the two together: x is read once
//   instance_norm_statistics        planes too large to be kept: the moments (n, mean, M2) of each piece
//   instance_norm_apply             ... then blocks over the same pieces: each merges its plane's moments, and writes
//
// x, out     planes x size numbers, flat, with planes = images * channels and size = height * width.
// residual   like x, or null.         weight, bias    `channels` numbers, each may be null.     relu    0 or 1.
// saved      3 floats a plane for the backward pass (mean, what its rounding lost, 1 / deviation), or null.
// slots      SLOT * planes * pieces words for the exchange, this launch's number and patience; null for one piece.
// partial    room for the moments: 4 * planes * pieces floats. Written by the first kernel, read by the second.
// alignment  any. A plane is moved in vectors of 16 bytes between single elements at its ends, where the arrays stand
//            alike to a multiple of 16 bytes; else singly.
// sizes      offsets have 64 bits. A plane of one element gives relu(bias + residual).
// compiled   for TYPE: float, __half or __nv_bfloat16.
// launch     styleforge_lib/ops/instance_norm.py holds the rule. One-dimensional grids and blocks of whole warps, one
//            for each piece: of at most THREADS for the kernel that holds 16 vectors of 16 bytes a thread, two blocks a
//            multiprocessor; of at most WIDE for the one that holds 8, one such block or four of THREADS; of at most
//            1024 for the other two.
// moves      with s = planes * size * sizeof(T), and s more with a residual: where a piece is held 2s, the least there
//            is; the pair of kernels 3s, of which the second reading finds in the L2 cache what was read last, for it
//            runs backwards. Moments: 16 or 32 bytes a piece, below 1 %.
// computes   about 8 instructions an element where a piece is held: unpack, distance, sum, sum of squares; unpack,
//            distance, scale and shift, half of a pack. (Twice as many were measured to be slower than the memory.)
// numbers    moments of distances (common/moments.cuh): no cancellation at mean 4000, constant planes give bias
//            exactly. Fused steps are rounded once, at the end. NaN or infinity makes its plane NaN, and no other.
//            Where distances beyond 1e19 overflow the variance, the plane is NaN. No atomics: same launch, same bits.
#include "common/exchange.cuh"
#include "common/normalize.cuh"

#ifndef TYPE
#define TYPE float
#endif

constexpr int THREADS = 256;  // of a block that holds a piece
constexpr int WIDE = 1024;    // ... with 8 vectors a thread, where a plane has a multiprocessor to itself
constexpr int FLIGHT = 4;     // vectors under way where none is kept: 64 bytes, so that 1024 threads cover the latency
constexpr int GROUP = 8;      // numbers that are taken into the moments at once: one division for 8
constexpr int SLOT = 4;       // words of a block in the exchange: three floats, and the number of its last launch

// What follows the norm.
template <typename T>
struct Ending {
    const T *weight, *bias;
    float eps;
    int relu;
};

// ---------------------------------------------------------------------------------------------------------------------
// Planes that are read twice

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

// Write `count` numbers that lie together, all of one plane: from the last to the first, because the L2 cache holds
// what was read last. (A generic lambda would do for both sizes, but NVRTC 13.0 takes it for a function of the host.)
template <int COUNT, typename T>
__device__ void write_some(const T* x, const T* residual, T* out, long long i, const Affine& affine, bool relu) {
    float value[COUNT], added[COUNT];
    load(x + i, value);
    if (residual) load(residual + i, added);
    for (int k = 0; k < COUNT; k++) value[k] = finish(value[k], residual ? added[k] : 0.0f, residual, affine, relu);
    store(out + i, value);
}

template <typename T>
__device__ void write(const T* x, const T* residual, T* out, long long count, const Affine& affine, bool relu) {
    const Span span = residual ? Span(count, x, out, residual) : Span(count, x, out);
    const auto single = [&](long long begin, long long end) {
        for (long long i = begin + threadIdx.x; i < end; i += blockDim.x)
            write_some<1>(x, residual, out, i, affine, relu);
    };
    single(0, span.head);
#pragma unroll 4
    for (long long v = span.vectors - 1 - threadIdx.x; v >= 0; v -= blockDim.x)
        write_some<LANES<T>>(x, residual, out, span.head + v * LANES<T>, affine, relu);
    single(span.tail, count);
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
    const Affine affine(m, ending.weight, ending.bias, piece.plane % channels, ending.eps);
    write(x + piece.start, residual ? residual + piece.start : nullptr, out + piece.start, piece.count, affine,
          ending.relu);
}

// ---------------------------------------------------------------------------------------------------------------------
// Planes that are read once

// A piece in the registers of a block, as it lies in memory: up to HELD vectors a thread. The numbers before and behind
// the vectors, fewer than 16, have a thread each, which reads them anew each time.
template <typename T, int HELD>
struct Held {
    uint4 vector[HELD];  // every 32nd from the first: a warp's lie together
    int count;           // of the piece
    int start, reach;    // where the first vector lies; vector v is there where 32 * v < reach
    int alone;           // the number that this thread reads anew, or -1

    __device__ void fetch(const T* x, int numbers) {
        const Span span(numbers, x);
        const int vectors = span.vectors, share = (vectors + blockDim.x - 1) / blockDim.x * 32;
        const int first = threadIdx.x / 32 * share + threadIdx.x % 32;
        const int single = threadIdx.x < span.head ? threadIdx.x : (int)span.tail + threadIdx.x - (int)span.head;
        count = numbers;
        start = (int)span.head + first * LANES<T>;
        reach = min(vectors - first, share - (int)threadIdx.x % 32);
        alone = single < numbers ? single : -1;
        const uint4* source = reinterpret_cast<const uint4*>(x + start);
#pragma unroll
        for (int v = 0; v < HELD; v++)
            if (32 * v < reach) vector[v] = source[32 * v];
    }

    // The sums of (x - center) and (x - center)^2 over the block.
    __device__ void sum(const T* x, float center, float (&sums)[2], float* shared) const {
        float value[LANES<T>];
        sums[0] = sums[1] = 0.0f;
        const auto take = [&](float number) {
            const float distance = number - center;
            sums[0] += distance;
            sums[1] = fmaf(distance, distance, sums[1]);
        };
#pragma unroll
        for (int v = 0; v < HELD; v++)
            if (32 * v < reach) {
                unpack<T>(vector[v], value);
                for (int k = 0; k < LANES<T>; k++) take(value[k]);
            }
        if (alone >= 0) take(to_float(x[alone]));
        sum_block(sums, shared);
    }

    // The moments of the piece, from distances that are measured from a number near its first ones. If that turns out
    // to be so far off that M2 suffers, then again from the mean: the corrected two-pass algorithm (Chan, Golub,
    // LeVeque 1983), whose first pass is good enough almost always.
    __device__ Moments measure(const T* x, float* shared) const {
        float center[1], sums[2], m2;
        near_first(x, count, 1, center);
        const float n = count;
#pragma unroll 1
        for (int pass = 0; pass < 2; pass++) {
            if (pass == 1) center[0] += sums[0] / n;
            sum(x, center[0], sums, shared);
            m2 = fmaf(-sums[0], sums[0] / n, sums[1]);
            if (!cancelled(sums[1], m2)) break;
        }
        Moments m = {n, {center[0], 0.0f}, m2};
        m.mean.move(sums[0] / n);
        return m;
    }

    // Write the piece. out: alike to x, and so residual, to a multiple of 16 bytes. ADD: there is a residual; CUT: ReLU.
    // The residual comes AHEAD vectors at a time: behind a store, each load would wait until the one before is back.
    template <bool ADD, bool CUT>
    __device__ void write(const T* x, const T* residual, T* out, const Affine& affine) const {
        constexpr int AHEAD = HELD / 4;  // more registers are not free
        const uint4* source = reinterpret_cast<const uint4*>(residual + start);
        uint4* target = reinterpret_cast<uint4*>(out + start);
        uint4 added[AHEAD];
        float value[LANES<T>], other[LANES<T>];
#pragma unroll
        for (int first = 0; first < HELD; first += AHEAD) {
#pragma unroll
            for (int v = first; v < first + AHEAD; v++)
                if (ADD && 32 * v < reach) added[v - first] = __ldcg(source + 32 * v);
            if (ADD) __syncwarp();  // which ptxas moves no load across
#pragma unroll
            for (int v = first; v < first + AHEAD; v++)
                if (32 * v < reach) {
                    unpack<T>(vector[v], value);
                    if (ADD) unpack<T>(added[v - first], other);
                    for (int k = 0; k < LANES<T>; k++)
                        value[k] = finish(value[k], ADD ? other[k] : 0.0f, ADD, affine, CUT);
                    __stwb(target + 32 * v, pack<T>(value));
                }
        }
        if (alone >= 0) write_some<1>(x, ADD ? residual : nullptr, out, alone, affine, CUT);
    }
};

// While a warp waits for the other blocks of the plane, the others let the piece of the block that will take this one's
// place come into the L2 cache: measured to bring 4 % at 64 planes of 1 MB, and nothing at 64 of 512 KB. x: where the
// plane begins. RESIDENT: blocks that a multiprocessor holds.
template <int RESIDENT, typename T>
__device__ void prefetch(const T* x, long long size, long long length, int pieces) {
    int processors;
    asm("mov.u32 %0, %%nsmid;" : "=r"(processors));
    const int ahead = RESIDENT * processors;
    if (blockIdx.x + ahead >= gridDim.x) return;
    const Piece piece(size, length, pieces, blockIdx.x % pieces + ahead);
    const char* from = reinterpret_cast<const char*>(x + piece.start);
    for (int byte = threadIdx.x * 128 - 4096; byte < piece.count * (int)sizeof(T); byte += blockDim.x * 128 - 4096)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + byte));
}

// The moments of a plane, of which this block holds its piece in the end. x: where the plane begins.
// A block that waits for the others in vain measures the whole plane itself and tells it in their place: the same order,
// so the same bits.
template <typename T, int HELD>
__device__ Moments agree(Held<T, HELD>& held, const T* x, long long* slots, long long size, long long length,
                         int pieces, int launch, int patience) {
    __shared__ float sums[2 * 32];
    __shared__ Moments whole;
    const int first = blockIdx.x / pieces * pieces, own = blockIdx.x - first;
    if (pieces > 1) slots += (long long)first * SLOT;
    if (launch == 0 && pieces > 1) launch = number_after(slots + own * SLOT + 3);
    bool deserted = false;
    while (true) {
        Moments m;
#pragma unroll 1
        for (int i = deserted ? 0 : own; i < pieces; i++) {
            held.fetch(x + i * length, min(length, size - i * length));
            m = held.measure(x + i * length, sums);
            if (pieces == 1) return m;
            const float told[3] = {m.mean.value, m.mean.lost, m.m2};
            if (threadIdx.x == 0) tell(slots + i * SLOT, launch, told);
            if (!deserted) break;
        }
        bool heard = true;
        if (threadIdx.x < 32) {  // one warp asks, so that few requests hold up the answers
            m = {};
            for (int i = threadIdx.x; heard && i < pieces; i += 32) {
                float told[3];
                heard = hear(slots + i * SLOT, launch, patience, told);
                m = merge(m, {(float)min(length, size - i * length), {told[0], told[1]}, told[2]});
            }
            m = merge_warp(m);
            if (threadIdx.x == 0) whole = m, keep_number(slots + own * SLOT + 3, launch);
        } else {
            prefetch<HELD == 8 ? 4 : 2>(x, size, length, pieces);
        }
        if (__syncthreads_and(heard)) break;
        deserted = true;
    }
    if (deserted) held.fetch(x + own * length, min(length, size - own * length));
    return whole;
}

template <int HELD, typename T>
__device__ void norm_planes(const T* x, const Ending<T>& ending, const T* residual, T* out, float* saved,
                            long long* slots, int channels, long long size, long long length, int pieces, int launch,
                            int patience) {
    const Piece piece(size, length, pieces);
    Held<T, HELD> held;
    const Moments m = agree(held, x + piece.plane * size, slots, size, length, pieces, launch, patience);
    if (saved && threadIdx.x == 0 && blockIdx.x % pieces == 0) save(saved, m, ending.eps, piece.plane);
    const Affine affine(m, ending.weight, ending.bias, piece.plane % channels, ending.eps);
    x += piece.start;
    out += piece.start;
    if (residual) residual += piece.start;
    const size_t phases = reinterpret_cast<size_t>(out) ^ reinterpret_cast<size_t>(x);
    const size_t phase = residual ? reinterpret_cast<size_t>(residual) ^ reinterpret_cast<size_t>(x) : 0;
    if ((phases | phase) % 16 != 0)  // no vectors that are whole in all arrays
        write(x, residual, out, piece.count, affine, ending.relu);
    else if (residual)
        ending.relu ? held.template write<true, true>(x, residual, out, affine)
                    : held.template write<true, false>(x, residual, out, affine);
    else
        ending.relu ? held.template write<false, true>(x, residual, out, affine)
                    : held.template write<false, false>(x, residual, out, affine);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    instance_norm_held16(const TYPE* __restrict__ x, const TYPE* weight, const TYPE* bias,
        const TYPE* __restrict__ residual, TYPE* __restrict__ out, float* saved, long long* slots,
        int channels, long long size, long long length, int pieces, float eps, int relu, int launch, int patience) {
    norm_planes<16>(x, Ending<TYPE>{weight, bias, eps, relu}, residual, out, saved, slots, channels, size,
        length, pieces, launch, patience);
}

extern "C" __global__ void __launch_bounds__(WIDE, 1)
    instance_norm_held8(const TYPE* __restrict__ x, const TYPE* weight, const TYPE* bias,
        const TYPE* __restrict__ residual, TYPE* __restrict__ out, float* saved, long long* slots,
        int channels, long long size, long long length, int pieces, float eps, int relu, int launch, int patience) {
    norm_planes<8>(x, Ending<TYPE>{weight, bias, eps, relu}, residual, out, saved, slots, channels, size,
        length, pieces, launch, patience);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_statistics(const TYPE* __restrict__ x, float* partial, long long size, long long length,
        int pieces) {
    plane_statistics(x, reinterpret_cast<Moments*>(partial), size, length, pieces);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    instance_norm_apply(const TYPE* __restrict__ x, const float* partial, const TYPE* weight,
        const TYPE* bias, const TYPE* __restrict__ residual, TYPE* __restrict__ out, float* saved, int channels,
        long long size, long long length, int pieces, float eps, int relu) {
    plane_apply(x, reinterpret_cast<const Moments*>(partial), Ending<TYPE>{weight, bias, eps, relu}, residual,
        out, saved, channels, size, length, pieces);
}
