# Downloads TensorRT's headers for a TensorRT from pip, which has none: the include folder of NVIDIA/TensorRT at the release's
# tag, once a build folder. Sets TENSORRT_INCLUDE_DIR.

set(EDGE_MRCNN_TENSORRT_VERSION "" CACHE STRING "Version of the headers to download; that of pip's TensorRT by default")
set(EDGE_MRCNN_TENSORRT_ARCHIVES "https://github.com/NVIDIA/TensorRT/archive/refs/tags" CACHE STRING
    "Where the archives of TensorRT's releases lie")

set(version ${EDGE_MRCNN_TENSORRT_VERSION})
if(NOT version)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  execute_process(COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/pip_tensorrt.py OUTPUT_VARIABLE version
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT version)
  message(FATAL_ERROR "Which headers to download is not known, as pip has no TensorRT here: say it with "
                      "-DEDGE_MRCNN_TENSORRT_VERSION=10.13.3")
endif()

# The tag is v10.13.3, or v11.1 where there was no patch.
set(folder ${CMAKE_BINARY_DIR}/tensorrt-${version})
string(REGEX MATCH "^[0-9]+\\.[0-9]+" short ${version})
foreach(tag v${version} v${short})
  if(NOT EXISTS ${folder})
    set(url ${EDGE_MRCNN_TENSORRT_ARCHIVES}/${tag}.tar.gz)
    message(STATUS "Downloading TensorRT's headers: ${url}")
    file(DOWNLOAD ${url} ${folder}.tar.gz STATUS status INACTIVITY_TIMEOUT 60)
    list(POP_FRONT status failed)
    if(NOT failed)
      file(ARCHIVE_EXTRACT INPUT ${folder}.tar.gz DESTINATION ${folder}.part PATTERNS "*/include/*")
      file(RENAME ${folder}.part ${folder})
    endif()
  endif()
endforeach()
file(GLOB TENSORRT_INCLUDE_DIR ${folder}/*/include)
if(NOT TENSORRT_INCLUDE_DIR)
  message(FATAL_ERROR "TensorRT's headers of version ${version} could not be downloaded (${status}) from "
                      "${EDGE_MRCNN_TENSORRT_ARCHIVES}. Choose a release with -DEDGE_MRCNN_TENSORRT_VERSION=10.13.3, or get "
                      "the include folder of NVIDIA/TensorRT yourself and name it with -DTENSORRT_INCLUDE_DIR=FOLDER")
endif()
