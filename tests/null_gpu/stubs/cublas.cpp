// cuBLAS without a GPU: what returns values. The builder makes a launch of every other function that torch links to.
#include "model.h"

EXPORT int cublasCreate_v2(void** handle) {
  static char handles[1];
  return *handle = handles, 0;
}
EXPORT int cublasGetPointerMode_v2(void*, int* mode) { return *mode = 0, 0; }
EXPORT int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
