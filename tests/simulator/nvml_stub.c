/* A stand-in for NVIDIA's libnvidia-ml.so.1, for the tests: the functions that nvidia-ml-py calls to list GPUs, their
 * memory and the processes on them.
 *
 * The GPUs come from the text file that NVML_STUB_GPUS names. It is read again by every call, so that a test
 * can change a machine while a process runs. A line is one of
 *
 *   TOTAL_MB FREE_MB UUID NAME...    a GPU; a total of 0 is what some parts without memory of their own report
 *   gpu-error CODE                   a GPU of which every question is answered by this NVML error
 *   error CODE                       (first line) the driver answers every call with this NVML error
 *   processes KIND                   how the GPUs of the lines below answer the question for their processes:
 *                                    listed (as without this line), empty, unmeasured (no figures), host-pids (each pid
 *                                    plus 1000000, as in a container), or the CODE of an NVML error
 *
 * Without the file it is a driver that is not loaded. With NVML_STUB_CALLS, a file, the name of each call that
 * opens or closes the library is added to it, one a line.
 *
 * FREE_MB is what nobody outside the simulation holds. What processes take of it stands in the folder that
 * NVML_STUB_ALLOCATIONS names; the rule of that folder is written in memory.py, and followed here.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SUCCESS 0
#define UNINITIALIZED 1
#define INVALID_ARGUMENT 2
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define ARGUMENT_VERSION_MISMATCH 25

#define MAX_GPUS 64
#define MEMORY_V2 0x02000028u
#define NOT_AVAILABLE (~0ull)
#define NO_INSTANCE (~0u)
#define HOST_PIDS 1000000

typedef struct {
    int error;
    unsigned long long total_mb, free_mb;
    char uuid[96], name[96], processes[32];
} gpu_t;

typedef struct {
    int error;
    unsigned count;
    gpu_t gpus[MAX_GPUS];
} machine_t;

typedef struct {
    unsigned long long total, free, used;
} memory_t;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} memory_v2_t;

typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} process_t;

/* What one process holds of one GPU. */
typedef struct {
    int pid, alive;
    unsigned long long mb;
} holding_t;

typedef void (*visit_t)(const holding_t *holding, void *result);

typedef struct {
    process_t *out;
    unsigned count, room;
} list_t;

static int opened = 0;

static void note(const char *call) {
    const char *path = getenv("NVML_STUB_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s\n", call);
        fclose(file);
    }
}

static int read_machine(machine_t *machine) {
    char line[512], processes[32] = "listed";
    const char *path = getenv("NVML_STUB_GPUS");
    FILE *file = path ? fopen(path, "r") : NULL;
    memset(machine, 0, sizeof *machine);
    if (!file)
        return DRIVER_NOT_LOADED;
    while (machine->count < MAX_GPUS && fgets(line, sizeof line, file)) {
        gpu_t *gpu = &machine->gpus[machine->count];
        if (sscanf(line, "error %d", &machine->error) == 1)
            break;
        if (sscanf(line, "processes %31s", processes) == 1)
            continue;
        if (sscanf(line, "gpu-error %d", &gpu->error) == 1 ||
            sscanf(line, "%llu %llu %95s %95[^\n]", &gpu->total_mb, &gpu->free_mb, gpu->uuid, gpu->name) == 4) {
            strcpy(gpu->processes, processes);
            machine->count++;
        }
    }
    fclose(file);
    return machine->error;
}

/* A handle is the index plus one, so that none is NULL. */
static int read_gpu(const void *handle, gpu_t *gpu) {
    machine_t machine;
    uintptr_t index = (uintptr_t)handle - 1;
    int error = opened ? read_machine(&machine) : UNINITIALIZED;
    if (error)
        return error;
    if (index >= machine.count)
        return INVALID_ARGUMENT;
    *gpu = machine.gpus[index];
    return gpu->error;
}

static int put(char *out, unsigned length, const char *text) {
    if (strlen(text) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

/* Fields 3 (state) and 22 (start time) of /proc/PID/stat; a zombie has given its memory back. */
static int is_alive(int pid, unsigned long long birth) {
    char path[64], text[1024], state = 'X';
    unsigned long long started = 0;
    const char *fields;
    FILE *file;
    size_t length;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    if (!(file = fopen(path, "r")))
        return 0;
    length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    if (!(fields = strrchr(text, ')')))
        return 0;
    sscanf(fields + 1, " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &state, &started);
    return state != 'Z' && state != 'X' && started == birth;
}

/* Seconds since somebody first saw that the process is dead, which is now if nobody has. */
static double dead_for_s(int folder, const char *mark) {
    struct timespec now;
    struct stat info;
    int file = openat(folder, mark, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (file >= 0)
        close(file);
    if (fstatat(folder, mark, &info, 0))
        return 0;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)(now.tv_sec - info.st_mtim.tv_sec) + (double)(now.tv_nsec - info.st_mtim.tv_nsec) / 1e9;
}

static void visit_file(int folder, const char *name, int pid, unsigned long long birth, const char *uuid, visit_t visit, void *result) {
    char line[256], mark[280], owner[96];
    double late_s;
    holding_t holding = {.pid = pid, .alive = is_alive(pid, birth)};
    int descriptor = openat(folder, name, O_RDONLY);
    FILE *file = descriptor < 0 ? NULL : fdopen(descriptor, "r");
    if (!file)
        return;
    snprintf(mark, sizeof mark, "%s.dead", name);
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "%95s %llu %lf", owner, &holding.mb, &late_s) != 3 || strcmp(owner, uuid))
            continue;
        if (holding.alive || dead_for_s(folder, mark) < late_s)
            visit(&holding, result);
    }
    fclose(file);
}

static void visit_holdings(const char *uuid, visit_t visit, void *result) {
    const char *path = getenv("NVML_STUB_ALLOCATIONS");
    DIR *folder = path ? opendir(path) : NULL;
    struct dirent *entry;
    if (!folder)
        return;
    while ((entry = readdir(folder))) {
        int pid, length = 0;
        unsigned long long birth;
        if (sscanf(entry->d_name, "%d-%llu%n", &pid, &birth, &length) == 2 && !entry->d_name[length])
            visit_file(dirfd(folder), entry->d_name, pid, birth, uuid, visit, result);
    }
    closedir(folder);
}

static void add_up(const holding_t *holding, void *result) {
    *(unsigned long long *)result += holding->mb;
}

static void list_process(const holding_t *holding, void *result) {
    list_t *list = result;
    if (!holding->alive)
        return;
    if (list->out && list->count < list->room)
        list->out[list->count] = (process_t){(unsigned)holding->pid, holding->mb << 20, NO_INSTANCE, NO_INSTANCE};
    list->count++;
}

int nvmlInitWithFlags(unsigned flags) {
    machine_t machine;
    int error = read_machine(&machine);
    (void)flags;
    note("nvmlInitWithFlags");
    if (!error)
        opened++;
    return error;
}

int nvmlShutdown(void) {
    note("nvmlShutdown");
    if (!opened)
        return UNINITIALIZED;
    opened--;
    return SUCCESS;
}

const char *nvmlErrorString(int error) {
    return error == SUCCESS ? "Success" : "Error of the stand-in";
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    machine_t machine;
    int error = opened ? read_machine(&machine) : UNINITIALIZED;
    return error ? error : put(version, length, "580.00.00");
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    machine_t machine;
    int error = opened ? read_machine(&machine) : UNINITIALIZED;
    *count = machine.count;
    return error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    gpu_t gpu;
    *handle = (void *)((uintptr_t)index + 1);
    return read_gpu(*handle, &gpu);
}

int nvmlDeviceGetName(const void *handle, char *name, unsigned length) {
    gpu_t gpu;
    int error = read_gpu(handle, &gpu);
    return error ? error : put(name, length, gpu.name);
}

int nvmlDeviceGetUUID(const void *handle, char *uuid, unsigned length) {
    gpu_t gpu;
    int error = read_gpu(handle, &gpu);
    return error ? error : put(uuid, length, gpu.uuid);
}

int nvmlDeviceGetMemoryInfo(const void *handle, memory_t *memory) {
    gpu_t gpu;
    unsigned long long taken_mb = 0;
    int error = read_gpu(handle, &gpu);
    if (error)
        return error;
    visit_holdings(gpu.uuid, add_up, &taken_mb);
    memory->total = gpu.total_mb << 20;
    memory->free = taken_mb < gpu.free_mb ? (gpu.free_mb - taken_mb) << 20 : 0;
    memory->used = memory->total - memory->free;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(const void *handle, memory_v2_t *memory) {
    memory_t plain;
    int error = memory->version == MEMORY_V2 ? nvmlDeviceGetMemoryInfo(handle, &plain) : ARGUMENT_VERSION_MISMATCH;
    if (error)
        return error;
    memory->total = plain.total;
    memory->reserved = 0;
    memory->free = plain.free;
    memory->used = plain.used;
    return SUCCESS;
}

/* As NVML: too little room is answered with the number there is, and none at all is a success. */
int nvmlDeviceGetComputeRunningProcesses_v3(const void *handle, unsigned *count, process_t *processes) {
    gpu_t gpu;
    list_t list = {processes, 0, *count};
    int error = read_gpu(handle, &gpu);
    if (!error)
        error = atoi(gpu.processes);
    if (error)
        return error;
    if (strcmp(gpu.processes, "empty"))
        visit_holdings(gpu.uuid, list_process, &list);
    *count = list.count;
    if (list.count > list.room)
        return INSUFFICIENT_SIZE;
    for (unsigned at = 0; at < list.count; at++) {
        if (!strcmp(gpu.processes, "unmeasured"))
            processes[at].used = NOT_AVAILABLE;
        if (!strcmp(gpu.processes, "host-pids"))
            processes[at].pid += HOST_PIDS;
    }
    return SUCCESS;
}
