// A convolution as a matrix product that is never laid out: NHWC, on tensor cores, with its neighbours fused in.
//
//   convolve<Shape>(Layer)      out[pixel][channel] = sum over taps and input channels of halo[pixel + tap] * weight
//
// A block makes TILE_H x TILE_W output pixels (of one image) and all output channels. It
//   1. starts copying weights to shared memory: a ring of RING stages, a stage being one tap and up to 128 bytes of
//      input channels, [COLUMNS][depth], laid out by the host as ldmatrix wants them;
//   2. loads the tile's halo once: from 16 bytes of x, v = relu(x * scale + shift) + residual, each step if wanted, is
//      rounded once to T and stored to shared memory; pixels outside the picture are those that the border repeats. The
//      block that owns a pixel also writes v to `materialised`: that is how the output of a residual block comes to be;
//   3. multiplies, stage by stage: a tap is an offset into the halo, so all taps read the same copy;
//   4. adds bias, rounds, takes the moments of what is to be written, and writes rows of whole pixels.
// Several passes over 3 and 4 make COLUMNS columns each, where all together are too many for the registers.
//
// Shape      compile-time: Launch (the macros that a file is compiled with, as constants), and of the file itself:
//            phases, taps, stride, pad, reach (halo pixels that a pixel needs beyond the first), border(i, n),
//            tap_y(phase, tap), tap_x(phase, tap).
// phases     PHASES outputs belong to a pixel of the tile: PHASES * C_OUT columns in all; column = phase * C_OUT +
//            channel. A convolution has one phase, an upsampling one four (see upsample_conv2d.cu).
// stride     columns of the halo are stored by their remainder mod STRIDE, so that the pixels that one tap wants lie
//            side by side, and ldmatrix meets no bank twice.
// affine     [image][C_IN][2] floats: scale and shift.          partial  [image][rows][C_OUT] moments (see moments.cuh),
//            a row for each tile and pass of phases.
// sizes      tiles hang over the edge of any picture; one image has at most 2^31 pixels, all offsets are 64 bits.
// launch     grid (tiles, 1, images), THREADS threads, SHARED bytes of dynamic shared memory.
// numbers    products are exact, sums float32; no atomics: the same launch gives the same bits.
#pragma once
#include "moments.cuh"
#include "tensor_cores.cuh"

#ifndef NUMBER
#define NUMBER __half
#endif
#ifndef C_IN  // the file alone, as a learner or a test compiles it: something small
#define C_IN 16
#define C_OUT 16
#define STRIDE 1
#define KERNEL 3
#define TILE_H 4
#define TILE_W 8
#define WARPS_M 2
#define WARPS_N 1
#define COLUMNS 16
#define RING 2
#define BLOCKS 1
#endif
#ifndef AFFINE
#define AFFINE 0
#define RELU_IN 0
#define RESIDUAL 0
#define MATERIALISE 0
#define STATISTICS 0
#define BIAS 0
#define RELU_OUT 0
#endif

struct Launch {
    using type = NUMBER;
    static constexpr int c_in = C_IN, c_out = C_OUT, tile_h = TILE_H, tile_w = TILE_W, warps_m = WARPS_M;
    static constexpr int warps_n = WARPS_N, columns = COLUMNS, ring = RING, threads = 32 * WARPS_M * WARPS_N;
    static constexpr bool affine = AFFINE, relu_in = RELU_IN, residual = RESIDUAL, materialise = MATERIALISE;
    static constexpr bool statistics = STATISTICS, bias = BIAS, relu_out = RELU_OUT;
};

template <typename T>
struct Layer {
    const T* x;
    const float2* affine;
    const T* residual;
    T* materialised;
    const T* weight;
    const float* bias;
    T* out;
    Moments* partial;
    int height, width, out_height, out_width;  // of x, and of the pixels that tiles are cut from
};

// Reflection padding: the pixel before the first is the second.
__device__ inline int reflected(int i, int n) {
    i = i < 0 ? -i : i;
    i = i >= n ? 2 * n - 2 - i : i;
    return i < 0 ? 0 : i;  // only where a tile hangs over the edge, and nothing is made of it
}

// The nearest pixel that there is.
__device__ inline int clamped(int i, int n) { return i < 0 ? 0 : i < n ? i : n - 1; }

template <class S>
struct Block {
    using T = typename S::type;
    static constexpr int WARPS = S::warps_m * S::warps_n, THREADS = 32 * WARPS;
    static constexpr int PIXELS = S::tile_h * S::tile_w;
    static constexpr int HALO_H = (S::tile_h - 1) * S::stride + S::reach + 1;
    static constexpr int HALO_W = (S::tile_w - 1) * S::stride + S::reach + 1;
    static constexpr int SIDE = (HALO_W + S::stride - 1) / S::stride;  // columns of one remainder
    static constexpr int PITCH = SIDE * S::stride;                     // columns as stored
    static constexpr int GROUPS = S::c_in / LANES<T>;                  // groups of 16 bytes in a pixel
    static constexpr int HALO_BYTES = HALO_H * PITCH * GROUPS * 16;

    // The deepest stage that divides the channels: 128 bytes, the span of the banks, or less.
    static constexpr int DEPTH =  // groups
        GROUPS % 8 == 0 ? 8 : GROUPS % 6 == 0 ? 6 : GROUPS % 4 == 0 ? 4 : 2;
    static constexpr int STAGES = S::taps * (GROUPS / DEPTH);
    static constexpr int STAGE_BYTES = S::columns * DEPTH * 16;
    static constexpr bool RESIDENT = S::ring >= STAGES;  // all weights of a pass fit: no ring, no barriers in the loop
    static constexpr int SLOTS = RESIDENT ? STAGES : S::ring;
    static constexpr int STAGING_BYTES = PIXELS * S::columns * (int)sizeof(T);
    static constexpr int RING_BYTES = SLOTS * STAGE_BYTES > STAGING_BYTES ? SLOTS * STAGE_BYTES : STAGING_BYTES;
    static constexpr int MOMENTS_BYTES = S::statistics ? S::warps_m * S::columns * (int)sizeof(Moments) : 0;
    static constexpr int SHARED = HALO_BYTES + RING_BYTES + MOMENTS_BYTES;

    static constexpr int TOTAL = S::phases * S::c_out;
    static constexpr int PASSES = TOTAL / S::columns;
    static constexpr int PASS_PHASES = S::columns > S::c_out ? S::columns / S::c_out : 1;
    static constexpr int ROWS = S::phases / PASS_PHASES;  // of partial, for a tile

    static constexpr int WARP_M = PIXELS / S::warps_m, WARP_N = S::columns / S::warps_n;
    static constexpr int MT = WARP_M / 16, NT = WARP_N / 8;  // products of a warp
    static constexpr int WARP_PHASES = WARP_N > S::c_out ? WARP_N / S::c_out : 1;
    static constexpr int PHASE_NT = NT / WARP_PHASES;

    static_assert(S::c_in % (2 * LANES<T>) == 0, "input channels: a multiple of 32 bytes");
    static_assert(S::c_out % 16 == 0 && WARP_N % 16 == 0, "output channels: a multiple of 16");
    static_assert(S::tile_w % 8 == 0 && WARP_M % 16 == 0 && PIXELS % S::warps_m == 0, "tile");
    static_assert(TOTAL % S::columns == 0 && (S::columns % S::c_out == 0 || S::c_out % S::columns == 0), "passes");
    static_assert(WARP_N % S::c_out == 0 || S::c_out % WARP_N == 0, "a warp has whole phases, or part of one");
    static_assert(GROUPS <= THREADS && S::ring >= 2, "threads");

    const Layer<T>& layer;
    const unsigned halo, ring;
    Moments* const moments;
    const int thread, lane, warp_m, warp_n, image;
    int tile, y0, x0;  // the tile's first output pixel
    float sums[MT][NT][4];

    __device__ Block(const Layer<T>& l, char* shared)
        : layer(l),
          halo(shared_address(shared)),
          ring(halo + HALO_BYTES),
          moments(reinterpret_cast<Moments*>(shared + HALO_BYTES + RING_BYTES)),
          thread(threadIdx.x),
          lane(threadIdx.x % 32),
          warp_m(threadIdx.x / 32 / S::warps_n),
          warp_n(threadIdx.x / 32 % S::warps_n),
          image(blockIdx.z),
          tile(blockIdx.x) {
        const int across = (l.out_width + S::tile_w - 1) / S::tile_w;
        y0 = tile / across * S::tile_h;
        x0 = tile % across * S::tile_w;
    }

    // ---- 1. weights

    __device__ void issue(int pass, int stage) {
        if (stage < STAGES) {
            const unsigned to = ring + stage % SLOTS * STAGE_BYTES;
            const char* from = reinterpret_cast<const char*>(layer.weight) +
                               ((long long)pass * STAGES + stage) * STAGE_BYTES;
#pragma unroll
            for (int at = 0; at < STAGE_BYTES; at += THREADS * 16)
                if (at + THREADS * 16 <= STAGE_BYTES || at + thread * 16 < STAGE_BYTES)
                    copy_16(to + at + thread * 16, from + at + thread * 16);
        }
        commit_copies();  // an empty group at the end keeps the count
    }

    __device__ void begin(int pass) {
        for (int stage = 0; stage < (RESIDENT ? STAGES : SLOTS - 1); stage++) issue(pass, stage);
    }

    // ---- 2. the halo

    __device__ void load_halo() {
        constexpr int AT_ONCE = THREADS / GROUPS;  // pixels
        constexpr int COUNT = HALO_H * HALO_W, FLIGHT = S::residual ? 6 : 12;
        const int row = thread / GROUPS, group = thread % GROUPS;
        if (THREADS % GROUPS != 0 && row == AT_ONCE) return;
        const long long plane = (long long)image * layer.height * layer.width;
        const uint4* x = reinterpret_cast<const uint4*>(layer.x) + plane * GROUPS + group;
        const uint4* residual = reinterpret_cast<const uint4*>(layer.residual) + plane * GROUPS + group;
        uint4* materialised = reinterpret_cast<uint4*>(layer.materialised) + plane * GROUPS + group;
        float2 affine[LANES<T>];
        if constexpr (S::affine)
#pragma unroll
            for (int i = 0; i < LANES<T>; i++)
                affine[i] = layer.affine[image * S::c_in + group * LANES<T> + i];

#pragma unroll 1
        for (int first = row; first < COUNT; first += AT_ONCE * FLIGHT) {
            Packed<T> value[FLIGHT], old[FLIGHT];
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                const int p = first + i * AT_ONCE;
                if (p >= COUNT) continue;
                const long long at = source(p / HALO_W, p % HALO_W) * GROUPS;
                value[i].whole = x[at];
                if constexpr (S::residual) old[i].whole = residual[at];
            }
#pragma unroll
            for (int i = 0; i < FLIGHT; i++) {
                const int p = first + i * AT_ONCE, py = p / HALO_W, px = p % HALO_W;
                if (p >= COUNT) continue;
                if constexpr (S::affine || S::residual || S::relu_in || sizeof(T) == 4) {
#pragma unroll
                    for (int k = 0; k < LANES<T>; k += 2) {
                        float pair[2];
#pragma unroll
                        for (int j = 0; j < 2; j++) {
                            float v = to_float(value[i].number[k + j]);
                            if constexpr (S::affine) v = fmaf(v, affine[k + j].x, affine[k + j].y);
                            if constexpr (S::relu_in) v = relu(v);
                            if constexpr (S::residual) v += to_float(old[i].number[k + j]);
                            pair[j] = v;
                        }
                        put_pair(&value[i].number[k], pair[0], pair[1]);
                    }
                }
                if constexpr (S::materialise) {
                    const int y = y0 + py - S::pad, c = x0 + px - S::pad;  // STRIDE is 1
                    if (py >= S::pad && py < S::pad + S::tile_h && px >= S::pad && px < S::pad + S::tile_w &&
                        y < layer.height && c < layer.width)
                        materialised[((long long)y * layer.width + c) * GROUPS] = value[i].whole;
                }
                if constexpr (sizeof(T) == 4)
#pragma unroll
                    for (int k = 0; k < LANES<T>; k++) value[i].number[k] = rounded<T>(to_float(value[i].number[k]));
                const int stored = py * PITCH + px % S::stride * SIDE + px / S::stride;
                store_shared(halo + row_offset<GROUPS>(stored, group), value[i].whole);
            }
        }
    }

    __device__ long long source(int py, int px) const {  // the pixel of the picture that a pixel of the halo repeats
        const int y = S::border(y0 * S::stride + py - S::pad, layer.height);
        const int x = S::border(x0 * S::stride + px - S::pad, layer.width);
        return (long long)y * layer.width + x;
    }

    // ---- 3. products

    __device__ void multiply(int pass) {
        // ldmatrix: this lane names row lane % 8 of matrix lane / 8. A's matrices: pixels 0-7 and 8-15 of 16 bytes,
        // then of the next 16. B's: columns 0-7 of both sixteens, then columns 8-15.
        const int matrix = lane / 8, row = lane % 8;
        int pixel[MT];  // where this lane's pixels lie in the halo
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
            const int m = warp_m * WARP_M + mt * 16 + matrix % 2 * 8 + row;
            pixel[mt] = m / S::tile_w * S::stride * PITCH + m % S::tile_w;
        }
        const int column = warp_n * WARP_N + matrix / 2 * 8 + row;
        const int phase = (pass * S::columns + warp_n * WARP_N) / S::c_out;
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[mt][nt][i] = 0.0f;

        if constexpr (RESIDENT) {
            await_copies<0>();
            __syncthreads();
        }
#pragma unroll 1
        for (int stage = 0; stage < STAGES; stage++) {
            if constexpr (!RESIDENT) {
                await_copies<SLOTS - 2>();
                __syncthreads();  // the stage has come, for all; and the slot before it is free
                issue(pass, stage + SLOTS - 1);
            }
            const int chunk = stage / S::taps, tap = stage % S::taps;
            const unsigned weights = ring + stage % SLOTS * STAGE_BYTES;
            int offset[WARP_PHASES];
#pragma unroll
            for (int i = 0; i < WARP_PHASES; i++) {
                const int y = S::tap_y(phase + i, tap), x = S::tap_x(phase + i, tap);
                offset[i] = y * PITCH + x % S::stride * SIDE + x / S::stride;
            }
#pragma unroll
            for (int k = 0; k < DEPTH / 2; k++) {
                unsigned b[NT / 2][4];
#pragma unroll
                for (int nt = 0; nt < NT / 2; nt++)
                    load_matrices(b[nt], weights + row_offset<DEPTH>(column + nt * 16, 2 * k + matrix % 2));
#pragma unroll
                for (int i = 0; i < WARP_PHASES; i++) {
                    unsigned a[MT][4];
#pragma unroll
                    for (int mt = 0; mt < MT; mt++)
                        load_matrices(a[mt], halo + row_offset<GROUPS>(pixel[mt] + offset[i],
                                                                       chunk * DEPTH + 2 * k + matrix / 2));
#pragma unroll
                    for (int mt = 0; mt < MT; mt++)
#pragma unroll
                        for (int n = i * PHASE_NT; n < (i + 1) * PHASE_NT; n++)
                            product<T>(sums[mt][n], a[mt], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                }
            }
        }
    }

    // ---- 4. the epilogue

    // A sum's place: lane = 4 * g + t holds in sums[mt][nt][i] pixel 16 * mt + 8 * (i / 2) + g of the warp's, and
    // column 8 * nt + 2 * t + i % 2.
    __device__ int pixel_of(int mt, int i) const { return warp_m * WARP_M + mt * 16 + i / 2 * 8 + lane / 4; }
    __device__ int column_of(int nt, int i) const { return warp_n * WARP_N + nt * 8 + lane % 4 * 2 + i % 2; }
    __device__ bool inside(int pixel) const {
        return y0 + pixel / S::tile_w < layer.out_height && x0 + pixel % S::tile_w < layer.out_width;
    }

    // Bias and ReLU, then the rounding to T: the moments are those of the numbers that are written, so that a constant
    // plane, rounded, has no variance, and the norm that follows gives its bias exactly.
    __device__ void finish_sums(int pass) {
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float bias = S::bias ? layer.bias[(pass * S::columns + column_of(nt, i)) % S::c_out] : 0.0f;
#pragma unroll
                for (int mt = 0; mt < MT; mt++)
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        float& v = sums[mt][nt][2 * r + i];
                        if constexpr (S::bias) v += bias;
                        if constexpr (S::relu_out) v = relu(v);
                        if constexpr (S::statistics) v = to_float(to<T>(v));
                    }
            }
    }

    // The moments of each column over the warp's pixels, to shared memory: distances from the first pixel, their sum
    // and the sum of their squares. That pixel is one of the n, so it lies at most sqrt(n) deviations off the mean, and
    // the difference below loses at most a factor of n of float32's precision: 64 of 2^24.
    __device__ void gather_moments() {
        bool counts[MT][2];
        int count = 0;
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
            for (int r = 0; r < 2; r++) count += counts[mt][r] = inside(pixel_of(mt, 2 * r));
        const float n = (float)across_rows(count), inverse = n > 0.0f ? 1.0f / n : 0.0f;
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float first = __shfl_sync(0xffffffffu, sums[0][nt][i], lane % 4);  // inside, if any pixel is
                float sum = 0.0f, squares = 0.0f;
#pragma unroll
                for (int mt = 0; mt < MT; mt++)
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float distance = counts[mt][r] ? sums[mt][nt][2 * r + i] - first : 0.0f;
                        sum += distance;
                        squares = fmaf(distance, distance, squares);
                    }
                sum = across_rows(sum);
                squares = across_rows(squares);
                if (lane / 4 == 0) {
                    Mean mean = {first, 0.0f};
                    mean.move(sum * inverse);
                    const float m2 = squares - sum * (sum * inverse);
                    moments[warp_m * S::columns + column_of(nt, i)] = {n, mean, m2 < 0.0f ? 0.0f : m2};
                }
            }
    }

    template <typename Number>
    static __device__ Number across_rows(Number v) {  // the sum over the lanes that hold the same columns
#pragma unroll
        for (int step = 4; step < 32; step *= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
        return v;
    }

    // After a barrier: the moments of the block's warps and phases become one row of `partial`.
    __device__ void write_moments(int pass) {
        constexpr int WIDTH = S::columns < S::c_out ? S::columns : S::c_out;
        const int first = pass * S::columns, tiles = gridDim.x;
        const long long row = ((long long)image * tiles + tile) * ROWS + first / S::c_out / PASS_PHASES;
        for (int c = thread; c < WIDTH; c += THREADS) {
            Moments m = {};
            for (int i = 0; i < S::warps_m * PASS_PHASES; i++) m = merge(m, moments[i * WIDTH + c]);
            layer.partial[row * S::c_out + first % S::c_out + c] = m;
        }
    }

    // The sums, rounded, as rows of pixels in the place of the weights.
    __device__ void stage_output() {
        constexpr int OUT_GROUPS = S::columns / LANES<T>;
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int column = column_of(nt, 0);
                    const int at = row_offset<OUT_GROUPS>(pixel_of(mt, 2 * r), column / LANES<T>) +
                                   column % LANES<T> * (int)sizeof(T);
                    T* to = static_cast<T*>(__cvta_shared_to_generic(ring + at));
                    put_pair(to, sums[mt][nt][2 * r], sums[mt][nt][2 * r + 1]);
                }
    }

    __device__ void write_output(int pass) {
        constexpr int OUT_GROUPS = S::columns / LANES<T>, CHANNEL_GROUPS = S::c_out / LANES<T>;
        constexpr int SIDE_PHASES = S::phases == 4 ? 2 : 1;
        uint4* out = reinterpret_cast<uint4*>(layer.out) + (long long)image * S::phases * layer.out_height *
                                                               layer.out_width * CHANNEL_GROUPS;
        for (int i = thread; i < PIXELS * OUT_GROUPS; i += THREADS) {
            const int pixel = i / OUT_GROUPS, group = i % OUT_GROUPS, column = pass * OUT_GROUPS + group;
            const int phase = column / CHANNEL_GROUPS;
            const long long y = (y0 + pixel / S::tile_w) * SIDE_PHASES + phase / SIDE_PHASES;
            const long long x = (x0 + pixel % S::tile_w) * SIDE_PHASES + phase % SIDE_PHASES;
            if (inside(pixel))
                out[(y * layer.out_width * SIDE_PHASES + x) * CHANNEL_GROUPS + column % CHANNEL_GROUPS] =
                    load_shared(ring + row_offset<OUT_GROUPS>(pixel, group));
        }
    }

    __device__ void run() {
        begin(0);
        load_halo();
        for (int pass = 0; pass < PASSES; pass++) {
            if (pass > 0) begin(pass);
            multiply(pass);
            await_copies<0>();  // of empty groups: nothing may arrive later
            finish_sums(pass);
            if constexpr (S::statistics) gather_moments();
            __syncthreads();  // all have read their weights, and written their moments
            stage_output();
            if constexpr (S::statistics) write_moments(pass);
            __syncthreads();
            write_output(pass);
            if (pass + 1 < PASSES) __syncthreads();  // the ring is free again
        }
    }
};

template <class S>
__device__ void convolve(const Layer<typename S::type>& layer) {
    extern __shared__ __align__(128) char dynamic[];
    Block<S>(layer, dynamic).run();
}
