// What becomes of the sums of a tile: bias, ReLU, rounding, statistics, and rows of whole pixels in memory.
//
//   Sums::clear(), v            the accumulators of a warp: WARP_M pixels by WARP_N columns, as mma.sync holds them
//   Sums::finish(pass)          all the rest, with two barriers; the staging area must be free after the first
//
// columns    PHASES * C_OUT in all, COLUMNS of them in a pass; column = phase * C_OUT + channel. A convolution has one
//            phase, an upsampling one four, whose outputs belong to one pixel of the tile.
// statistics are those of the numbers that are written, rounded: a constant plane has no variance then, and the norm
//            that follows gives its bias exactly.
#pragma once
#include "layer.cuh"

struct Sums {
    using S = Shape;
    using T = Shape::type;
    static constexpr int PIXELS = S::tile_h * S::tile_w;
    static constexpr int TOTAL = S::phases * S::c_out, PASSES = TOTAL / S::columns;
    static constexpr int PASS_PHASES = S::columns > S::c_out ? S::columns / S::c_out : 1;
    static constexpr int STAGING_BYTES = PIXELS * S::columns * (int)sizeof(T);

    static constexpr int WARP_M = PIXELS / S::warps_m, WARP_N = S::columns / S::warps_n;
    static constexpr int MT = WARP_M / 16, NT = WARP_N / 8;  // products of a warp
    static constexpr int WARP_PHASES = WARP_N > S::c_out ? WARP_N / S::c_out : 1;
    static constexpr int PHASE_NT = NT / WARP_PHASES;

    static_assert(S::c_out % 16 == 0 && WARP_N % 16 == 0, "output channels: a multiple of 16");
    static_assert(S::tile_w % 8 == 0 && WARP_M % 16 == 0 && PIXELS % S::warps_m == 0, "tile");
    static_assert(TOTAL % S::columns == 0 && (S::columns % S::c_out == 0 || S::c_out % S::columns == 0), "passes");
    static_assert(WARP_N % S::c_out == 0 || S::c_out % WARP_N == 0, "a warp has whole phases, or part of one");

    const Place at;
    const unsigned staging;  // address of STAGING_BYTES of shared memory
    double2* const columns_done;  // WARPS_M * COLUMNS sums and sums of squares, in shared memory
    const int warp_m, warp_n;
    float sums[MT][NT][4];

    __device__ Sums(const Place& place, unsigned staging_area, double2* sums_area)
        : at(place),
          staging(staging_area),
          columns_done(sums_area),
          warp_m(place.warp / S::warps_n),
          warp_n(place.warp % S::warps_n) {}

    __device__ void clear() {
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[mt][nt][i] = 0.0f;
    }

    __device__ void finish(int pass) {
        finish_sums(pass);
        if constexpr (S::statistics) gather_sums();
        __syncthreads();  // all have read what lay in the staging area, and written their sums
        stage_output();
        if constexpr (S::statistics) add_sums(pass);
        __syncthreads();
        write_output(pass);
    }

    // A sum's place: lane = 4 * g + t holds in sums[mt][nt][i] pixel 16 * mt + 8 * (i / 2) + g of the warp's, and
    // column 8 * nt + 2 * t + i % 2.
    __device__ int pixel_of(int mt, int i) const { return warp_m * WARP_M + mt * 16 + i / 2 * 8 + at.lane / 4; }
    __device__ int column_of(int nt, int i) const { return warp_n * WARP_N + nt * 8 + at.lane % 4 * 2 + i % 2; }
    __device__ bool inside(int pixel) const {
        return at.y0 + pixel / S::tile_w < at.layer.out_height && at.x0 + pixel % S::tile_w < at.layer.out_width;
    }

    __device__ void finish_sums(int pass) {
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float bias = S::bias ? at.layer.bias[(pass * S::columns + column_of(nt, i)) % S::c_out] : 0.0f;
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

    // Of each column over the warp's pixels: distances from the first pixel, their sum and the sum of their squares. That
    // pixel is one of the n, so it lies at most sqrt(n) deviations off the mean, and the variance loses at most a factor
    // of n of float32's precision: 64 of 2^24.
    __device__ void gather_sums() {
        bool counts[MT][2];
        int count = 0;
#pragma unroll
        for (int mt = 0; mt < MT; mt++)
#pragma unroll
            for (int r = 0; r < 2; r++) count += counts[mt][r] = inside(pixel_of(mt, 2 * r));
        const float n = (float)across_rows(count);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float first = __shfl_sync(0xffffffffu, sums[0][nt][i], at.lane % 4);  // inside, if any pixel is
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
                const double2 done = tile_sums(n, n > 0.0f ? first : 0.0f, sum, squares);
                store_if(at.lane / 4 == 0, columns_done + warp_m * S::columns + column_of(nt, i), done);
            }
    }

    // A store that is no branch: the compiler makes two loops of a loop with a branch in it, and threads of one warp must
    // not meet in shuffles of different loops.
    static __device__ void store_if(bool wanted, double2* to, double2 v) {
        asm volatile("{.reg .pred p; setp.ne.s32 p, %0, 0; @p st.shared.v2.f64 [%1], {%2, %3};}" ::"r"((int)wanted),
                     "r"(shared_address(to)), "d"(v.x), "d"(v.y)
                     : "memory");
    }

    template <typename Number>
    static __device__ Number across_rows(Number v) {  // the sum over the lanes that hold the same columns
#pragma unroll
        for (int step = 4; step < 32; step *= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
        return v;
    }

    __device__ long long* planes() const { return at.layer.sums + (long long)at.image * PLANE_WORDS; }

    // After a barrier: the sums of the block's warps and phases, in a fixed order, to the planes.
    __device__ void add_sums(int pass) {
        constexpr int WIDTH = S::columns < S::c_out ? S::columns : S::c_out;
        for (int c = at.thread; c < WIDTH; c += S::threads) {
            double2 all = {};
            for (int i = 0; i < S::warps_m * PASS_PHASES; i++)
                all = {all.x + columns_done[i * WIDTH + c].x, all.y + columns_done[i * WIDTH + c].y};
            add_to_plane(planes(), S::c_out, pass * S::columns % S::c_out + c, at.tile, all);
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
                    const int byte = row_offset<OUT_GROUPS>(pixel_of(mt, 2 * r), column / LANES<T>) +
                                     column % LANES<T> * (int)sizeof(T);
                    put_pair(static_cast<T*>(__cvta_shared_to_generic(staging + byte)), sums[mt][nt][2 * r], sums[mt][nt][2 * r + 1]);
                }
    }

    __device__ void write_output(int pass) {
        constexpr int OUT_GROUPS = S::columns / LANES<T>, CHANNEL_GROUPS = S::c_out / LANES<T>;
        constexpr int SIDE_PHASES = S::phases == 4 ? 2 : 1;
        uint4* out = static_cast<uint4*>(at.layer.out) + (long long)at.image * S::phases * at.layer.out_height *
                                                               at.layer.out_width * CHANNEL_GROUPS;
        for (int i = at.thread; i < PIXELS * OUT_GROUPS; i += S::threads) {
            const int pixel = i / OUT_GROUPS, group = i % OUT_GROUPS, column = pass * OUT_GROUPS + group;
            const int phase = column / CHANNEL_GROUPS;
            const long long y = (at.y0 + pixel / S::tile_w) * SIDE_PHASES + phase / SIDE_PHASES;
            const long long x = (at.x0 + pixel % S::tile_w) * SIDE_PHASES + phase % SIDE_PHASES;
            if (inside(pixel))
                out[(y * at.layer.out_width * SIDE_PHASES + x) * CHANNEL_GROUPS + column % CHANNEL_GROUPS] =
                    load_shared(staging + row_offset<OUT_GROUPS>(pixel, group));
        }
    }
};
