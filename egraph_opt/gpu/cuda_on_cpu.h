// CUDA kernels as ordinary functions: the threads of a block are turns of a loop, or contexts that take turns where they
// wait for each other. For checking kernels where there is no GPU; nothing about their speed can be learned from it.
#include <array>
#include <cmath>
#include <csetjmp>
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
static std::vector<ucontext_t> contexts;
static std::vector<bool> begun, finished;
// Where threads and their scheduler go on; jumps, since swapping contexts asks the operating system each time.
static jmp_buf scheduler;
static std::vector<std::array<jmp_buf, 1>> places;

static inline void __syncthreads() {
    const int number = threadIdx.x;
    if (!_setjmp(places[number][0])) _longjmp(scheduler, 1);
    threadIdx.x = number;
}
static void begin() {
    const int number = threadIdx.x;
    (*kernel_of_all)();
    finished[number] = true;
    _longjmp(scheduler, 1);
}
static void resume(int number) {
    if (_setjmp(scheduler)) return;
    threadIdx.x = number;
    if (begun[number]) _longjmp(places[number][0], 1);
    begun[number] = true;
    setcontext(&contexts[number]);
}
static inline float __int_as_float(int bits) { float value; std::memcpy(&value, &bits, sizeof value); return value; }

// Threads of a warp run in step, so all of them hand over a value before any takes one; the next values lie elsewhere.
static std::vector<std::array<float, 2>> handed;
static std::vector<int> shuffles;
static inline float __shfl_xor_sync(unsigned, float value, int distance) {
    const int number = threadIdx.x, turn = shuffles[number]++ & 1;
    handed[number][turn] = value;
    __syncthreads();
    return handed[number ^ distance][turn];
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
    places.resize(threads);
    handed.resize(threads);
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
        begun.assign(threads, false);
        finished.assign(threads, false);
        shuffles.assign(threads, 0);
        for (int number = 0; number < threads; ++number) {
            getcontext(&contexts[number]);
            contexts[number].uc_stack.ss_sp = &stacks[size * number];
            contexts[number].uc_stack.ss_size = size;
            makecontext(&contexts[number], begin, 0);
        }
        // A warp may end before the others; within one all threads meet the same barriers.
        for (int left = threads; left > 0;)
            for (int number = 0; number < threads; ++number) {
                if (finished[number]) continue;
                resume(number);
                left -= finished[number];
            }
    }
}
