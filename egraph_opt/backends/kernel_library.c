/* Generated kernels as onnxruntime custom operators.
 *
 * TVM compiles every kernel to an object file with the calling convention of tvm-ffi; this file, compiled with the table of
 * kernels ("table.h", written by tvm_build.py) and linked with those objects, is the shared library that
 * SessionOptions.register_custom_ops_library loads. It needs libc only:
 *
 *   - no onnxruntime header is needed: the function table of its C API is append-only, so functions are addressed by slot;
 *   - parallel loops of the kernels run on onnxruntime's own thread pool (KernelContext_ParallelFor);
 *   - scratch memory comes from aligned_alloc;
 *   - errors become OrtStatus values through the V2 entry points of OrtCustomOp, and so exceptions in the caller.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what tvm-ffi kernels expect (the layout of DLPack and of tvm-ffi's Any) ------------------------------------ */

typedef struct {
    int32_t type_index;
    uint32_t padding;
    union {
        int64_t integer;
        void *pointer;
        double real;
    } value;
} FFIAny;

typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t rank;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} Tensor;

enum { FFI_DLTENSOR_POINTER = 7, DEVICE_CPU = 1, TYPE_FLOAT = 2 };

typedef int (*KernelFunction)(void *self, FFIAny *arguments, int32_t count, FFIAny *result);

/* ---- the table of kernels --------------------------------------------------------------------------------------- */

typedef struct {
    int rank;
    int64_t elements;
    const int64_t *dims;
} Shape;

typedef struct {
    const char *name;
    KernelFunction function;
    int inputs;          /* one output follows the inputs in shapes */
    int tasks;           /* how many tasks its parallel loop has; 1: none */
    int shaped;          /* whether its code sees tensors as they are; if not, all of them are flat */
    const Shape *shapes;
} KernelEntry;

#include "table.h"

enum { KERNEL_COUNT = sizeof KERNELS / sizeof KERNELS[0], MOST_ARGUMENTS = 64 };

/* ---- onnxruntime's C API, by slot number ------------------------------------------------------------------------- */

typedef void *(*AnyFunction)(void);
typedef struct {
    const void *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} ApiBase;

enum { API_VERSION = 17, FLOAT_TENSOR = 1, STATUS_FAIL = 1, STATUS_INVALID_ARGUMENT = 2 };

static const AnyFunction *api;

#define CALL(slot, type) ((type)api[slot])
#define CREATE_STATUS CALL(0, void *(*)(int code, const char *message))
#define CREATE_CUSTOM_OP_DOMAIN CALL(26, void *(*)(const char *domain, void **out))
#define CUSTOM_OP_DOMAIN_ADD CALL(27, void *(*)(void *domain, const void *op))
#define ADD_CUSTOM_OP_DOMAIN CALL(28, void *(*)(void *options, void *domain))
#define GET_TENSOR_MUTABLE_DATA CALL(51, void *(*)(void *value, void **out))
#define GET_TENSOR_SHAPE_ELEMENT_COUNT CALL(64, void *(*)(const void *info, size_t *out))
#define GET_TENSOR_TYPE_AND_SHAPE CALL(65, void *(*)(const void *value, void **out))
#define KERNEL_CONTEXT_GET_INPUT CALL(90, void *(*)(const void *context, size_t index, void **out))
#define KERNEL_CONTEXT_GET_OUTPUT CALL(91, void *(*)(void *context, size_t index, const int64_t *dims, size_t rank, void **out))
#define RELEASE_TENSOR_TYPE_AND_SHAPE CALL(99, void (*)(void *info))
#define KERNEL_CONTEXT_PARALLEL_FOR CALL(274, void *(*)(const void *context, void (*f)(void *, size_t), size_t total, size_t batches, void *data))

typedef struct CustomOp {
    uint32_t version;
    void *(*CreateKernel)(const struct CustomOp *, const void *api, const void *info);
    const char *(*GetName)(const struct CustomOp *);
    const char *(*GetExecutionProviderType)(const struct CustomOp *);
    int (*GetInputType)(const struct CustomOp *, size_t);
    size_t (*GetInputTypeCount)(const struct CustomOp *);
    int (*GetOutputType)(const struct CustomOp *, size_t);
    size_t (*GetOutputTypeCount)(const struct CustomOp *);
    void (*KernelCompute)(void *, void *);
    void (*KernelDestroy)(void *);
    int (*GetInputCharacteristic)(const struct CustomOp *, size_t);
    int (*GetOutputCharacteristic)(const struct CustomOp *, size_t);
    int (*GetInputMemoryType)(const struct CustomOp *, size_t);
    int (*GetVariadicInputMinArity)(const struct CustomOp *);
    int (*GetVariadicInputHomogeneity)(const struct CustomOp *);
    int (*GetVariadicOutputMinArity)(const struct CustomOp *);
    int (*GetVariadicOutputHomogeneity)(const struct CustomOp *);
    void *(*CreateKernelV2)(const struct CustomOp *, const void *api, const void *info, void **kernel);
    void *(*KernelComputeV2)(void *kernel, void *context);
    void *InferOutputShape;
    int (*GetStartVersion)(const struct CustomOp *);
    int (*GetEndVersion)(const struct CustomOp *);
    void *GetMayInplace, *ReleaseMayInplace, *GetAliasMap, *ReleaseAliasMap;
} CustomOp;

typedef struct {
    CustomOp op; /* first: onnxruntime hands back a pointer to it */
    const KernelEntry *entry;
} Operator;

static Operator operators[KERNEL_COUNT];

static const KernelEntry *entry_of(const CustomOp *op) { return ((const Operator *)op)->entry; }

/* ---- what TVM objects call --------------------------------------------------------------------------------------- */

static _Thread_local void *current_context;            /* of the operator this thread is computing */
static _Thread_local const KernelEntry *current_entry;
static _Thread_local char error_text[512];

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int count) {
    size_t used = (size_t)snprintf(error_text, sizeof error_text, "%s: ", kind);
    for (int i = 0; i < count && used < sizeof error_text; i++) {
        int written = snprintf(error_text + used, sizeof error_text - used, "%s", parts[i] ? parts[i] : "");
        used += written > 0 ? (size_t)written : 0;
    }
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
    TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

typedef struct {
    void *sync;
    int32_t tasks;
} ParallelGroup;

typedef struct {
    int (*body)(int task, ParallelGroup *group, void *data);
    void *data;
    ParallelGroup group;
    int failed;
} ParallelLaunch;

static void run_task(void *user, size_t task) {
    ParallelLaunch *launch = user;
    if (launch->body((int)task, &launch->group, launch->data) != 0) {
        __atomic_store_n(&launch->failed, 1, __ATOMIC_RELAXED);
    }
}

static int parallel_launch(int (*body)(int, ParallelGroup *, void *), void *data, int wanted) {
    int tasks = wanted > 0 ? wanted : current_entry ? current_entry->tasks : 1;
    ParallelLaunch launch = {body, data, {NULL, tasks}, 0};
    if (current_context && tasks > 1) {
        /* 0 batches: as many as onnxruntime's pool has threads. */
        void *status = KERNEL_CONTEXT_PARALLEL_FOR(current_context, run_task, (size_t)tasks, 0, &launch);
        if (status) {
            return -1;
        }
    } else {
        for (int task = 0; task < tasks; task++) {
            run_task(&launch, (size_t)task);
        }
    }
    return launch.failed ? -1 : 0;
}

static void *allocate_workspace(int device, int id, uint64_t bytes, int code, int bits) {
    (void)device, (void)id, (void)code, (void)bits;
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static int free_workspace(int device, int id, void *memory) {
    (void)device, (void)id;
    free(memory);
    return 0;
}

/* The objects call through these variables, which libtvm_runtime would fill; here RegisterCustomOps does. */
void *__TVMBackendParallelLaunch;
void *__TVMBackendAllocWorkspace;
void *__TVMBackendFreeWorkspace;

/* ---- the operators ----------------------------------------------------------------------------------------------- */

static void *fail(const KernelEntry *entry, int code, const char *reason) {
    char message[768];
    snprintf(message, sizeof message, "egraph_opt kernel %s: %s", entry->name, reason);
    return CREATE_STATUS(code, message);
}

static void *create_kernel(const CustomOp *op, const void *ort, const void *info, void **kernel) {
    (void)ort, (void)info;
    *kernel = (void *)entry_of(op);
    return NULL;
}

static void *check_size(const KernelEntry *entry, int index, void *value) {
    void *info = NULL;
    size_t elements = 0;
    void *status = GET_TENSOR_TYPE_AND_SHAPE(value, &info);
    if (!status) {
        status = GET_TENSOR_SHAPE_ELEMENT_COUNT(info, &elements);
        RELEASE_TENSOR_TYPE_AND_SHAPE(info);
    }
    if (!status && (int64_t)elements != entry->shapes[index].elements) {
        char reason[160];
        snprintf(reason, sizeof reason, "input %d has %zu elements, but was compiled for %lld", index, elements,
                 (long long)entry->shapes[index].elements);
        status = fail(entry, STATUS_INVALID_ARGUMENT, reason);
    }
    return status;
}

static void *compute(void *kernel, void *context) {
    const KernelEntry *entry = kernel;
    int count = entry->inputs + 1;
    Tensor tensors[MOST_ARGUMENTS];
    FFIAny arguments[MOST_ARGUMENTS], result;
    if (count > MOST_ARGUMENTS) {
        return fail(entry, STATUS_FAIL, "too many inputs");
    }
    memset(&result, 0, sizeof result);
    for (int i = 0; i < count; i++) {
        const Shape *shape = &entry->shapes[i];
        void *value = NULL, *data = NULL, *status;
        if (i < entry->inputs) {
            status = KERNEL_CONTEXT_GET_INPUT(context, (size_t)i, &value);
            status = status ? status : check_size(entry, i, value);
        } else {
            status = KERNEL_CONTEXT_GET_OUTPUT(context, 0, shape->dims, (size_t)shape->rank, &value);
        }
        status = status ? status : GET_TENSOR_MUTABLE_DATA(value, &data);
        if (status) {
            return status;
        }
        /* Generated kernels address every tensor by row-major position. */
        int rank = entry->shaped ? shape->rank : 1;
        int64_t *dims = (int64_t *)(entry->shaped ? shape->dims : &shape->elements);
        tensors[i] = (Tensor){data, DEVICE_CPU, 0, rank, TYPE_FLOAT, 32, 1, dims, NULL, 0};
        arguments[i] = (FFIAny){FFI_DLTENSOR_POINTER, 0, {.pointer = &tensors[i]}};
    }
    current_context = context;
    current_entry = entry;
    strcpy(error_text, "a parallel task failed");
    int code = entry->function(NULL, arguments, count, &result);
    current_context = NULL;
    current_entry = NULL;
    return code ? fail(entry, STATUS_FAIL, error_text) : NULL;
}

static void destroy_kernel(void *kernel) { (void)kernel; }
static const char *get_name(const CustomOp *op) { return entry_of(op)->name; }
static const char *get_provider(const CustomOp *op) { return (void)op, "CPUExecutionProvider"; }
static int float_tensor(const CustomOp *op, size_t index) { return (void)op, (void)index, FLOAT_TENSOR; }
static size_t input_count(const CustomOp *op) { return (size_t)entry_of(op)->inputs; }
static size_t output_count(const CustomOp *op) { return (void)op, 1; }
static int zero(const CustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static int one(const CustomOp *op) { return (void)op, 1; }
static int newest(const CustomOp *op) { return (void)op, INT32_MAX; }

__attribute__((visibility("default"))) void *RegisterCustomOps(void *options, const ApiBase *base) {
    api = base->GetApi(API_VERSION);
    if (!api) {
        return NULL; /* an onnxruntime older than this table: its operators stay unknown, which it reports itself */
    }
    __TVMBackendParallelLaunch = (void *)parallel_launch;
    __TVMBackendAllocWorkspace = (void *)allocate_workspace;
    __TVMBackendFreeWorkspace = (void *)free_workspace;
    void *domain = NULL;
    void *status = CREATE_CUSTOM_OP_DOMAIN("egraph_opt.kernels", &domain);
    for (int i = 0; !status && i < KERNEL_COUNT; i++) {
        operators[i].entry = &KERNELS[i];
        operators[i].op = (CustomOp){
            .version = API_VERSION,
            .GetName = get_name,
            .GetExecutionProviderType = get_provider,
            .GetInputType = float_tensor,
            .GetInputTypeCount = input_count,
            .GetOutputType = float_tensor,
            .GetOutputTypeCount = output_count,
            .KernelDestroy = destroy_kernel,
            .GetInputCharacteristic = zero,
            .GetOutputCharacteristic = zero,
            .GetInputMemoryType = zero,
            .GetVariadicInputMinArity = one,
            .GetVariadicInputHomogeneity = one,
            .GetVariadicOutputMinArity = one,
            .GetVariadicOutputHomogeneity = one,
            .CreateKernelV2 = create_kernel,
            .KernelComputeV2 = compute,
            .GetStartVersion = one,
            .GetEndVersion = newest,
        };
        status = CUSTOM_OP_DOMAIN_ADD(domain, &operators[i]);
    }
    return status ? status : ADD_CUSTOM_OP_DOMAIN(options, domain);
}
