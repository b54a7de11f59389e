// The statistics of a plane that many blocks add to, in any order, with the same bits every time.
//
//   PlaneSums                              of one channel of one image: the sum and the sum of squares, in fixed point
//   add_to_plane(plane, n, mean, rest, m2) adds a tile: n numbers, a mean near theirs, the sum of the distances from it
//                                          and of their squares
//   plane_affine(plane, n, weight, bias, eps)   (scale, shift) of the instance norm over n numbers: x * scale + shift
//
// why        A convolution's epilogue knows a tile of each plane, and the next layer wants the mean and variance of the
//            whole. Floating-point atomics would add in the order in which blocks finish: another result every run.
//            Integers may be added in any order. No buffer of partial results, no kernel in between.
// numbers    The tile's moments are taken in float32 around a mean of its own, so that mean 4000 and deviation 0.5 are no
//            trouble. sum counts 2^-24: up to 2^39 in magnitude. Squares are a whole part and a fraction that counts
//            2^-40; up to 2^20 tiles. They are subtracted in double (E[x^2] - E[x]^2), where 53 bits are left for it.
//            A tile that is beyond these bounds, infinite or NaN marks the plane, and scale and shift are NaN.
// zero       The sums start as zero bytes; whoever launches sees to it.
#pragma once

struct PlaneSums {
    long long sum, squares, fraction;
};

__device__ inline void add_to(long long* address, long long value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(address), static_cast<unsigned long long>(value));
}

constexpr long long PLANE_POISON = 1ll << 62;  // in fraction, which otherwise stays below 2^61

__device__ inline void add_to_plane(PlaneSums* plane, float n, float mean, float rest, float m2) {
    const double center = mean, sum = n * center + rest, squares = m2 + center * (2.0 * rest + n * center);
    if (!(fabs(sum) < 0x1p38 && squares < 0x1p61)) {
        atomicOr(reinterpret_cast<unsigned long long*>(&plane->fraction), PLANE_POISON);
        return;
    }
    const double whole = floor(squares);
    add_to(&plane->sum, __double2ll_rn(sum * 0x1p24));
    add_to(&plane->squares, __double2ll_rn(whole));
    add_to(&plane->fraction, __double2ll_rn((squares - whole) * 0x1p40));
}

__device__ inline float2 plane_affine(const PlaneSums& plane, double n, float weight, float bias, float eps) {
    if (plane.fraction >= PLANE_POISON) return {__int_as_float(0x7fffffff), __int_as_float(0x7fffffff)};
    const double mean = plane.sum * 0x1p-24 / n;
    const double squares = static_cast<double>(plane.squares) + plane.fraction * 0x1p-40;
    const double variance = fmax(squares / n - mean * mean, 0.0);
    const double scale = weight / sqrt(variance + eps);
    return {static_cast<float>(scale), static_cast<float>(bias - mean * scale)};
}
