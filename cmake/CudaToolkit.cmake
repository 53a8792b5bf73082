# CMAKE_CUDA_COMPILER and CMAKE_CUDA_ARCHITECTURES, before CMake's own search: nvcc where it usually lies (JetPack does not
# put it on PATH), and every GPU that this toolkit and the kernels know.

if(NOT CMAKE_CUDA_COMPILER)
  find_program(EDGE_MRCNN_NVCC NAMES $ENV{CUDACXX} nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
               PATH_SUFFIXES bin NO_CACHE)
  if(EDGE_MRCNN_NVCC)
    set(CMAKE_CUDA_COMPILER ${EDGE_MRCNN_NVCC})
  endif()
endif()

# 87 is Orin, 110 Thor (from CUDA 13 on); binaries run on later GPUs of the same major number. The newest goes in as PTX too,
# which drivers compile for GPUs that come later.
set(EDGE_MRCNN_KNOWN_ARCHITECTURES 75 80 86 87 89 90 100 110 120 121)
if(NOT CMAKE_CUDA_ARCHITECTURES AND DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES $ENV{CUDAARCHS})
elseif(NOT CMAKE_CUDA_ARCHITECTURES AND CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE listed)
  foreach(architecture IN LISTS EDGE_MRCNN_KNOWN_ARCHITECTURES)
    if(listed MATCHES "compute_${architecture}[^0-9]")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
      set(newest ${architecture})
    endif()
  endforeach()
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest}-virtual)
endif()
