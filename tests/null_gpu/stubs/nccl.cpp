// NCCL without a GPU: collectives are launches that exchange nothing. What a rank gathers from the others is its own.
struct __half;  // nccl.h names types whose own headers come with no wheel of torch
struct __nv_bfloat16;
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
#include <nccl.h>

#include <cstring>

#include "model.h"

struct Ranks {
  int rank, count;
};
static Ranks& ranks_of(ncclComm_t communicator) { return *reinterpret_cast<Ranks*>(communicator); }
static ncclResult_t join(ncclComm_t* created, int count, int rank) {
  return *created = reinterpret_cast<ncclComm_t>(new Ranks{rank, count}), ncclSuccess;
}

EXPORT ncclResult_t ncclGetVersion(int* version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }
EXPORT ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return memset(id, 1, sizeof *id), ncclSuccess; }
EXPORT ncclResult_t ncclCommInitRank(ncclComm_t* created, int count, ncclUniqueId, int rank) {
  return join(created, count, rank);
}
EXPORT ncclResult_t ncclCommInitRankConfig(
    ncclComm_t* created, int count, ncclUniqueId, int rank, ncclConfig_t*) {
  return join(created, count, rank);
}
EXPORT ncclResult_t ncclCommInitRankScalable(
    ncclComm_t* created, int count, int rank, int, ncclUniqueId*, ncclConfig_t*) {
  return join(created, count, rank);
}
EXPORT ncclResult_t ncclCommSplit(ncclComm_t parent, int, int, ncclComm_t* created, ncclConfig_t*) {
  return join(created, ranks_of(parent).count, ranks_of(parent).rank);
}
EXPORT ncclResult_t ncclCommCount(const ncclComm_t communicator, int* count) {
  return *count = ranks_of(communicator).count, ncclSuccess;
}
EXPORT ncclResult_t ncclCommUserRank(const ncclComm_t communicator, int* rank) {
  return *rank = ranks_of(communicator).rank, ncclSuccess;
}
EXPORT ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) { return *error = ncclSuccess, ncclSuccess; }
EXPORT const char* ncclGetErrorString(ncclResult_t) { return "error of the null GPU's NCCL"; }
EXPORT const char* ncclGetLastError(ncclComm_t) { return ""; }

// ---- collectives

static ncclResult_t launch(const char* kernel) { return null_gpu_launch(kernel, false), ncclSuccess; }

static size_t bytes_of(ncclDataType_t type) {
  switch (type) {
    case ncclInt8: case ncclUint8: return 1;
    case ncclFloat16: case ncclBfloat16: return 2;
    case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
    default: return 8;
  }
}
EXPORT ncclResult_t ncclAllGather(
    const void* own, void* all, size_t count, ncclDataType_t type, ncclComm_t communicator, cudaStream_t) {
  const size_t bytes = count * bytes_of(type);
  for (int rank = 0; rank < ranks_of(communicator).count; rank++)
    null_gpu_copy_within(static_cast<char*>(all) + static_cast<size_t>(rank) * bytes, own, bytes);
  return launch("ncclAllGather");
}
#define LAUNCH(name, ...) \
  EXPORT ncclResult_t name(__VA_ARGS__) { return launch(#name); }
LAUNCH(ncclAllReduce, const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t)
LAUNCH(ncclReduce, const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t, cudaStream_t)
LAUNCH(ncclReduceScatter, const void*, void*, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t)
LAUNCH(ncclBroadcast, const void*, void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)
LAUNCH(ncclBcast, void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)
LAUNCH(ncclSend, const void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)
LAUNCH(ncclRecv, void*, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t)
