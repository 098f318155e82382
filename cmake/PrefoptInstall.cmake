# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)

set(prefopt_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/prefopt")

install(TARGETS prefopt EXPORT prefoptTargets FILE_SET HEADERS)
install(EXPORT prefoptTargets NAMESPACE prefopt:: DESTINATION "${prefopt_package_dir}")
if(TARGET prefopt_cli)
  install(TARGETS prefopt_cli)
endif()

# The package is tied to the minor of LibTorch that it was built with: its ABI changes between them.
string(REGEX MATCH "^[0-9]+\\.[0-9]+" prefopt_libtorch_minor "${PREFOPT_LIBTORCH_VERSION}")
get_target_property(prefopt_library_type prefopt TYPE)
configure_file(cmake/prefoptConfig.cmake.in prefoptConfig.cmake @ONLY)
write_basic_package_version_file(prefoptConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  "${CMAKE_CURRENT_BINARY_DIR}/prefoptConfig.cmake"
  "${CMAKE_CURRENT_BINARY_DIR}/prefoptConfigVersion.cmake"
  cmake/PrefoptLibTorch.cmake
  cmake/PrefoptTextLibraries.cmake
  DESTINATION "${prefopt_package_dir}")

# For tests/package/run, whose programs have to use the same LibTorch.
set(PREFOPT_LIBTORCH_DIR "${PREFOPT_LIBTORCH_DIR}" CACHE INTERNAL "Torch_DIR of this build")
