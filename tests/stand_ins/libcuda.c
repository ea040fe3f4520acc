/* A stand-in of libcuda.so.1: the driver's own questions and answers, described by STAND_IN_* variables
   (see __init__.py). No context can be made and nothing can be computed with it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    NOT_FOUND = 500,
    NOT_SUPPORTED = 801,
    SYSTEM_DRIVER_MISMATCH = 803,
};

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

static int initialized;

static const char *text(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static int gpu_count(void) { return atoi(text("STAND_IN_GPUS", "1")); }

static int usable(int device) {
    if (!initialized)
        return NOT_INITIALIZED;
    return device >= 0 && device < gpu_count() ? SUCCESS : INVALID_DEVICE;
}

int cuInit(unsigned flags) {
    if (flags)
        return INVALID_VALUE;
    int refusal = atoi(text("STAND_IN_CUINIT", "0"));
    if (refusal)
        return refusal;
    if (gpu_count() == 0)
        return NO_DEVICE;
    initialized = 1;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = atoi(text("STAND_IN_CUDA", "13000"));
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    if (!initialized)
        return NOT_INITIALIZED;
    *count = gpu_count();
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    int code = usable(ordinal);
    if (code == SUCCESS)
        *device = ordinal;
    return code;
}

int cuDeviceGetName(char *name, int length, int device) {
    int code = usable(device);
    if (code == SUCCESS)
        snprintf(name, (size_t)length, "%s", text("STAND_IN_NAME", "NVIDIA H100 80GB HBM3"));
    return code;
}

int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    int code = usable(device);
    if (code == SUCCESS)
        *bytes = strtoull(text("STAND_IN_MEMORY_MIB", "81559"), NULL, 10) << 20;
    return code;
}

int cuDeviceComputeCapability(int *major, int *minor, int device) {
    int code = usable(device);
    if (code)
        return code;
    return sscanf(text("STAND_IN_CC", "9.0"), "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_VALUE;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major, minor;
    int code = cuDeviceComputeCapability(&major, &minor, device);
    if (code)
        return code;
    if (attribute != CAPABILITY_MAJOR && attribute != CAPABILITY_MINOR)
        return INVALID_VALUE;
    *value = attribute == CAPABILITY_MAJOR ? major : minor;
    return SUCCESS;
}

static const char *name_of(int code) {
    switch (code) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case NOT_INITIALIZED: return "CUDA_ERROR_NOT_INITIALIZED";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
    case SYSTEM_DRIVER_MISMATCH: return "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH";
    default: return NULL;
    }
}

static const char *string_of(int code) {
    switch (code) {
    case SUCCESS: return "no error";
    case INVALID_VALUE: return "invalid argument";
    case NOT_INITIALIZED: return "initialization error";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    case NOT_FOUND: return "named symbol not found";
    case NOT_SUPPORTED: return "operation not supported";
    case SYSTEM_DRIVER_MISMATCH: return "system has unsupported display driver / cuda driver combination";
    default: return NULL;
    }
}

int cuGetErrorName(int code, const char **name) {
    *name = name_of(code);
    return *name ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorString(int code, const char **string) {
    *string = string_of(code);
    return *string ? SUCCESS : INVALID_VALUE;
}

/* The CUDA runtime asks for every function by name; this is how torch learns the driver's version. */
int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags,
                        int *status) {
    char newer[128];
    Dl_info own;
    (void)version, (void)flags;
    dladdr((void *)cuInit, &own);
    void *self = dlopen(own.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    snprintf(newer, sizeof newer, "%s_v2", symbol);
    *function = dlsym(self, symbol);
    if (!*function)
        *function = dlsym(self, newer);
    dlclose(self);
    if (status)
        *status = !*function;
    return *function ? SUCCESS : NOT_FOUND;
}

/* What the extensions of torch 2.11 and vllm 0.22 name: they must load, so each is there and none works. */
#define NAMED(X) \
    X(cuCtxGetCurrent) X(cuCtxSetCurrent) X(cuCtxGetDevice) X(cuDevicePrimaryCtxGetState) \
    X(cuDevicePrimaryCtxRetain) X(cuFuncGetAttribute) X(cuFuncSetAttribute) \
    X(cuFuncSetCacheConfig) X(cuLaunchCooperativeKernel) X(cuLaunchKernel) X(cuLinkAddData_v2) \
    X(cuLinkComplete) X(cuLinkCreate_v2) X(cuMemAddressFree) X(cuMemAddressReserve) X(cuMemCreate) \
    X(cuMemGetAllocationGranularity) X(cuMemMap) X(cuMemRelease) X(cuMemSetAccess) X(cuMemUnmap) \
    X(cuModuleGetFunction) X(cuModuleLoad) X(cuModuleLoadData) X(cuModuleLoadDataEx) \
    X(cuModuleUnload) X(cuOccupancyMaxActiveBlocksPerMultiprocessor) X(cuPointerGetAttribute) \
    X(cuTensorMapEncodeTiled)

#define REFUSE(name) \
    int name(void) { return NOT_SUPPORTED; }

NAMED(REFUSE)
