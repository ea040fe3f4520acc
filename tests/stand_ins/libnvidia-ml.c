/* A stand-in of libnvidia-ml.so.1: a machine of equal GPUs, described by STAND_IN_* variables (see __init__.py). */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    LIB_RM_VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
};

#define MIB (1024ull * 1024)
#define MAX_GPUS 64

typedef struct gpu { unsigned index; } *device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;

static struct gpu gpus[MAX_GPUS];
static int users;

static const char *text(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static unsigned long long number(const char *name, unsigned long long otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtoull(value, NULL, 10) : otherwise;
}

static unsigned gpu_count(void) {
    unsigned long long count = number("STAND_IN_GPUS", 1);
    return count < MAX_GPUS ? (unsigned)count : MAX_GPUS;
}

static int copy(char *to, unsigned length, const char *from) {
    if (strlen(from) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

static int usable(device gpu) {
    if (!users)
        return UNINITIALIZED;
    return gpu >= gpus && gpu < gpus + gpu_count() ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    int refusal = (int)number("STAND_IN_NVML_INIT", SUCCESS);
    if (refusal == SUCCESS)
        users++;
    return refusal;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!users)
        return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "Argument Version Mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    return users ? copy(version, length, text("STAND_IN_DRIVER_VERSION", "580.95.05")) : UNINITIALIZED;
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    char whole[80];
    snprintf(whole, sizeof whole, "13.%s", text("STAND_IN_DRIVER_VERSION", "580.95.05"));
    return copy(version, length, whole);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = (int)number("STAND_IN_CUDA", 13000);
    return SUCCESS;
}

int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    if (!users)
        return UNINITIALIZED;
    *count = gpu_count();
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *gpu) {
    if (!users)
        return UNINITIALIZED;
    if (index >= gpu_count())
        return INVALID_ARGUMENT;
    gpus[index].index = index;
    *gpu = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetIndex(device gpu, unsigned *index) {
    int code = usable(gpu);
    if (code == SUCCESS)
        *index = gpu->index;
    return code;
}

int nvmlDeviceGetName(device gpu, char *name, unsigned length) {
    int code = usable(gpu);
    return code ? code : copy(name, length, text("STAND_IN_NAME", "NVIDIA H100 80GB HBM3"));
}

int nvmlDeviceGetUUID(device gpu, char *uuid, unsigned length) {
    char whole[48];
    int code = usable(gpu);
    if (code)
        return code;
    snprintf(whole, sizeof whole, "GPU-00000000-0000-4000-8000-%012u", gpu->index);
    return copy(uuid, length, whole);
}

static void memory_bytes(unsigned long long *total, unsigned long long *free) {
    *total = number("STAND_IN_MEMORY_MIB", 81559) * MIB;
    *free = number("STAND_IN_FREE_MIB", *total / MIB) * MIB;
}

int nvmlDeviceGetMemoryInfo(device gpu, memory *info) {
    int code = usable(gpu);
    if (code)
        return code;
    memory_bytes(&info->total, &info->free);
    info->used = info->total - info->free;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory_v2 *info) {
    int code = usable(gpu);
    if (code)
        return code;
    if (info->version != (sizeof *info | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    memory_bytes(&info->total, &info->free);
    info->reserved = 0;
    info->used = info->total - info->free;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device gpu, int *major, int *minor) {
    int code = usable(gpu);
    if (code)
        return code;
    return sscanf(text("STAND_IN_CC", "9.0"), "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMigMode(device gpu, unsigned *current, unsigned *pending) {
    int code = usable(gpu);
    if (code)
        return code;
    *current = *pending = (unsigned)number("STAND_IN_MIG", 0);
    return SUCCESS;
}
