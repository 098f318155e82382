# SPDX-License-Identifier: Apache-2.0
# Turns the CUDA language on. LibTorch's own rules would do so too, with global flags.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Code for both, and PTX of the second for what comes later.
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90")
endif()
if(NOT DEFINED CMAKE_CUDA_STANDARD)
  if(CMAKE_VERSION VERSION_LESS 3.25.2)
    set(CMAKE_CUDA_STANDARD 17)  # knows no C++20 dialect of nvcc yet
  else()
    set(CMAKE_CUDA_STANDARD 20)
  endif()
endif()
# The runtime that LibTorch uses, not a second one.
if(NOT DEFINED CMAKE_CUDA_RUNTIME_LIBRARY)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
