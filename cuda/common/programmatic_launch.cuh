// Programmatic dependent launch (compute capability 9.0): a kernel's blocks begin while the kernel before still runs.
//
//   OVERLAP                         1: compiled for launches with overlap=True; left out or 0, the following do nothing
//   launch_dependents()             the kernel behind may begin, once every block of this one has come here or has ended
//   wait_for_earlier_kernels()      until the kernels before have ended and what they wrote can be read
//   load_earlier(p)                 *p, of what an earlier kernel wrote
//
// contract   Every thread waits: before it reads or writes what an earlier kernel of the stream reads or writes (an output
//            buffer may still be read), and before it ends. The wait is for the kernel just before alone; it is one for
//            all because that kernel has waited in its turn. A adds to sums, B reads and clears them, C adds again: C
//            waits for B, and B could not end before A had. A kernel launched without overlap waits for all by itself.
// loads      __ldg, and const with __restrict__, promise that nobody writes while the kernel runs. With OVERLAP the kernel
//            runs before its inputs are written, so these are plain loads then, which stay behind the wait.
// early      launch_dependents at the start takes no slot from a block of this kernel, but what waits then shares the
//            multiprocessors with what works: after the products it was faster (records/bench_overlap.txt).
// source     PTX ISA, "griddepcontrol"; CUDA Programming Guide, "Programmatic Dependent Launch and Synchronization".
#pragma once

#ifndef OVERLAP
#define OVERLAP 0
#endif
#if __CUDA_ARCH__ >= 900
constexpr bool OVERLAPS = OVERLAP;
#else
constexpr bool OVERLAPS = false;
#endif

__device__ inline void launch_dependents() {
    if constexpr (OVERLAPS) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ inline void wait_for_earlier_kernels() {
    if constexpr (OVERLAPS) asm volatile("griddepcontrol.wait;" ::: "memory");
}

template <typename T>
__device__ T load_earlier(const T* p) {
    if constexpr (OVERLAPS) return *p;
    else return __ldg(p);
}
