// The statistics of planes that many blocks add to, in any order, with the same bits every time.
//
//   tile_sums(n, pivot, rest, m2)       of n numbers in float32 -> their sum and sum of squares, in double
//   add_to_plane(sums, channels, channel, slot, tile)   adds them to a plane
//   last_to_add(sums, blocks)           after a block's additions: true in the block that is the last of `blocks`
//   close_plane(sums, channels, channel, n, weight, bias, eps)   there: (scale, shift) of the instance norm over the n
//                                       numbers of a plane; leaves the sums as it found them before the launch, zero
//
// layout     sums: of one image, int64 [PLANE_WORDS]: [SLOTS][3][channels], then a count of blocks; zero bytes before the
//            first launch. SLOTS * channels is 512: blocks that add to one address wait for each other, about 9 ns each
//            on an H200, so few channels, which means many pixels, get many slots.
// why        A convolution's epilogue knows a tile of each plane, and the next layer wants the mean and variance of the
//            whole. Floating-point atomics would add in the order in which blocks finish: another result every run.
//            Integers may be added in any order. No buffer of partial results, and no kernel in between.
// numbers    The tile's moments are taken in float32 around one of its numbers (rest: the sum of distances from this pivot,
//            m2: of their squares), so that mean 4000 and deviation 0.5 are no trouble. The sum counts in 2^-24, the squares in
//            ones, and their fractions in 2^-40. They are subtracted in double (E[x^2] - E[x]^2), where 53 bits are left
//            for it. A tile that is out of range, infinite or NaN marks the plane, and scale and shift are NaN.
#pragma once

constexpr int PLANE_ENTRIES = 512, PLANE_WORDS = 3 * PLANE_ENTRIES + 16;
constexpr unsigned long long PLANE_POISON = 1ull << 62;  // in the fractions, which 2^20 tiles leave below 2^60

__device__ inline double2 tile_sums(float n, float pivot, float rest, float m2) {
    const double center = pivot;
    return {n * center + rest, m2 + center * (2.0 * rest + n * center)};
}

__device__ inline void add_only(long long* word, long long value) {  // atomicAdd, but nobody waits for the old value
    asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

__device__ inline void add_to_plane(long long* sums, int channels, int channel, int slot, double2 tile) {
    long long* word = sums + slot % (PLANE_ENTRIES / channels) * 3 * channels + channel;
    if (!(fabs(tile.x) < 0x1p38 && tile.y < 0x1p61)) {
        atomicOr(reinterpret_cast<unsigned long long*>(word + 2 * channels), PLANE_POISON);
        return;
    }
    const double whole = floor(tile.y);
    add_only(word, __double2ll_rn(tile.x * 0x1p24));
    add_only(word + channels, __double2ll_rn(whole));
    add_only(word + 2 * channels, __double2ll_rn((tile.y - whole) * 0x1p40));
}

// One thread calls it, after a barrier that all additions of its block precede: what it releases is theirs, too.
__device__ inline bool last_to_add(long long* sums, unsigned blocks) {
    unsigned before;
    asm volatile("atom.release.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(sums + 3 * PLANE_ENTRIES) : "memory");
    if (before != blocks - 1) return false;
    __threadfence();
    return true;
}

__device__ inline float2 close_plane(long long* sums, int channels, int channel, double n, float weight, float bias,
                                     float eps) {
    long long sum = 0, squares = 0, fraction = 0, marks = 0;
#pragma unroll 4
    for (int slot = 0; slot < PLANE_ENTRIES / channels; slot++) {
        volatile long long* word = sums + slot * 3 * channels + channel;
        sum += word[0];
        squares += word[channels];
        const long long part = word[2 * channels];
        fraction += part & ~PLANE_POISON;
        marks |= part & PLANE_POISON;
        word[0] = word[channels] = word[2 * channels] = 0;
    }
    if (channel == 0) sums[3 * PLANE_ENTRIES] = 0;
    if (marks) return {__int_as_float(0x7fffffff), __int_as_float(0x7fffffff)};
    const double mean = sum * 0x1p-24 / n, square = (squares + fraction * 0x1p-40) / n;
    const double scale = weight / sqrt(fmax(square - mean * mean, 0.0) + eps);
    return {static_cast<float>(scale), static_cast<float>(bias - mean * scale)};
}
