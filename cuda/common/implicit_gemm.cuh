// A convolution as a matrix product that is never laid out: NHWC, on tensor cores, with its neighbours fused in.
//
//   convolve(Layer)      out[pixel][channel] = sum over taps and input channels of halo[pixel + tap] * weight
//
// A block makes TILE_H x TILE_W pixels (of one image) and all output channels. It
//   1. starts copying weights to shared memory: a ring of RING stages, a stage being one tap and up to 128 bytes of
//      input channels, [COLUMNS][depth], laid out by the host as ldmatrix wants them;
//   2. loads the tile's halo once (halo.cuh);
//   3. multiplies, stage by stage: a tap is an offset into the halo, so all taps read the same copy;
//   4. adds bias, rounds, takes the statistics of what is to be written, and writes it (epilogue.cuh).
// Several passes over 3 and 4 make COLUMNS columns each, where all together are too many for the registers.
//
// Shape      what layer.cuh says, and taps, tap_y(phase, tap), tap_x(phase, tap).
// sizes      tiles hang over the edge of any picture; offsets have 64 bits.
// launch     grid (tiles, images), 32 * WARPS_M * WARPS_N threads, Block::SHARED bytes of dynamic shared memory.
// numbers    products are exact, sums float32; only integers are added in the order of arrival: the same launch gives
//            the same bits.
#pragma once
#include "epilogue.cuh"
#include "halo.cuh"

struct Block {
    using S = Shape;
    using T = Shape::type;
    // The deepest stage that divides the channels: 128 bytes, the span of the banks, or less. In groups of 16 bytes.
    static constexpr int DEPTH = Halo::GROUPS % 8 == 0 ? 8 : Halo::GROUPS % 6 == 0 ? 6 : Halo::GROUPS % 4 == 0 ? 4 : 2;
    static constexpr int STAGES = S::taps * (Halo::GROUPS / DEPTH);
    static constexpr int STAGE_BYTES = S::columns * DEPTH * 16;
    static constexpr bool RESIDENT = S::ring >= STAGES;  // all weights of a pass fit: no barriers in the loop
    static constexpr int SLOTS = RESIDENT ? STAGES : S::ring;
    static constexpr int RING_BYTES = SLOTS * STAGE_BYTES > Sums::STAGING_BYTES ? SLOTS * STAGE_BYTES : Sums::STAGING_BYTES;
    static constexpr int SHARED =
        Halo::BYTES + RING_BYTES + (S::statistics ? S::warps_m * S::columns * (int)sizeof(double2) : 0);
    static_assert(S::ring >= 2, "a stage arrives while another is read");

    const Place at;
    const Halo halo;
    const unsigned ring;
    Sums sums;

    __device__ Block(const Layer& layer, char* shared)
        : at(layer, S::tile_h, S::tile_w),
          halo{at, shared_address(shared)},
          ring(halo.base + Halo::BYTES),
          sums(at, ring, reinterpret_cast<double2*>(shared + Halo::BYTES + RING_BYTES)) {}

    __device__ void issue(int pass, int stage) {
        if (stage < STAGES) {
            const unsigned to = ring + stage % SLOTS * STAGE_BYTES;
            const char* from = static_cast<const char*>(at.layer.weight) +
                               ((long long)pass * STAGES + stage) * STAGE_BYTES;
#pragma unroll
            for (int first = 0; first < STAGE_BYTES; first += S::threads * 16) {
                const int byte = first + at.thread * 16;
                if (first + S::threads * 16 <= STAGE_BYTES || byte < STAGE_BYTES) copy_16(to + byte, from + byte);
            }
        }
        commit_copies();  // an empty group at the end keeps the count
    }

    __device__ void begin(int pass) {
        for (int stage = 0; stage < (RESIDENT ? STAGES : SLOTS - 1); stage++) issue(pass, stage);
    }

    __device__ void multiply(int pass) {
        // ldmatrix: this lane names row lane % 8 of matrix lane / 8. A's matrices: pixels 0-7 and 8-15 of 16 bytes,
        // then of the next 16. B's: columns 0-7 of both sixteens, then columns 8-15.
        const int matrix = at.lane / 8, row = at.lane % 8;
        int pixel[Sums::MT];  // where this lane's pixels lie in the halo
#pragma unroll
        for (int mt = 0; mt < Sums::MT; mt++) {
            const int m = sums.warp_m * Sums::WARP_M + mt * 16 + matrix % 2 * 8 + row;
            pixel[mt] = m / S::tile_w * S::stride * Halo::PITCH + m % S::tile_w;
        }
        const int column = sums.warp_n * Sums::WARP_N + matrix / 2 * 8 + row;
        const int phase = (pass * S::columns + sums.warp_n * Sums::WARP_N) / S::c_out;
        sums.clear();
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
            int offset[Sums::WARP_PHASES];
#pragma unroll
            for (int i = 0; i < Sums::WARP_PHASES; i++) {
                const int y = S::tap_y(phase + i, tap), x = S::tap_x(phase + i, tap);
                offset[i] = Halo::place(y, x);
            }
#pragma unroll
            for (int k = 0; k < DEPTH / 2; k++) {
                unsigned b[Sums::NT / 2][4];
#pragma unroll
                for (int nt = 0; nt < Sums::NT / 2; nt++)
                    load_matrices(b[nt], weights + row_offset<DEPTH>(column + nt * 16, 2 * k + matrix % 2));
#pragma unroll
                for (int i = 0; i < Sums::WARP_PHASES; i++) {
                    unsigned a[Sums::MT][4];
#pragma unroll
                    for (int mt = 0; mt < Sums::MT; mt++)
                        load_matrices(a[mt], halo.base + row_offset<Halo::GROUPS>(pixel[mt] + offset[i],
                                                                       chunk * DEPTH + 2 * k + matrix / 2));
#pragma unroll
                    for (int mt = 0; mt < Sums::MT; mt++)
#pragma unroll
                        for (int n = i * Sums::PHASE_NT; n < (i + 1) * Sums::PHASE_NT; n++)
                            product<T>(sums.sums[mt][n], a[mt], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                }
            }
        }
    }

    __device__ void run() {
        begin(0);
        halo.load();
        for (int pass = 0; pass < Sums::PASSES; pass++) {
            if (pass > 0) begin(pass);
            multiply(pass);
            await_copies<0>();  // of empty groups: nothing may arrive later
            sums.finish(pass);
            if (pass + 1 < Sums::PASSES) __syncthreads();  // the ring is free again
        }
    }
};

__device__ inline void convolve(const Layer& layer) {
    extern __shared__ __align__(128) char dynamic[];
    Block(layer, dynamic).run();
}
