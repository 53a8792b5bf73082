# TENSORRT_INCLUDE_DIR and TENSORRT_VERSION of TensorRT's headers (TensorRT-RTX's will do): where -DTENSORRT_INCLUDE_DIR or
# -DTENSORRT_ROOT, or an environment variable of that name, says, or where JetPack and the SDKs put them.

find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
          HINTS ENV TENSORRT_INCLUDE_DIR ${TENSORRT_ROOT} ENV TENSORRT_ROOT
          PATHS /usr/include/aarch64-linux-gnu /usr/include/x86_64-linux-gnu /usr/local/tensorrt /opt/tensorrt /usr
          PATH_SUFFIXES include NO_DEFAULT_PATH)

# 10.3 says NV_TENSORRT_MAJOR 10, 11.0 says TRT_MAJOR_ENTERPRISE 11, TensorRT-RTX says TRT_MAJOR_RTX 1.
set(TENSORRT_VERSION "")
if(EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferVersion.h")
  file(READ ${TENSORRT_INCLUDE_DIR}/NvInferVersion.h text)
  foreach(part MAJOR MINOR PATCH)
    if(text MATCHES "define +(NV_TENSORRT|TRT)_${part}(_[A-Z]+)? +([0-9]+)")
      list(APPEND TENSORRT_VERSION ${CMAKE_MATCH_3})
    endif()
  endforeach()
  list(JOIN TENSORRT_VERSION "." TENSORRT_VERSION)
endif()
