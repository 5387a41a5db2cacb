"""An NVML library compiled for a test: what the real pynvml, and torch, then read of a machine that is not there.

Two A100 cards, "GPU-0…" and "GPU-1…". By keyword: `COUNT` of cards, `INIT` and `MEMORY` the return codes of those
calls, `LOST` the card that answers nothing but its name, `MIG` the card that is cut into slices, `SLICES` how many,
`MODE` the compute mode, `PROCESSES` how many are listed, `MIXED` whether the second card
is another model.
"""

import subprocess
from pathlib import Path

_SOURCE = r"""
#include <stdio.h>
#include <string.h>
typedef struct { int card, slice; } device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long held; unsigned gpu, compute; } process_t;
typedef struct { unsigned cores, copy, decoders, encoders, jpeg, ofa, gpu_slices, compute_slices;
                 unsigned long long mebibytes; } attributes_t;
static device_t cards[2] = {{0, -1}, {1, -1}}, slices[2] = {{MIG, 0}, {MIG, 2}};
static int lost(device_t *d) { return d->card == LOST ? 15 : 0; }
static void uuid_of(device_t *d, char *s, unsigned n) {
  if (d->slice < 0) snprintf(s, n, "GPU-%d1111111-2222-3333-4444-555555555555", d->card);
  else snprintf(s, n, "MIG-%d1111111-2222-3333-4444-66666666666%d", d->card, d->slice); }
int nvmlInit(void) { return INIT; }
int nvmlInit_v2(void) { return INIT; }
int nvmlInitWithFlags(unsigned flags) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = COUNT; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = &cards[i]; return i < COUNT ? 0 : 2; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) {
  device_t *d = h;
  if (MIXED && d->card == 1) { strncpy(s, "Tesla T4", n); return 0; }
  strncpy(s, d->slice < 0 ? "NVIDIA A100-SXM4-80GB" : d->slice ? "NVIDIA A100-SXM4-80GB MIG 3g.40gb"
                                                               : "NVIDIA A100-SXM4-80GB MIG 1g.10gb", n);
  return 0; }
int nvmlDeviceGetUUID(void *h, char *s, unsigned n) { uuid_of(h, s, n); return 0; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { *a = 8; *b = 0; return lost(h); }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
  device_t *d = h;
  m->total = d->slice < 0 ? 85899345920ULL : d->slice ? 42949672960ULL : 10737418240ULL;
  m->free = (d->slice < 0 ? 80000000000ULL : 9000000000ULL) + d->card; m->used = m->total - m->free;
  return lost(d) ? 15 : MEMORY; }
int nvmlDeviceGetComputeMode(void *h, unsigned *mode) { *mode = MODE; return 0; }
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *next) {
  *now = *next = ((device_t *)h)->card == MIG; return ((device_t *)h)->card == MIG ? 0 : 3; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned i, void **slice) {
  if (i == 0 && SLICES > 0) *slice = &slices[0]; else if (i == 2 && SLICES > 1) *slice = &slices[1]; else return 6;
  return 0; }
int nvmlDeviceGetAttributes_v2(void *h, attributes_t *a) {
  memset(a, 0, sizeof *a); a->compute_slices = a->gpu_slices = ((device_t *)h)->slice ? 3 : 1;
  a->mebibytes = ((device_t *)h)->slice ? 40192 : 9856; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **h) {
  device_t *known[4] = {&cards[0], &cards[1], &slices[0], &slices[1]}; char name[96];
  for (int i = 0; i < 4; i++) { uuid_of(known[i], name, 96); if (!strcmp(uuid, name)) { *h = known[i]; return 0; } }
  return 6; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, process_t *p) {
  if (PROCESSES == 0) { *count = 0; return 0; }
  if (*count < PROCESSES) { *count = PROCESSES; return 7; }
  *count = PROCESSES;
  for (int i = 0; i < PROCESSES; i++) { p[i].pid = 11 * (i + 1); p[i].held = 1111 * (i + 1); }
  return 0; }
const char *nvmlErrorString(int r) { return r == 15 ? "GPU is lost" : "Unknown Error"; }
"""
_DEFAULTS = {
    "COUNT": 2,
    "INIT": 0,
    "MEMORY": 0,
    "LOST": -1,
    "MIG": -1,
    "SLICES": 2,
    "MODE": 0,
    "PROCESSES": 2,
    "MIXED": 0,
}


def build_nvml(folder: Path, **changes: int) -> dict[str, str]:
    """Compile it; returns the environment in which a process finds it instead of the machine's own."""
    source = folder / "nvml.c"
    source.write_text(_SOURCE)
    options = [f"-D{name}={value}" for name, value in (_DEFAULTS | changes).items()]
    library = str(folder / "libnvidia-ml.so.1")
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", *options, "-o", library, str(source)], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}
