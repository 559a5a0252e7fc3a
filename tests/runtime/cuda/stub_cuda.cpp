// A stand-in for libcuda.so.1 that cuda.h checks the prototypes of: it notes every call, and keeps
// "device" memory on the host. Not for anything but test_driver.py.
#include <cuda.h>

#include <cstdlib>
#include <cstring>
#include <string>

static std::string notes, failing;
static int failure;
static CUcontext current;

static CUresult note(const char* name, const std::string& text = "") {
  notes += std::string(name) + "(" + text + ")\n";
  return failing == name ? (CUresult)failure : CUDA_SUCCESS;
}
static std::string number(unsigned long long n) { return std::to_string(n); }

extern "C" {
const char* stub_notes() { return notes.c_str(); }
void stub_reset(const char* name, int status) { notes.clear(), failing = name, failure = status; }

CUresult CUDAAPI cuInit(unsigned flags) { return note("cuInit", number(flags)); }
CUresult CUDAAPI cuDeviceGetCount(int* count) { return *count = 1, note("cuDeviceGetCount"); }
CUresult CUDAAPI cuDeviceGet(CUdevice* device, int ordinal) {
  return *device = 40 + ordinal, note("cuDeviceGet");
}
CUresult CUDAAPI cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 3201000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 6144; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 50 << 20; break;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
  return note("cuDeviceGetAttribute", number(device));
}
CUresult CUDAAPI cuDeviceGetName(char* name, int size, CUdevice) {
  return strncpy(name, "NVIDIA Stub", size), note("cuDeviceGetName");
}
CUresult CUDAAPI cuDriverGetVersion(int* version) {
  return *version = 12040, note("cuDriverGetVersion");
}
CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return *context = (CUcontext)(size_t)device, note("cuDevicePrimaryCtxRetain");
}
CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
  return current = context, note("cuCtxSetCurrent", number((size_t)context));
}
CUresult CUDAAPI cuGetErrorName(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
          : error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_X";
  return CUDA_SUCCESS;
}
CUresult CUDAAPI cuGetErrorString(CUresult, const char** text) {
  return *text = "what went wrong", CUDA_SUCCESS;
}
CUresult CUDAAPI cuMemGetInfo(size_t* free, size_t* total) {
  return *free = 5ull << 32, *total = 6ull << 32, note("cuMemGetInfo");
}
CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
  return *module = (CUmodule)50, note("cuModuleLoadData", number(((const char*)image)[1]));
}
CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  return *function = (CUfunction)51, note("cuModuleGetFunction", number((size_t)module) + name);
}
CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int v) {
  const char* what = "?";
  if (attribute == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) what = ",";
  if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) what = "clusters";
  return note("cuFuncSetAttribute", number((size_t)function) + what + number(v));
}
CUresult CUDAAPI cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                                unsigned by, unsigned bz, unsigned shared, CUstream stream,
                                void** params, void** extra) {
  std::string text;
  for (unsigned n : {gx, gy, gz, bx, by, bz, shared}) text += number(n) + ",";
  text += number((size_t)f) + "," + number((size_t)stream) + "," + number(*(CUdeviceptr*)params[0]);
  return note("cuLaunchKernel", text + "," + number(*(int*)params[1]) + (extra ? "?" : ""));
}
CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** params, void**) {
  std::string text;
  for (unsigned n : {c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                     c->blockDimZ, c->sharedMemBytes, c->numAttrs})
    text += number(n) + ",";
  bool pdl = c->attrs[0].id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
  text += number((size_t)c->hStream) + (pdl ? ",pdl" : "?");
  text += number(c->attrs[0].value.programmaticStreamSerializationAllowed) + ",";
  return note("cuLaunchKernelEx", text + number((size_t)f) + "," + number(*(int*)params[1]));
}
CUresult CUDAAPI cuMemAlloc(CUdeviceptr* address, size_t bytes) {
  return *address = (CUdeviceptr)malloc(bytes), note("cuMemAlloc", number(bytes));
}
CUresult CUDAAPI cuMemFree(CUdeviceptr address) { return free((void*)address), note("cuMemFree"); }
CUresult CUDAAPI cuMemHostAlloc(void** address, size_t bytes, unsigned flags) {
  return *address = malloc(bytes), note("cuMemHostAlloc", number(bytes) + "," + number(flags));
}
CUresult CUDAAPI cuMemFreeHost(void* address) { return free(address), note("cuMemFreeHost"); }
CUresult CUDAAPI cuMemcpyAsync(CUdeviceptr target, CUdeviceptr source, size_t n, CUstream stream) {
  return memcpy((void*)target, (void*)source, n), note("cuMemcpyAsync", number((size_t)stream));
}
CUresult CUDAAPI cuMemsetD8Async(CUdeviceptr target, unsigned char value, size_t n, CUstream) {
  return memset((void*)target, value, n), note("cuMemsetD8Async");
}
CUresult CUDAAPI cuStreamCreate(CUstream* stream, unsigned flags) {
  return *stream = (CUstream)60, note("cuStreamCreate", flags == CU_STREAM_NON_BLOCKING ? "n" : "");
}
CUresult CUDAAPI cuStreamSynchronize(CUstream s) {
  return note("cuStreamSynchronize", number((size_t)s));
}
CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  return note("cuStreamWaitEvent", number((size_t)stream) + "," + number((size_t)event) + "," +
                                       number(flags));
}
CUresult CUDAAPI cuEventCreate(CUevent* event, unsigned flags) {
  return *event = (CUevent)61,
         note("cuEventCreate", flags == CU_EVENT_DISABLE_TIMING ? "no timing" : number(flags));
}
CUresult CUDAAPI cuEventDestroy(CUevent event) {
  return note("cuEventDestroy", number((size_t)event));
}
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
  return note("cuEventRecord", number((size_t)event) + "," + number((size_t)stream));
}
CUresult CUDAAPI cuEventSynchronize(CUevent) { return note("cuEventSynchronize"); }
#undef cuEventElapsedTime  // newer headers mean its second version, which older drivers lack
CUresult CUDAAPI cuEventElapsedTime(float* ms, CUevent, CUevent) {
  return *ms = 1.5f, note("cuEventElapsedTime");
}
CUresult CUDAAPI cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
  bool local = mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
  return note("cuStreamBeginCapture", number((size_t)stream) + (local ? ",thread" : "?"));
}
CUresult CUDAAPI cuStreamEndCapture(CUstream, CUgraph* graph) {
  return *graph = (CUgraph)70, note("cuStreamEndCapture");
}
CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec* e, CUgraph g, unsigned long long flags) {
  return *e = (CUgraphExec)71,
         note("cuGraphInstantiateWithFlags", number((size_t)g) + "," + number(flags));
}
CUresult CUDAAPI cuGraphLaunch(CUgraphExec e, CUstream s) {
  return note("cuGraphLaunch", number((size_t)e) + "," + number((size_t)s));
}
CUresult CUDAAPI cuGraphDestroy(CUgraph g) { return note("cuGraphDestroy", number((size_t)g)); }
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec e) {
  return note("cuGraphExecDestroy", number((size_t)e));
}
}
