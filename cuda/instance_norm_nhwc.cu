// Instance norm of NHWC tensors (channels_last): cuda/instance_norm.cu says what is computed, and the rest of it. Most
// of them go to cuda/instance_norm_hopper.cu on a Hopper card.
//
// Contents (every statistic is float32)
//   Place                       where a block and its threads work
//   Strip                       the pixels of a thread, HELD at a time
//   sum_rows, close_planes  the sums of a piece; what all pieces of a plane found, put together
//   instance_norm_nhwc          the kernel: sums, a barrier of the whole grid, closing, another, and the end of each number
//
// A pixel's channels lie together, so that no block can read a plane alone: a block takes up to 256 channels of a piece
// of the pixels, and a thread keeps to COUNT neighbouring channels. All pieces of an image measure distances from the
// same number, near the first pixels, so that their sums simply add. The last HELD vectors of each thread, 64 KB of a
// block, stay in registers while the blocks agree; what was read before them is read again, from the last to the first,
// because the L2 cache holds what was read last.
//
// x, out, residual, weight, bias, relu      as in cuda/instance_norm.cu, but NHWC; channels, size: per image.
// room       4 + (4 + 2 * pieces) * images * channels floats: whether sums must be repeated; for each channel of each
//            image its Affine (until that is known, what distances are measured from); then the sums of its pieces.
// tile, rows, steps      a block takes tile * lanes channels (at most 256) of rows * steps pixels.
// lanes      how many numbers are moved at once: LANES<T> (channels a multiple of it, arrays at multiples of 16 bytes),
//            or 1.
// compiled   for TYPE: float, __half or __nv_bfloat16.
// launch     (images, pieces, tiles) blocks of THREADS; with several pieces a cooperative launch, of as many blocks as
//            run at once. A piece has fewer than 2^31 pixels.
// moves      2s where the strips hold all, else up to 3s, mostly from the L2 cache; sums: 16 bytes a piece and channel.
// numbers    as in cuda/instance_norm.cu. No atomics but one flag: same launch, same bits.
#include <cooperative_groups.h>

#include "common/normalize.cuh"

#ifndef TYPE
#define TYPE float
#endif

constexpr int THREADS = 256;
constexpr int HELD = 16;  // vectors that a thread keeps, in 64 registers: 64 KB a block

// What is read at once: COUNT numbers of T.
template <typename T, int COUNT>
struct Together {
    using type = uint4;
};
template <typename T>
struct Together<T, 1> {
    using type = T;
};

// A block has up to `tile` threads for channels, and rows of them for pixels.
template <int COUNT>
struct Place {
    int image, piece, pieces;
    int pixels;                 // of the piece, but 0 for a thread without work
    int channel, width;         // the tile's first channel, and how many it has
    int tile, rows, row, unit;  // this thread: `row` of rows, `unit` of tile

    __device__ Place(int channels, long long size, int most, int rows, int steps) : rows(rows) {
        image = blockIdx.x, piece = blockIdx.y, pieces = gridDim.y;
        tile = min(most, channels / COUNT - (int)blockIdx.z * most);
        channel = blockIdx.z * most * COUNT;
        width = tile * COUNT;
        row = threadIdx.x / most;
        unit = threadIdx.x - row * most;
        const long long length = (long long)rows * steps;
        pixels = row < rows && unit < tile ? min(length, size - piece * length) : 0;
    }
};

// HELD steps of a thread's pixels, from a step that may lie before the first.
template <typename T, int COUNT>
struct Strip {
    using Vector = typename Together<T, COUNT>::type;
    Vector vector[HELD];

    __device__ void fetch(const T* x, long long stride, int rows, int pixel, int pixels) {
#pragma unroll
        for (int v = 0; v < HELD; v++, pixel += rows, x += stride)
            if ((unsigned)pixel < (unsigned)pixels) vector[v] = *reinterpret_cast<const Vector*>(x);
    }

    __device__ void get(int v, float (&value)[COUNT]) const {
        if constexpr (COUNT == 1)
            value[0] = to_float(vector[v]);
        else
            unpack<T>(vector[v], value);
    }

    // Add x - center and (x - center)^2 of each channel.
    __device__ void sum(int rows, int pixel, int pixels, const float (&center)[COUNT], float (&sums)[2][COUNT]) const {
        float value[COUNT];
#pragma unroll
        for (int v = 0; v < HELD; v++, pixel += rows)
            if ((unsigned)pixel < (unsigned)pixels) {
                get(v, value);
                for (int k = 0; k < COUNT; k++) {
                    const float distance = value[k] - center[k];
                    sums[0][k] += distance;
                    sums[1][k] = fmaf(distance, distance, sums[1][k]);
                }
            }
    }

    template <bool ADD, bool CUT>
    __device__ void write(const T* residual, T* out, long long stride, int rows, int pixel, int pixels,
                          const Affine (&affine)[COUNT]) const {
        float value[COUNT], added[COUNT];
#pragma unroll
        for (int v = 0; v < HELD; v++, pixel += rows) {
            if ((unsigned)pixel < (unsigned)pixels) {
                get(v, value);
                if (ADD) load(residual, added);
                for (int k = 0; k < COUNT; k++) value[k] = finish(value[k], ADD ? added[k] : 0.0f, ADD, affine[k], CUT);
                store(out, value);
            }
            if (ADD) residual += stride;
            out += stride;
        }
    }
};

// The sums of a block over its rows, by a tree: then lane k of unit u has them at k * tile + u, and `width` behind that.
template <int COUNT>
__device__ void sum_rows(const float (&sums)[2][COUNT], const Place<COUNT>& at, float* shared) {
    const int row = 2 * at.width;
    __syncthreads();  // who read the last sums has done so
    if (at.row < at.rows && at.unit < at.tile)
        for (int k = 0; k < 2 * COUNT; k++)  // lane after lane, so that a warp's stores fall in different banks
            shared[at.row * row + k * at.tile + at.unit] = sums[k / COUNT][k % COUNT];
    __syncthreads();
    for (int rows = at.rows, kept; rows > 1; rows = kept) {
        kept = (rows + 1) / 2;
        for (int i = threadIdx.x; i < (rows - kept) * row; i += THREADS) shared[i] += shared[i + kept * row];
        __syncthreads();
    }
}

// Close the channels of some planes: from the sums of all pieces to the moments, and from these to the Affine. The
// planes of the grid are spread over its blocks, or with one piece are the block's own; some lanes work on each.
// Returns whether one of them cancelled.
template <typename T>
__device__ bool close_planes(const float2* partial, Affine* affine, const T* weight, const T* bias, int channels,
                             long long size, int pieces, float eps, int plane, int end, int step) {
    int lanes = 1;
    while (lanes < 32 && lanes * 4 < pieces) lanes *= 2;
    bool off = false;
    for (; plane < end; plane += step * (THREADS / lanes)) {  // the same turns for all threads
        const int own = plane + step * (threadIdx.x / lanes);
        float sums[2] = {};
        if (own < end)
            for (int i = threadIdx.x % lanes; i < pieces; i += lanes) {
                const float2 sum = __ldcg(partial + (long long)own * pieces + i);
                sums[0] += sum.x;
                sums[1] += sum.y;
            }
        for (int offset = lanes / 2; offset > 0; offset /= 2)
            for (int i = 0; i < 2; i++) sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], offset);
        if (own < end && threadIdx.x % lanes == 0) {
            const float n = size;
            Moments m = {n, {__ldcg(&affine[own].mean), 0.0f}, fmaf(-sums[0], sums[0] / n, sums[1])};
            m.mean.move(sums[0] / n);
            affine[own] = Affine(m, weight, bias, own % channels, eps);
            off |= cancelled(sums[1], m.m2);
        }
    }
    return off;
}

template <int COUNT, typename T>
__device__ void norm_pixels(const T* x, const T* weight, const T* bias, const T* residual, T* out, float* room,
                            int channels, long long size, int most, int rows, int steps, float eps, bool cut, float* shared) {
    const Place<COUNT> at(channels, size, most, rows, steps);
    const int pieces = at.pieces, planes = gridDim.x * channels, own = at.image * channels + at.channel;
    int* repeat = reinterpret_cast<int*>(room);
    Affine* affine = reinterpret_cast<Affine*>(room + 4);
    float2* partial = reinterpret_cast<float2*>(affine + planes);
    const long long stride = (long long)rows * channels;
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const auto barrier = [&] { pieces > 1 ? cooperative_groups::this_grid().sync() : __syncthreads(); };
    if (pieces > 1 && (blockIdx.x | blockIdx.y | blockIdx.z | threadIdx.x) == 0) *repeat = 0;

    const auto pixel = [&](int step) { return at.row + rows * step; };
    Strip<T, COUNT> strip;
    Affine mine[COUNT];
    float center[COUNT];
    // The steps that strips begin with: from `first`, which may be before 0, to steps - HELD, and back.
    const int first = (steps - 1) % HELD + 1 - HELD;
    int step = first, by = HELD;
    const long long image = at.image * size * channels + at.channel + min(at.unit, at.tile - 1) * COUNT;
    long long here = image + (at.piece * stride * steps + at.row * channels) + step * stride;
    strip.fetch(x + here, stride, rows, pixel(step), at.pixels);
    near_first(x + image, size, channels, center);
    if (at.piece == 0 && at.row == 0 && at.unit < at.tile)
        for (int k = 0; k < COUNT; k++) affine[own + at.unit * COUNT + k].mean = center[k];
#pragma unroll 1
    for (bool again = false;; again = true) {
        float sums[2][COUNT] = {};
#pragma unroll 1
        while (true) {
            strip.sum(rows, pixel(step), at.pixels, center, sums);
            if (step + by < first || step + by > steps - HELD) break;
            step += by, here += by * stride;
            strip.fetch(x + here, stride, rows, pixel(step), at.pixels);
        }
        by = -by;
        sum_rows(sums, at, shared);
        for (int i = threadIdx.x; i < at.width; i += THREADS) {
            const int lane = i % COUNT * at.tile + i / COUNT;
            partial[(long long)(own + i) * pieces + at.piece] = make_float2(shared[lane], shared[lane + at.width]);
        }
        barrier();
        const bool all = pieces > 1;  // the planes of the whole grid are to be closed
        bool off = close_planes(partial, affine, weight, bias, channels, size, pieces, eps, all ? block : own,
                                all ? planes : own + at.width, all ? gridDim.x * gridDim.y * gridDim.z : 1);
        if (all) {
            if (off && !again) atomicOr(repeat, 1);
            barrier();
            off = __ldcg(repeat);
        } else {
            off = __syncthreads_or(off);
        }
        for (int k = 0; k < COUNT; k++) {
            const int plane = own + min(at.unit, at.tile - 1) * COUNT + k;
            const float4 read = __ldcg(reinterpret_cast<float4*>(affine + plane));
            mine[k].mean = center[k] = read.x, mine[k].scale = read.y, mine[k].shift = read.z;
        }
        if (!off || again) break;
    }

#pragma unroll 1
    while (true) {
        if (residual)
            cut ? strip.template write<true, true>(residual + here, out + here, stride, rows, pixel(step), at.pixels, mine)
                : strip.template write<true, false>(residual + here, out + here, stride, rows, pixel(step), at.pixels, mine);
        else
            cut ? strip.template write<false, true>(residual, out + here, stride, rows, pixel(step), at.pixels, mine)
                : strip.template write<false, false>(residual, out + here, stride, rows, pixel(step), at.pixels, mine);
        if (step + by < first || step + by > steps - HELD) break;
        step += by, here += by * stride;
        strip.fetch(x + here, stride, rows, pixel(step), at.pixels);
    }
}

// One number at a time or LANES<T>; the shared memory is here, so that both have the same.
template <typename T>
__device__ void norm_pixels(const T* x, const T* weight, const T* bias, const T* residual, T* out, float* room,
                            int channels, long long size, int tile, int rows, int steps, float eps, int relu, int lanes) {
    __shared__ float shared[2 * THREADS * LANES<T>];
    if (lanes == 1)
        norm_pixels<1>(x, weight, bias, residual, out, room, channels, size, tile, rows, steps, eps, relu, shared);
    else
        norm_pixels<LANES<T>>(x, weight, bias, residual, out, room, channels, size, tile, rows, steps, eps, relu, shared);
}

// ---------------------------------------------------------------------------------------------------------------------
// The kernels

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    instance_norm_nhwc(const TYPE* __restrict__ x, const TYPE* weight, const TYPE* bias,
        const TYPE* __restrict__ residual, TYPE* __restrict__ out, float* room, int channels, long long size,
        int tile, int rows, int steps, float eps, int relu, int lanes) {
    norm_pixels(x, weight, bias, residual, out, room, channels, size, tile, rows, steps, eps, relu, lanes);
}
