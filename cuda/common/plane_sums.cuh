// The statistics of planes that many blocks add to, in any order, with the same bits every time.
//
//   tile_sums(n, pivot, rest, m2)       of n numbers in float32 -> their sum and sum of squares, in double
//   add_to_plane(sums, channels, channel, slot, tile)   adds them to a plane
//   closed_plane(words, n, ...)         the three words of a plane, all slots added up -> scale and shift of its norm
//   close_planes.cu                     the kernel that makes scale and shift of them
//
// layout     sums: of one image, int64 [SLOTS][3][channels], zero before the launch. SLOTS * channels is 512: blocks that add to one address wait for each other, so few
//            channels, which means many pixels, get many slots.
// why        A convolution's epilogue knows a tile of each plane, and the next layer wants the mean and variance of the
//            whole. Floating-point atomics would add in the order in which blocks finish: another result every run.
//            Integers may be added in any order, and 12 KB an image hold them. That the last block to add should close
//            the planes was tried: every block waits for its fence, which cost more than a kernel of its own.
// numbers    The tile's moments are taken in float32 around one of its numbers (rest: the sum of distances from this pivot,
//            m2: of their squares), so that mean 4000 and deviation 0.5 are no trouble. The sum counts in 2^-24, the squares in
//            ones, and their fractions in 2^-40. They are subtracted in double (E[x^2] - E[x]^2), where 53 bits are left
//            for it. A tile that is out of range, infinite or NaN marks the plane, and scale and shift are NaN.
#pragma once

constexpr int PLANE_ENTRIES = 512, PLANE_WORDS = 3 * PLANE_ENTRIES;
constexpr long long PLANE_POISON = 1ll << 62;  // in the fractions, which 2^20 tiles leave below 2^60

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
        atomicOr(reinterpret_cast<unsigned long long*>(word + 2 * channels), (unsigned long long)PLANE_POISON);
        return;
    }
    const double whole = floor(tile.y);
    add_only(word, __double2ll_rn(tile.x * 0x1p24));
    add_only(word + channels, __double2ll_rn(whole));
    add_only(word + 2 * channels, __double2ll_rn((tile.y - whole) * 0x1p40));
}

// x * scale + shift = (x - mean) / sqrt(variance + eps) * weight + bias, for a plane of n numbers.
__device__ inline float2 closed_plane(const long long (&words)[3], bool marked, double n, float weight, float bias, float eps) {
    const double mean = words[0] * 0x1p-24 / n, square = (words[1] + words[2] * 0x1p-40) / n;
    const double scale = weight / sqrt(fmax(square - mean * mean, 0.0) + eps);
    const float nan = __int_as_float(0x7fffffff);
    return marked ? float2{nan, nan} : float2{static_cast<float>(scale), static_cast<float>(bias - mean * scale)};
}
