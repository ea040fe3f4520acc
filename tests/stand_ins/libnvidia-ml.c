/* A stand-in of libnvidia-ml.so.1: a machine of equal GPUs, described by STAND_IN_* variables, or of unlike ones,
   described by a scenario file (see __init__.py). */

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

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
#define MAX_PROCESSES 64

typedef struct gpu { unsigned index; } *device;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;

typedef struct { unsigned pid; unsigned long long held; unsigned instance, compute_instance; } process;

static struct gpu gpus[MAX_GPUS];
static int users;

/* The next line of the scenario that is about this GPU and this key; what stands behind them is its value. */
static int next_row(FILE *file, unsigned index, const char *key, char *value) {
    char line[512], gpu[16], name[64];
    int behind;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%15s %63s %n", gpu, name, &behind) < 2 || strcmp(name, key))
            continue;
        if (strcmp(gpu, "*") && strtoul(gpu, NULL, 10) != index)
            continue;
        strcpy(value, line + behind);
        return 1;
    }
    return 0;
}

static FILE *scenario(void) {
    const char *path = getenv("STAND_IN_SCENARIO");
    return path && *path ? fopen(path, "r") : NULL;
}

/* The value of a key of this GPU. */
static int told(unsigned index, const char *key, char *value) {
    FILE *file = scenario();
    if (!file)
        return 0;
    int found = next_row(file, index, key, value);
    fclose(file);
    return found;
}

/* The code with which a call refuses, by the scenario; a call may also never return. */
static int refusal(unsigned index, const char *call) {
    char value[512];
    unsigned code;
    if (told(index, "hang", value) && !strcmp(value, call))
        for (;;)
            pause();
    FILE *file = scenario();
    char name[64];
    int answer = SUCCESS;
    while (file && answer == SUCCESS && next_row(file, index, "fail", value))
        if (sscanf(value, "%63s %u", name, &code) == 2 && !strcmp(name, call))
            answer = (int)code;
    if (file)
        fclose(file);
    return answer;
}

static int alive(pid_t pid) { return kill(pid, 0) == 0 || errno == EPERM; }

/* Who holds memory of this GPU and lives; `kind` is compute, graphics or mps, NULL for all. */
static unsigned holders(unsigned index, const char *kind, process *rows) {
    char value[512], word[16];
    unsigned count = 0, pid;
    unsigned long long mib;
    FILE *file = scenario();
    while (file && count < MAX_PROCESSES && next_row(file, index, "process", value)) {
        strcpy(word, "compute");
        if (sscanf(value, "%u %llu %15s", &pid, &mib, word) < 2 || !alive((pid_t)pid))
            continue;
        if (kind && strcmp(word, kind))
            continue;
        rows[count++] = (process){.pid = pid, .held = mib * MIB};
    }
    if (file)
        fclose(file);
    return count;
}

static const char *text(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

static unsigned long long number(const char *name, unsigned long long otherwise) {
    const char *value = getenv(name);
    return value && *value ? strtoull(value, NULL, 10) : otherwise;
}

static unsigned long long number_of(unsigned index, const char *key, const char *variable,
                                    unsigned long long otherwise) {
    char value[512];
    return told(index, key, value) ? strtoull(value, NULL, 10) : number(variable, otherwise);
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

static int usable(device gpu, const char *call) {
    if (!users)
        return UNINITIALIZED;
    if (gpu < gpus || gpu >= gpus + gpu_count())
        return INVALID_ARGUMENT;
    return refusal(gpu->index, call);
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
    int code = usable(gpu, __func__);
    if (code == SUCCESS)
        *index = gpu->index;
    return code;
}

int nvmlDeviceGetName(device gpu, char *name, unsigned length) {
    char value[512];
    int code = usable(gpu, __func__);
    if (code)
        return code;
    if (told(gpu->index, "name", value))
        return copy(name, length, value);
    return copy(name, length, text("STAND_IN_NAME", "NVIDIA H100 80GB HBM3"));
}

int nvmlDeviceGetUUID(device gpu, char *uuid, unsigned length) {
    char whole[48];
    int code = usable(gpu, __func__);
    if (code)
        return code;
    snprintf(whole, sizeof whole, "GPU-00000000-0000-4000-8000-%012u", gpu->index);
    return copy(uuid, length, whole);
}

/* Without free_mib: what those that live leave. */
static memory_v2 memory_bytes(unsigned index) {
    process rows[MAX_PROCESSES];
    memory_v2 made = {0};
    made.total = number_of(index, "memory_mib", "STAND_IN_MEMORY_MIB", 81559) * MIB;
    made.reserved = number_of(index, "reserved_mib", "STAND_IN_RESERVED_MIB", 0) * MIB;
    unsigned long long free = made.total - made.reserved;
    for (unsigned left = holders(index, NULL, rows); left--;)
        free -= rows[left].held < free ? rows[left].held : free;
    made.free = number_of(index, "free_mib", "STAND_IN_FREE_MIB", free / MIB) * MIB;
    made.used = made.total - made.free;
    return made;
}

int nvmlDeviceGetMemoryInfo(device gpu, memory *info) {
    int code = usable(gpu, __func__);
    if (code)
        return code;
    memory_v2 made = memory_bytes(gpu->index);
    *info = (memory){.total = made.total, .free = made.free, .used = made.used};
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(device gpu, memory_v2 *info) {
    int code = usable(gpu, __func__);
    if (code)
        return code;
    if (info->version != (sizeof *info | 2u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    unsigned version = info->version;
    *info = memory_bytes(gpu->index);
    info->version = version;
    info->used -= info->reserved;
    return SUCCESS;
}

int nvmlDeviceGetCudaComputeCapability(device gpu, int *major, int *minor) {
    char value[512];
    int code = usable(gpu, __func__);
    if (code)
        return code;
    const char *said = told(gpu->index, "cc", value) ? value : text("STAND_IN_CC", "9.0");
    return sscanf(said, "%d.%d", major, minor) == 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetMigMode(device gpu, unsigned *current, unsigned *pending) {
    int code = usable(gpu, __func__);
    if (code)
        return code;
    *current = *pending = (unsigned)number_of(gpu->index, "mig", "STAND_IN_MIG", 0);
    return SUCCESS;
}

int nvmlDeviceGetComputeMode(device gpu, unsigned *mode) {
    int code = usable(gpu, __func__);
    if (code == SUCCESS)
        *mode = (unsigned)number_of(gpu->index, "mode", "STAND_IN_MODE", 0);
    return code;
}

static int list(device gpu, const char *kind, unsigned *count, process *into) {
    process rows[MAX_PROCESSES];
    unsigned room = *count;
    *count = holders(gpu->index, kind, rows);
    if (*count > room)
        return INSUFFICIENT_SIZE;
    if (*count)
        memcpy(into, rows, *count * sizeof *rows);
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(device gpu, unsigned *count, process *rows) {
    int code = usable(gpu, __func__);
    return code ? code : list(gpu, "compute", count, rows);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(device gpu, unsigned *count, process *rows) {
    int code = usable(gpu, __func__);
    return code ? code : list(gpu, "graphics", count, rows);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(device gpu, unsigned *count, process *rows) {
    int code = usable(gpu, __func__);
    return code ? code : list(gpu, "mps", count, rows);
}
