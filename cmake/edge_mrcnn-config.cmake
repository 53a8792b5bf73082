# find_package(edge_mrcnn): edge_mrcnn::kernels, and edge_mrcnn::plugins where TensorRT's headers were there to build it.
include(CMakeFindDependencyMacro)
find_dependency(CUDAToolkit)
include(${CMAKE_CURRENT_LIST_DIR}/edge_mrcnn-targets.cmake)
