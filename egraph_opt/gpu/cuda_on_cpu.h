// CUDA kernels as ordinary functions: the threads of a block are turns of a loop, or contexts that take turns where they
// wait for each other. For checking kernels where there is no GPU; nothing about their speed can be learned from it.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __global__
#define __launch_bounds__(threads)
#define __restrict__ __restrict
#define __shared__ static
#define CUDART_INF_F INFINITY
#define CUDART_NAN_F NAN

struct Index { int x, y, z; };
static Index threadIdx, blockIdx;

static const std::function<void()> *kernel_of_all;
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<bool> finished;

static inline void __syncthreads() {
    const int number = threadIdx.x;
    swapcontext(&contexts[number], &scheduler);
    threadIdx.x = number;
}
static void begin() {
    const int number = threadIdx.x;
    (*kernel_of_all)();
    finished[number] = true;
}
static inline float __int_as_float(int bits) { float value; std::memcpy(&value, &bits, sizeof value); return value; }

// Threads of a warp run in step, so all of them hand over a value before any takes one.
static std::vector<float> handed;
static inline float __shfl_xor_sync(unsigned, float value, int distance) {
    handed[threadIdx.x] = value;
    __syncthreads();
    const float found = handed[threadIdx.x ^ distance];
    __syncthreads();
    return found;
}

struct float4 { float x, y, z, w; };
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static void launch(const std::function<void()> &kernel, int blocks, int threads, bool waits) {
    if (!waits) {
        for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
            for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
        return;
    }
    const size_t size = 64 * 1024;
    std::vector<char> stacks(size * threads);
    kernel_of_all = &kernel;
    contexts.resize(threads);
    handed.resize(threads);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        finished.assign(threads, false);
        for (int number = 0; number < threads; ++number) {
            getcontext(&contexts[number]);
            contexts[number].uc_stack.ss_sp = &stacks[size * number];
            contexts[number].uc_stack.ss_size = size;
            contexts[number].uc_link = &scheduler;
            makecontext(&contexts[number], begin, 0);
        }
        // A warp may end before the others; within one all threads meet the same barriers.
        for (int left = threads; left > 0;)
            for (int number = 0; number < threads; ++number) {
                if (finished[number]) continue;
                threadIdx.x = number;
                swapcontext(&scheduler, &contexts[number]);
                left -= finished[number];
            }
    }
}
