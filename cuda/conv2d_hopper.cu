// Convolutions of 16-bit numbers on Hopper's tensor cores: reflection, the norm before and the statistics after in one
// kernel.
//
//   conv2d_hopper       3x3 with reflection padding 1: stride 1 or 2, or after doubling the picture (UPSAMPLE)
//
// x, out     NHWC. out is the raw sum, without a bias: an instance norm follows, which would take it away
// on load    v = x * scale + shift, by image and channel (affine, NORM), plus a residual (RESIDUAL), ReLU (LOAD_RELU). v is
//            also written to `kept` (KEEPS; stride 1)
// sums       of the planes of out, for close_planes.cu, as common/plane_sums.cuh says; null where no norm follows
// rows_out, columns_out    of out, and with UPSAMPLE half of them
// compiled   for one of the layers of common/hopper_tile.cuh, which holds the steps, and says how the weights lie
// launch     grid (tiles, images), or (tiles * PHASES, images) where each phase in y is to have blocks of its own; block
//            256, SHARED_BYTES of dynamic shared memory. With OVERLAP it may begin before the kernel before has ended, as
//            common/programmatic_launch.cuh says: barriers and weights come first
#include "common/hopper_tile.cuh"

#ifndef DEPENDENTS_EARLY
#define DEPENDENTS_EARLY 1  // the kernel behind may begin when this one's last blocks have; 0: when these have multiplied
#endif

struct Load {
    static constexpr bool norm = NORM, relu = LOAD_RELU, residual = RESIDUAL, keeps = KEEPS, fresh = false;
    static constexpr int flight = LOADS;  // the sums, 64 registers, come later
};

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    conv2d_hopper(const TYPE* x, const float* affine, const TYPE* residual, TYPE* kept,
        const unsigned char* __restrict__ weights, TYPE* __restrict__ out, long long* sums, int height, int width,
        int rows_out, int columns_out) {
    extern __shared__ unsigned char raw[];
    __shared__ alignas(8) unsigned long long full[STAGES];
    const unsigned halo = (shared_address(raw) + 1023) & ~1023u;
    const Ring ring = {halo + TILE_BYTES, shared_address(full)};
    const int across = (columns_out + TILE_W - 1) / TILE_W, tiles = (rows_out + TILE_H - 1) / TILE_H * across;
    const int apart = PHASES == 1 || gridDim.x == tiles ? 1 : PHASES;  // blocks that share the phases of a tile
    const int number = blockIdx.x / apart, first = blockIdx.x % apart, steps = PHASES / apart * STEPS;
    const Tile tile = {static_cast<int>(blockIdx.y), number / across * TILE_H, number % across * TILE_W,
                       static_cast<int>(threadIdx.x)};
    weights += first * STEPS * STEP;
    int until = min(steps, STEPS + 1);  // steps that may be fetched
    const auto fetch = [&](int step) {
        if (step < until) ring.fetch(step, weights + step * STEP);
    };
    if (DEPENDENTS_EARLY) launch_dependents();
    if (threadIdx.x == 0) ring.init();
    __syncwarp();  // for racecheck, which else takes the next lines for another thread's
    if (threadIdx.x == 0)
        for (int step = 0; step < STAGES - 1; step++) fetch(step);
    wait_for_earlier_kernels();  // all but the weights is theirs
    float4 mine[4] = {};  // scale and shift of this thread's eight channels
    if (NORM)
        for (int k = 0; k < 4; k++)
            mine[k] = load_earlier(reinterpret_cast<const float4*>(affine) +
                                   (blockIdx.y * GROUPS + threadIdx.x % GROUPS) * 4 + k);
    load_halo<Load>({reinterpret_cast<const uint4*>(x), reinterpret_cast<const uint4*>(residual),
                     reinterpret_cast<uint4*>(kept), height, width}, mine, halo, tile);
    __syncthreads();

    // Where the tile is staged, and its sums: in place of halo and last weights; with another phase to come, which needs
    // the halo again, in place of all weights but the first of its.
    const unsigned staged = PHASES == 1 ? halo : ring.memory + 2 * STEP;
    const unsigned sums_at = PHASES == 1 ? ring.memory + STAGES * STEP - 128 * 16 : staged - 128 * 16;
    float4* const rows_done = reinterpret_cast<float4*>(raw + (sums_at - shared_address(raw)));
#pragma unroll 1
    for (int begin = 0; begin < steps; begin += STEPS) {
        const int phase = PHASES == 1 ? 0 : first + begin / STEPS;
        const bool last = begin + STEPS == steps;
        float d[64] = {};
        multiply(d, ring, begin, halo, phase, fetch);
        if (!DEPENDENTS_EARLY && last) launch_dependents();
        const Words words = rounded(d);
        if (sums) tile_statistics(words, rows_done, tile, rows_out, columns_out);
        stage(words, staged);
        __syncthreads();
        if (sums) add_statistics(rows_done, sums + (long long)blockIdx.y * PLANE_WORDS, blockIdx.x);
        write_staged(staged, out, tile, rows_out, columns_out, phase);
        if (last) break;
        until = steps;
        fence_async();  // the copies write by another way than the tile was read
        __syncthreads();
        if (threadIdx.x == 0)
            for (int step = begin + STEPS + 1; step < begin + STEPS + STAGES - 1; step++) fetch(step);
    }
}
